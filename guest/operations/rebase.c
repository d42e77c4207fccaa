/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Another backing file for an image (img_rebase() of qemu-img): what the old one shows otherwise than the new one is
 * pulled up into the image first. It can be compressed: whole clusters then, one after the other, where qemu-img
 * compresses several at a time and lets chance decide which of them comes first in the file. The write groups, each
 * flushed before the next begins:
 * 1. the header is brought up to date, bitmaps that record are marked as in use;
 * 2. data with its refcounts, then L2 tables, then L1 entries: again and again (writer.h);
 * 3. the image's bitmaps get what was written, and are valid again (recording.h);
 * 4. the commit point: the header names the new file. Unlike in qemu-img all that is needed is on the disk by then.
 */
#include "bitmaps/recording.h"
#include "chain/content_ids.h"
#include "operations/operations.h"
#include "qcow2/compressor.h"
#include "qcow2/preparation.h"
#include "qcow2/writer.h"

#define STEP (2 * MIB) /* looked at together */

struct rebase {
    const struct call_rebase *call;
    struct result_rebase *result;
    struct chain chain;     /* the image and its backing files of now */
    struct chain new_chain; /* the new ones */
    struct qcow2 *image;
    u64 size;
    u64 unit;        /* bytes that are compared and written together */
    bool compresses; /* what is looked at now is written compressed */
    struct refcounts refcounts;
    struct verification verification;
    struct writer writer;
    struct recording recording;
    struct compressor compressor;
    u8 *old_bytes;
    u8 *new_bytes;
    u8 *compressed; /* clusters that are to be written */
    u64 compressed_length;
};

static void fill_from_old(void *context, u64 offset, u64 length, struct disk *to, u64 host) {
    struct rebase *r = context;
    chain_copy(&r->chain, 1, offset, length, to, host);
}

static void keep_of_image(void *context, u64 offset, u64 length, struct disk *to, u64 host) {
    struct rebase *r = context;
    r->chain.past_end = true;
    chain_copy(&r->chain, 0, offset, length, to, host);
    r->chain.past_end = false;
}

static void open_rebase(struct rebase *r) {
    const struct call_rebase *call = r->call;
    if (call->backing_length > BACKING_NAME_MAX || call->format_length > BACKING_FORMAT_MAX ||
        call->shared >= call->layer_count) {
        refuse(REFUSAL_BAD_CALL);
    }
    if (call->relinks != 0) { /* nothing but the header is looked at */
        r->image = heap_take(sizeof(*r->image));
        qcow2_open(r->image, call->layers[0].disk, call->dry_run == 0);
    } else {
        chain_open(&r->chain, call->layers, call->layer_count, call->dry_run != 0 ? 0 : 1);
        content_ids_check(&r->chain, NO_COMMIT);
        r->image = r->chain.layers[0].image;
    }
    if (r->image == NULL) {
        refuse(REFUSAL_BAD_CALL);
    }
    r->size = r->image->virtual_size;
    r->unit = subcluster_size(r->image);
    if (call->new_layer_count > 0 && call->relinks == 0) {
        chain_open(&r->new_chain, call->new_layers, call->new_layer_count, 0);
        content_ids_check(&r->new_chain, NO_COMMIT);
    }
    result_disk(0);
}

/* The names that the header is to have, from here on the image's own. */
static void rename_backing(struct rebase *r) {
    const struct call_rebase *call = r->call;
    r->image->backing_offset = call->backing_length; /* where it stands is decided when it is written */
    r->image->backing_length = call->backing_length;
    r->image->backing_name = call->backing_name;
    r->image->backing_format = call->format_length > 0 ? call->backing_format : NULL;
    r->image->backing_format_length = call->format_length;
}

static u64 size_of(const struct chain *chain, u32 first) {
    return first < chain->count ? chain->layers[first].size : 0;
}

