/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the layers above a base hold goes into it: qemu's mirror job (block/mirror.c) with one operation in
 * flight, in the order of the disk. The write groups, each flushed before the next begins:
 * 1. the base is made ready: its header is brought up to date, bitmaps that record are marked as in use, it grows;
 * 2. data with its refcounts, then L2 tables, then L1 entries: again and again (writer.h, vmdk/writer.h);
 * 3. the base's bitmaps get what was written, and are valid again (recording.h); or its new content id is recorded;
 * 4. the top is emptied, if that is asked for.
 * There is no commit point, and none is needed: up to 4 the layers above stay as they are, so the top shows the same
 * whenever a crash comes, and the commit can be done again.
 */
#include "bitmaps/recording.h"
#include "chain/content_ids.h"
#include "chain/top.h"
#include "operations/operations.h"
#include "qcow2/bits.h"
#include "qcow2/preparation.h"
#include "qcow2/resize.h"
#include "qcow2/writer.h"
#include "vmdk/descriptor.h"
#include "vmdk/verify.h"
#include "vmdk/writer.h"

#define CHUNK_MIN (4 * KIB)
#define CHUNK_MAX (64 * KIB)
#define RUN_MAX (10 * MIB) /* of chunks that are looked at together */
#define WRITE_MAX (1 * MIB)

struct commit {
    const struct call_commit *call;
    struct result_commit *result;
    struct chain chain;
    struct layer *base;
    struct layer *above; /* the one that stands on the base */
    u32 base_index;
    u64 size; /* of the top, bytes */
    u64 end;  /* of what was committed */
    u64 chunk;
    struct refcounts refcounts; /* of the base */
    struct verification verification;
    struct writer writer;
    struct vmdk_writer vmdk_writer;
    struct recording recording;
};

/* Bytes of a cluster, or what goes for one. */
static u64 cluster_of(const struct layer *layer) {
    return is_qcow2(layer) ? layer->image->cluster_size : is_vmdk(layer) ? layer->vmdk->grain_size : CHUNK_MAX;
}

static void fill_from_top(void *context, u64 offset, u64 length, struct disk *to, u64 host) {
    chain_copy(context, 0, offset, length, to, host);
}

static void fill_with_zeros(void *context, u64 offset, u64 length, struct disk *to, u64 host) {
    (void)context;
    (void)offset;
    disk_queue_zero(to, host, length);
}

static void keep_of_base(void *context, u64 offset, u64 length, struct disk *to, u64 host) {
    struct commit *c = context;
    c->chain.past_end = true;
    chain_copy(&c->chain, c->base_index, offset, length, to, host);
    c->chain.past_end = false;
}

static void open_commit(struct commit *c) {
    const struct call_commit *call = c->call;
    if (call->base == 0 || call->base >= call->layer_count || call->layer_count > DISKS_MAX) {
        refuse(REFUSAL_BAD_CALL);
    }
    const u64 records_id = call->records_id != 0;
    u64 writable = 1ull << call->base | records_id << (call->base - 1) | (call->empties != 0);
    chain_open(&c->chain, call->layers, call->layer_count, call->dry_run != 0 ? 0 : writable);
    c->base_index = call->base;
    c->base = &c->chain.layers[call->base];
    c->above = &c->chain.layers[call->base - 1];
    if (call->records_id != 0 && !is_vmdk(c->above)) {
        refuse(REFUSAL_BAD_CALL);
    }
    c->size = c->chain.layers[0].size;
    c->chunk = min64(max64(cluster_of(c->base), CHUNK_MIN), CHUNK_MAX);
    content_ids_check(&c->chain, c->base_index);
    c->result->complete = content_ids_complete(&c->chain, c->base_index);
    if (c->base->size >= c->size) {
        return;
    }
    result_disk(c->base->disk.index);
    if (is_vmdk(c->base)) {
        refuse(REFUSAL_BASE_VMDK_RESIZE, .a = c->base->size, .b = c->size);
    }
    if (call->resize_allowed == 0) {
        refuse(REFUSAL_BASE_RESIZE, .a = c->base->size, .b = c->size);
    }
    if (is_qcow2(c->base) && c->base->image->version < 3 && c->base->image->snapshot_count > 0) {
        refuse(REFUSAL_BASE_RESIZE_V2, .a = c->base->size, .b = c->size);
    }
    if (is_qcow2(c->base) && l1_entries_for(c->base->image, c->size) > L1_BYTES_MAX / 8) {
        refuse(REFUSAL_L1_LARGE);
    }
    result_disk(0);
}

/* The next range from `from` on that a layer above the base has anything of, zeros included; false: none. */
static bool next_held(struct commit *c, u64 from, u64 end, u64 *start, u64 *length) {
    while (from < end) {
        u32 layer;
        struct extent found = chain_at(&c->chain, 0, c->base_index, from, end - from, &layer);
        if (found.kind != EXTENT_ABSENT) {
            *start = from;
            *length = found.length;
            return true;
        }
        from += found.length;
    }
    return false;
}

/* Gives the base what `fill` has. */
static void put(struct commit *c, u64 offset, u64 length, writer_fill *fill) {
    if (is_qcow2(c->base)) {
        writer_write(&c->writer, offset, length, fill, &c->chain);
    } else if (is_vmdk(c->base)) {
        vmdk_write(&c->vmdk_writer, offset, length, fill, &c->chain);
    } else {
        fill(&c->chain, offset, length, &c->base->disk, offset);
    }
}

static void write_part(struct commit *c, u64 offset, u64 length) {
    c->result->committed_bytes += length;
    if (c->call->dry_run == 0) {
        put(c, offset, length, fill_from_top);
    }
}

static void report_progress(const struct commit *c, u64 done) {
    if (c->call->dry_run == 0) {
        disk_progress(done, c->size);
    }
}

/* False: zeros have to be written. */
static bool make_zeros(struct commit *c, u64 offset, u64 length) {
    if (is_qcow2(c->base)) {
        return writer_zero(&c->writer, offset, length, true);
    }
    if (is_vmdk(c->base)) {
        return vmdk_zero(&c->vmdk_writer, offset, length);
    }
    disk_queue_zero(&c->base->disk, offset, length);
    disk_queue_discard(&c->base->disk, offset, length); /* gives the room back where that can be done */
    return true;
}

static void zero_part(struct commit *c, u64 offset, u64 length) {
    c->result->zeroed_bytes += length;
    if (c->call->dry_run != 0 || make_zeros(c, offset, length)) {
        return;
    }
    for (u64 at = 0; at < length; at += WRITE_MAX) {
        put(c, offset + at, min64(length - at, WRITE_MAX), fill_with_zeros);
    }
}

/* Are these whole (sub)clusters of the base? */
static bool is_aligned(const struct commit *c, u64 offset, u64 length) {
    u64 unit = is_qcow2(c->base) ? subcluster_size(c->base->image) : is_vmdk(c->base) ? cluster_of(c->base) : 1;
    return offset % unit == 0 && length % unit == 0;
}

/* mirror_iteration(): from `offset` to `end`, all of it chunks to be committed. */
static void commit_run(struct commit *c, u64 offset, u64 end) {
    while (offset < end && offset < c->size) {
        u32 layer;
        struct extent found = chain_at(&c->chain, 0, c->chain.count, offset, min64(end, c->size) - offset, &layer);
        bool data = found.kind == EXTENT_DATA || found.kind == EXTENT_COMPRESSED;
        u64 length = data ? min64(found.length, WRITE_MAX) : found.length;
        length -= length % c->chunk;
        bool whole = length >= c->chunk;
        length = max64(length, c->chunk);
        u64 clipped = min64(length, c->size - offset);
        if (c->call->dry_run == 0) {
            recording_note(&c->recording, offset, clipped);
        }
        c->end = offset + clipped;
        if (!data && whole && is_aligned(c, offset, length)) {
            zero_part(c, offset, clipped);
        } else {
            write_part(c, offset, clipped);
        }
        offset += clipped;
    }
}

static void commit_all(struct commit *c) {
    u64 start;
    u64 length;
    u64 at = 0;
    while (next_held(c, at, c->size, &start, &length)) {
        u64 first = start / c->chunk * c->chunk;
        u64 end = round_up(start + length, c->chunk);
        u64 limit = first + RUN_MAX;
        while (end < limit && end < c->size && next_held(c, end, min64(end + c->chunk, c->size), &start, &length)) {
            end = round_up(start + length, c->chunk);
        }
        end = min64(end, limit);
        commit_run(c, first, end);
        at = end;
        report_progress(c, min64(at, c->size));
    }
}

/* What the base's own backing file has behind the base's old end must not show. */
static void hide_backing(struct commit *c, u64 old_size) {
    const u64 head = min64(round_up(old_size, subcluster_size(c->base->image)), c->size);
    if (head > old_size) {
        writer_write(&c->writer, old_size, head - old_size, fill_with_zeros, &c->chain);
    }
    if (head < c->size) {
        zero_part(c, head, c->size - head);
        c->result->zeroed_bytes -= c->size - head;
    }
}

/* Unlike in qemu (qcow2_co_truncate()) the new size comes last: what is hidden shows at no moment. */
static void grow_over_backing(struct commit *c, u64 old_size) {
    struct qcow2 *image = c->base->image;
    resize_l1(image, &c->refcounts, l1_entries_for(image, c->size));
    refcounts_write_back(&c->refcounts);
    image->virtual_size = c->size;
    hide_backing(c, old_size);
    writer_flush(&c->writer);
    header_write_size(image);
    disk_flush(&image->disk);
}