static void read_backing(struct chain *chain, u32 first, u64 offset, u64 length, u8 *to) {
    u64 size = size_of(chain, first);
    u64 there = size > offset ? min64(size - offset, length) : 0;
    memset(to + there, 0, length - there);
    if (there > 0) {
        chain_read(chain, first, offset, there, to);
    }
}

/* compare_buffers(): how many bytes from `at` on are all equal or all different, in units. */
static u64 same_answer(const struct rebase *r, u64 at, u64 length, bool *differ) {
    u64 done = 0;
    while (at + done < length) {
        u64 part = min64(r->unit, length - at - done);
        bool now = memcmp(r->old_bytes + at + done, r->new_bytes + at + done, part) != 0;
        if (done == 0) {
            *differ = now;
        } else if (now != *differ) {
            break;
        }
        done += part;
    }
    return done;
}

/* Clusters from `offset` on, the last one up to the end of the disk: behind that they hold zeros. */
static void write_compressed(struct rebase *r, u64 offset, u64 length, u8 *bytes) {
    const u64 cluster = r->image->cluster_size;
    for (u64 at = 0; at < length; at += cluster) {
        u64 part = min64(cluster, length - at);
        u8 *to = r->compressed + r->compressed_length;
        memset(bytes + at + part, 0, cluster - part);
        u64 packed = r->compressor.compress(&r->compressor, bytes + at, to);
        if (packed == 0) {
            writer_write(&r->writer, offset + at, part, fill_from_old, r);
        } else {
            writer_write_compressed(&r->writer, offset + at, to, packed);
            r->compressed_length += packed;
        }
    }
}

static void pull_up(struct rebase *r, u64 offset, u64 length, u8 *bytes, bool zeros) {
    *(zeros ? &r->result->zeroed_bytes : &r->result->copied_bytes) += length;
    if (r->call->dry_run != 0) {
        return;
    }
    recording_note(&r->recording, offset, length);
    if (zeros && writer_zero(&r->writer, offset, length, false)) {
        return;
    }
    if (r->compresses && !zeros) {
        write_compressed(r, offset, length, bytes);
    } else {
        writer_write(&r->writer, offset, length, fill_from_old, r);
    }
}

static void compare_and_pull(struct rebase *r, u64 offset, u64 length) {
    u64 old_size = size_of(&r->chain, 1);
    disk_run();
    r->compressed_length = 0;
    read_backing(&r->chain, 1, offset, length, r->old_bytes);
    read_backing(&r->new_chain, 0, offset, length, r->new_bytes);
    for (u64 at = 0; at < length;) {
        bool differ = false;
        u64 part = same_answer(r, at, length, &differ);
        if (differ) {
            pull_up(r, offset + at, part, r->old_bytes + at, offset + at >= old_size);
        }
        at += part;
    }
}

/* Does neither chain hold anything at `offset`? *length becomes that of the part of which it was asked. */
static bool both_empty(struct rebase *r, u64 offset, u64 *length) {
    u32 layer;
    struct extent old = chain_at(&r->chain, 1, r->chain.count, offset, *length, &layer);
    bool empty = old.kind == EXTENT_ABSENT || old.kind == EXTENT_ZERO;
    u64 both = old.length;
    if (empty && r->new_chain.count > 0) {
        struct extent new = chain_at(&r->new_chain, 0, r->new_chain.count, offset, both, &layer);
        empty = new.kind == EXTENT_ABSENT || new.kind == EXTENT_ZERO;
        both = new.length;
    }
    *length = empty ? both : *length;
    return empty;
}

/* Decides how what is at `offset` is written, and returns up to where that holds, at most `end`. Compressed clusters
 * are whole: where the image holds a part of one, in subclusters, or a place for it, the rest is pulled up as it is. */
static u64 choose_unit(struct rebase *r, u64 offset, u64 end) {
    u64 cluster = r->image->cluster_size;
    u64 start = offset / cluster * cluster;
    if (r->call->compresses == 0) {
        return end;
    }
    struct extent found = lookup_at(&r->chain.layers[0].lookup, start, r->size - start);
    bool whole = found.kind == EXTENT_ABSENT && (found.entry & ENTRY_OFFSET) == 0;
    u64 whole_end = start + found.length;
    whole_end = whole_end < r->size ? whole_end / cluster * cluster : r->size;
    r->compresses = whole && offset < whole_end;
    r->unit = r->compresses ? cluster : subcluster_size(r->image);
    return min64(end, r->compresses ? whole_end : start + cluster);
}