/* What the base itself has behind its old end, since it was made smaller, must not show either. In qemu it does. */
static void hide_own(struct commit *c, u64 old_size) {
    const struct qcow2 *image = c->base->image;
    const u64 end = min64(c->size, image->l1_entries * l2_entries(image) << image->cluster_bits);
    u64 *words = heap_take(WRITE_MAX);
    bool any = false;
    for (u64 at = old_size; at < end;) {
        struct extent found = lookup_at(&c->base->lookup, at, min64(end - at, WRITE_MAX));
        if (found.kind == EXTENT_DATA || found.kind == EXTENT_COMPRESSED) {
            chain_read(&c->chain, c->base_index, at, found.length, (u8 *)words);
            if (!bits_all_clear(words, found.length)) {
                writer_write(&c->writer, at, found.length, fill_with_zeros, &c->chain);
                disk_run();
                any = true;
            }
        }
        at += found.length;
    }
    if (any) {
        writer_flush(&c->writer);
    }
}

/* The base gets as large as the top. */
static void grow_base(struct commit *c) {
    struct layer *base = c->base;
    const u64 old_size = base->size;
    if (old_size >= c->size) {
        return;
    }
    c->result->resized = 1;
    if (c->call->dry_run != 0) {
        return;
    }
    base->size = c->size;
    if (!is_qcow2(base)) {
        disk_resize(&base->disk, c->size);
        return;
    }
    if (has_data_file(base->image) && (base->image->autoclear & AUTOCLEAR_RAW_DATA) != 0) {
        disk_resize(c->writer.data, c->size);
    }
    if (c->base_index + 1 < c->chain.count && c->chain.layers[c->base_index + 1].size > old_size) {
        grow_over_backing(c, old_size);
    } else {
        hide_own(c, old_size);
        resize_mapping(base->image, &c->refcounts, c->size);
        refcounts_write_back(&c->refcounts);
    }
}

static void prepare_base(struct commit *c) {
    struct layer *base = c->base;
    if (is_vmdk(base)) {
        vmdk_verify(base->vmdk, true);
        if (c->call->records_id != 0) {
            vmdk_verify(c->above->vmdk, false);
        }
        vmdk_writer_open(&c->vmdk_writer, &base->grains, keep_of_base, c);
    }
    if (!is_qcow2(base)) {
        return;
    }
    result_disk(base->disk.index);
    prepare(base->image, &c->refcounts, &c->verification);
    result_disk(0);
    writer_open(&c->writer, &base->lookup, &c->refcounts, c->base_index + 1 < c->chain.count, keep_of_base, c);
}

/* Last of all, so that a commit that was interrupted finds the layers above as they were. Unlike QEMU this lets the
 * layer above go on: nothing is read through a parent that it does not know any more. */
static void close_vmdk(struct commit *c) {
    struct layer *base = c->base;
    struct vmdk *above = c->above->vmdk;
    vmdk_writer_close(&c->vmdk_writer);
    if (!c->vmdk_writer.written) {
        return;
    }
    u32 value = content_id_after(&c->chain, c->base_index);
    if (value != base->vmdk->id.value) {
        content_id_write(base->vmdk, &base->vmdk->id, value);
    }
    if (c->call->records_id != 0 && above->parent_id.value != value) {
        content_id_write(above, &above->parent_id, value);
    }
}

static void close_base(struct commit *c) {
    struct layer *base = c->base;
    if (is_vmdk(base)) {
        close_vmdk(c);
        return;
    }
    if (!is_qcow2(base)) {
        if (base->disk.size < c->end) { /* its last sector was not a whole one */
            disk_resize(&base->disk, c->end);
        }
        disk_flush(&base->disk);
        return;
    }
    writer_close(&c->writer);
    recording_store(&c->recording);
    if (c->writer.linked && (base->image->compatible & COMPATIBLE_LAZY_REFCOUNTS) != 0) {
        header_rewrite(base->image); /* lazy refcounts: qemu has set the dirty bit, and clears it so */
    }
}

_Noreturn void operation_commit(void) {
    struct commit *c = heap_take_zeroed(sizeof(*c));
    struct result_commit *result = result_memory();
    struct refcounts top_refcounts;
    struct verification top_verification;
    c->call = call_memory();
    c->result = result;
    open_commit(c);
    struct qcow2 *top = c->chain.layers[0].image;
    const bool writes = c->call->dry_run == 0;
    const bool empties = c->call->empties != 0 && top != NULL;
    if (writes) {
        prepare_base(c);
    }
    if (writes && empties) {
        prepare(top, &top_refcounts, &top_verification);
    }
    if (writes && is_qcow2(c->base)) {
        prepare_header(c->base->image);
        recording_start(&c->recording, c->base->image, &c->refcounts, c->size, (u32)__builtin_ctzll(c->chunk));
    }
    grow_base(c);
    commit_all(c);
    if (writes) {
        close_base(c);
    }
    result->committed_clusters = divide_up(result->committed_bytes + result->zeroed_bytes, cluster_of(c->base));
    result->virtual_size = c->size;
    result->empties = empties;
    result->cleared_clusters = empties ? top_clusters(&c->chain) : 0;
    if (writes && empties && result->cleared_clusters > 0) {
        top_empty(&c->chain, &top_refcounts);
    }
    finish(NULL, 0);
}