static void open_buffers(struct rebase *r) {
    const u64 room = STEP + 2 * r->image->cluster_size;
    r->old_bytes = heap_take(room);
    r->new_bytes = heap_take(room);
    if (r->call->compresses != 0 && r->call->dry_run == 0) {
        r->compressed = heap_take(room);
    }
}

static void pull_all(struct rebase *r) {
    open_buffers(r);
    for (u64 offset = 0; offset < r->size;) {
        u32 layer;
        struct extent found = chain_at(&r->chain, 0, 1, offset, r->size - offset, &layer);
        u64 length = found.length;
        bool wanted = found.kind == EXTENT_ABSENT;
        if (wanted && r->call->shared > 0) {
            found = chain_at(&r->chain, 1, r->call->shared, offset, length, &layer);
            length = found.length;
            wanted = found.kind != EXTENT_ABSENT;
        }
        const bool compares = wanted;
        const u64 end = offset + length;
        if (compares && both_empty(r, offset, &length)) {
            wanted = false;
        }
        if (wanted) {
            length = choose_unit(r, offset, offset + min64(length, STEP)) - offset;
            u64 start = offset / r->unit * r->unit;
            length = min64(round_up(offset + length, r->unit), r->size) - start;
            offset = start;
            compare_and_pull(r, start, length);
        }
        offset += length;
        if (compares && r->call->dry_run == 0 && (offset >= end || length == STEP)) { /* as often as qemu-img */
            disk_progress(min64(offset, r->size), r->size);
        }
    }
}

static void check_compression(const struct rebase *r, compressor_opener *open) {
    if ((open == NULL && r->call->dry_run == 0) || r->call->relinks != 0) {
        refuse(REFUSAL_BAD_CALL);
    }
    if (has_data_file(r->image)) {
        refuse(REFUSAL_COMPRESS_DATA_FILE);
    }
}

_Noreturn void operation_rebase(compressor_opener *open) {
    struct rebase *r = heap_take_zeroed(sizeof(*r));
    r->call = call_memory();
    r->result = result_memory();
    open_rebase(r);
    if (r->call->compresses != 0) {
        check_compression(r, open);
    }
    if (r->call->backing_length != 0 && (r->image->autoclear & AUTOCLEAR_RAW_DATA) != 0) {
        refuse(REFUSAL_BACKING_RAW_DATA); /* as qcow2_co_change_backing_file() */
    }
    r->result->virtual_size = r->size;
    const bool writes = r->call->dry_run == 0;
    const bool pulls = r->call->relinks == 0;
    if (writes) {
        const struct qcow2 before = *r->image;
        rename_backing(r);
        header_check_room(r->image, REFUSAL_BACKING_NAME_ROOM);
        *r->image = before;
        prepare(r->image, &r->refcounts, &r->verification);
    }
    if (pulls) {
        if (writes) {
            prepare_header(r->image);
            recording_start(&r->recording, r->image, &r->refcounts, r->size, (u32)__builtin_ctzll(r->unit));
            /* Unlike in qemu-img the new one counts, too: what is only given up would show what that has. */
            const bool has_backing = r->chain.count > 1 || r->new_chain.count > 0;
            writer_open(&r->writer, &r->chain.layers[0].lookup, &r->refcounts, has_backing, keep_of_image, r);
            if (r->call->compresses != 0) {
                open(&r->compressor, r->image);
            }
        }
        pull_all(r);
        if (writes) {
            writer_close(&r->writer);
            recording_store(&r->recording);
        }
    }
    if (writes) {
        rename_backing(r);
        header_rewrite(r->image);
    }
    finish(NULL, 0);
}
