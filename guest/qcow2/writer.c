/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/writer.h"

#include "qcow2/clusters.h"
#include "qcow2/mapping.h"

#define NOWHERE UINT64_MAX
#define ALL_ZERO 0xffffffff00000000ull /* of a bitmap of subclusters */

/* One step of a request: clusters in a row that are written in place or get a new one. */
struct step {
    u64 first; /* guest clusters, absolute */
    u64 count;
    u64 host; /* of the first cluster */
    bool in_place;
};

static struct qcow2 *image_of(const struct writer *w) { return w->lookup->image; }

static void write_tables(struct writer *w) {
    struct qcow2 *image = image_of(w);
    for (u32 i = 0; i < w->lookup->count; i++) {
        if (w->dirty[i]) {
            disk_queue_write(&image->disk, w->lookup->l1[i] & ENTRY_OFFSET, w->lookup->tables + i * image->cluster_size,
                             image->cluster_size);
            w->dirty[i] = false;
        }
    }
    disk_run();
    disk_flush(&image->disk);
}

static void write_l1(struct writer *w) {
    if (w->l1_first >= w->l1_end) {
        return;
    }
    l1_write(image_of(w), w->l1_first, w->l1_end);
    w->l1_first = UINT64_MAX;
    w->l1_end = 0;
}

static void write_group(struct writer *w) {
    struct qcow2 *image = image_of(w);
    if (w->data != &image->disk) {
        disk_flush(w->data);
    }
    refcounts_write_back(w->refcounts);
    disk_flush(&image->disk);
    write_tables(w);
    write_l1(w);
    refcounts_let_go(w->refcounts);
    refcounts_discard(w->refcounts);
}

void writer_flush(struct writer *w) { write_group(w); }

static void leave_window(void *context) { write_group(context); }

void writer_open(struct writer *writer, struct lookup *lookup, struct refcounts *refcounts, bool has_backing,
                 writer_fill *keep, void *context) {
    *writer = (struct writer){.lookup = lookup,
                              .refcounts = refcounts,
                              .data = &lookup->image->disk,
                              .keep = keep,
                              .context = context,
                              .has_backing = has_backing,
                              .l1_first = UINT64_MAX};
    if (lookup->data_disk != lookup->image->disk.index) {
        const struct call_header *call = call_memory();
        writer->data_file = (struct disk){.index = lookup->data_disk, .size = call->disk_size[lookup->data_disk]};
        writer->data = &writer->data_file;
    }
    writer->dirty = heap_take_zeroed(lookup->room * sizeof(bool));
    refcounts_hold(refcounts, leave_window, writer);
    writer->old = heap_take(WRITER_REQUEST_MAX / 512 * sizeof(u64));
    lookup->leave = leave_window;
    lookup->leave_context = writer;
}

/* Clusters in a row: anywhere, or (at != NOWHERE) as many as are free there. */
static u64 allocate(struct writer *w, u64 *count, u64 at) {
    struct qcow2 *image = image_of(w);
    u64 offset;
    if (at == NOWHERE) {
        offset = refcounts_allocate(w->refcounts, *count << image->cluster_bits);
    } else {
        offset = at;
        *count = refcounts_allocate_at(w->refcounts, at, *count);
    }
    return offset;
}

static struct disk *data_file(const struct writer *w) { return w->data != &image_of(w)->disk ? w->data : NULL; }

/* get_cluster_table(): the L2 table for a guest cluster, made the disk's own. */
static u8 *own_table(struct writer *w, u64 cluster) {
    struct qcow2 *image = image_of(w);
    u64 index = cluster / l2_entries(image);
    lookup_need(w->lookup, index);
    u64 place = index - w->lookup->first;
    u8 *table = w->lookup->tables + place * image->cluster_size;
    u64 old = image->l1[index] & ENTRY_OFFSET;
    if ((image->l1[index] & ENTRY_COPIED) == 0) {
        u64 one = 1;
        u64 offset = allocate(w, &one, NOWHERE);
        if (old == 0) {
            memset(table, 0, image->cluster_size);
        }
        image->l1[index] = w->lookup->l1[place] = offset | ENTRY_COPIED;
        w->l1_first = min64(w->l1_first, index);
        w->l1_end = max64(w->l1_end, index + 1);
        w->dirty[place] = true;
        if (old != 0) {
            refcounts_free(w->refcounts, old, image->cluster_size, false);
        }
    }
    return table;
}

static void touch(struct writer *w, u64 cluster) {
    w->dirty[cluster / l2_entries(image_of(w)) - w->lookup->first] = true;
}

static u8 *entry_at(const struct writer *w, u8 *table, u64 cluster) {
    return table + (cluster % l2_entries(image_of(w))) * l2_entry_size(image_of(w));
}

/* cluster_needs_new_alloc() */
static bool needs_new(const struct qcow2 *image, u64 entry) {
    enum cluster_type type = cluster_type(image, entry);
    bool has_place = type == CLUSTER_NORMAL || type == CLUSTER_ZERO_ALLOCATED ||
                     (has_data_file(image) && type != CLUSTER_COMPRESSED && (entry & ENTRY_COPIED) != 0);
    return !has_place || (entry & ENTRY_COPIED) == 0;
}

/* count_single_write_clusters(): how many of `most` clusters from the first on can be done in one step. */
static u64 same_step(const struct writer *w, u8 *table, u64 first, u64 most, bool fresh) {
    struct qcow2 *image = image_of(w);
    u64 expected = load64(entry_at(w, table, first)) & ENTRY_OFFSET;
    for (u64 i = 0; i < most; i++) {
        u64 entry = load64(entry_at(w, table, first + i));
        if (needs_new(image, entry) != fresh ||
            (!fresh && (entry & ENTRY_OFFSET) != expected + i * image->cluster_size)) {
            return i;
        }
    }
    return most;
}

/* The next step of a request for [offset, end); host: where it would go on from the step before, or NOWHERE. A step
 * of no clusters: it cannot go on there. */
static struct step next_step(struct writer *w, u64 offset, u64 end, u64 host) {
    struct qcow2 *image = image_of(w);
    u64 first = offset >> image->cluster_bits;
    u64 most = min64(((end - 1) >> image->cluster_bits) + 1 - first, l2_entries(image) - first % l2_entries(image));
    lookup_need(w->lookup, first / l2_entries(image));
    struct step step = {.first = first};
    bool has_table = (image->l1[first / l2_entries(image)] & ENTRY_COPIED) != 0;
    u8 *table = w->lookup->tables + (first / l2_entries(image) - w->lookup->first) * image->cluster_size;
    if (has_table && !needs_new(image, load64(entry_at(w, table, first)))) {
        step.in_place = true;
        step.host =
            has_data_file(image) ? first << image->cluster_bits : load64(entry_at(w, table, first)) & ENTRY_OFFSET;
        step.count = host == NOWHERE || host == step.host ? same_step(w, table, first, most, false) : 0;
        return step;
    }
    table = own_table(w, first);
    step.count = same_step(w, table, first, most, true);
    if (has_data_file(image)) {
        step.host = first << image->cluster_bits;
    } else {
        step.host = allocate(w, &step.count, host);
    }
    return step;
}

/* calculate_l2_meta(): which part of the clusters is to be written, when [from, to) of it is new. */
static void kept_ranges(const struct writer *w, u8 *table, const struct step *step, u64 *from, u64 *to) {
    struct qcow2 *image = image_of(w);
    const u64 size = subcluster_size(image);
    const u64 base = step->first << image->cluster_bits;
    const u64 last = step->first + step->count - 1;
    u64 first_entry = load64(entry_at(w, table, step->first));
    u64 last_entry = load64(entry_at(w, table, last));
    u64 first_bitmap = has_extended_l2(image) ? load64(entry_at(w, table, step->first) + 8) : 0;
    u64 last_bitmap = has_extended_l2(image) ? load64(entry_at(w, table, last) + 8) : 0;
    u32 first_sub = (u32)((*from - base) / size);
    u32 last_sub = (u32)(offset_in_cluster(image, *to - 1) / size);
    bool first_has = cluster_type(image, first_entry) == CLUSTER_NORMAL;
    bool last_has = cluster_type(image, last_entry) == CLUSTER_NORMAL;
    enum extent_kind first_kind = entry_kind(image, first_entry, first_bitmap, first_sub);
    enum extent_kind last_kind = entry_kind(image, last_entry, last_bitmap, last_sub);
    u64 end_of_last = (last + 1) << image->cluster_bits;
    u64 sub_start = base + first_sub * size;
    u64 sub_end = round_up(*to, size);
    if (step->in_place) {
        *from = first_kind == EXTENT_DATA ? *from : sub_start;
        *to = last_kind == EXTENT_DATA ? *to : sub_end;
        return;
    }
    bool whole_first =
        first_kind == EXTENT_COMPRESSED || first_has || cluster_type(image, first_entry) == CLUSTER_ZERO_ALLOCATED;
    bool whole_last =
        last_kind == EXTENT_COMPRESSED || last_has || cluster_type(image, last_entry) == CLUSTER_ZERO_ALLOCATED;
    u64 allocated = first_bitmap & 0xffffffffu;
    *from = whole_first ? base : sub_start;
    if (whole_first && has_extended_l2(image) && first_kind != EXTENT_COMPRESSED) {
        u32 skip = allocated != 0 ? (u32)__builtin_ctzll(allocated) : 32;
        *from = base + min64(first_sub, skip) * size;
    }
    allocated = last_bitmap & 0xffffffffu;
    *to = whole_last ? end_of_last : sub_end;
    if (whole_last && has_extended_l2(image) && last_kind != EXTENT_COMPRESSED) {
        u32 skip = allocated != 0 ? (u32)__builtin_clz((u32)allocated) : 32;
        *to = end_of_last - min64(32 - last_sub - 1, skip) * size;
    }
}

/* qcow2_alloc_cluster_link_l2() */
static void link(struct writer *w, u8 *table, const struct step *step, u64 from, u64 to) {
    struct qcow2 *image = image_of(w);
    w->linked = true;
    for (u64 i = 0; i < step->count; i++) {
        u64 cluster = step->first + i;
        u8 *at = entry_at(w, table, cluster);
        u64 old = load64(at);
        u64 wanted = (step->host + (i << image->cluster_bits)) | ENTRY_COPIED;
        u64 start = cluster << image->cluster_bits;
        u64 bitmap = 0;
        if (has_extended_l2(image)) {
            u64 first = (max64(from, start) - start) / subcluster_size(image);
            u64 end = divide_up(min64(to, start + image->cluster_size) - start, subcluster_size(image));
            u64 bits = (end == 32 ? 0xffffffffull : (1ull << end) - 1) & ~((1ull << first) - 1);
            bitmap = (load64(at + 8) | bits) & ~(bits << 32);
            if (bitmap != load64(at + 8)) {
                store64(at + 8, bitmap);
                touch(w, cluster);
            }
        }
        if (old != wanted) {
            store64(at, wanted);
            touch(w, cluster);
        }
        if (!step->in_place && (old & (ENTRY_OFFSET | ENTRY_COMPRESSED)) != 0) {
            w->old[w->old_count++] = old;
        }
    }
}

static void free_old(struct writer *w) {
    for (u32 i = 0; i < w->old_count; i++) {
        clusters_free(w->refcounts, data_file(w), w->old[i], false);
    }
    w->old_count = 0;
}

void writer_write(struct writer *w, u64 offset, u64 length, writer_fill *fill, void *context) {
    struct qcow2 *image = image_of(w);
    const u64 end = offset + length;
    u64 host = NOWHERE;
    while (offset < end) {
        struct step step = next_step(w, offset, end, host);
        if (step.count == 0) {
            host = NOWHERE;
            continue;
        }
        u64 base = step.first << image->cluster_bits;
        u64 to = min64(end, (step.first + step.count) << image->cluster_bits);
        u8 *table = own_table(w, step.first);
        u64 from = offset;
        u64 until = to;
        kept_ranges(w, table, &step, &from, &until);
        fill(context, offset, to - offset, w->data, step.host + (offset - base));
        if (from < offset) {
            w->keep(w->context, from, offset - from, w->data, step.host + (from - base));
        }
        if (until > to) {
            w->keep(w->context, to, until - to, w->data, step.host + (to - base));
        }
        link(w, table, &step, from, until);
        host = step.host + (to - base);
        offset = to;
    }
    free_old(w);
}

void writer_write_compressed(struct writer *w, u64 offset, const u8 *bytes, u64 length) {
    struct qcow2 *image = image_of(w);
    const u64 cluster = offset >> image->cluster_bits;
    u8 *at = entry_at(w, own_table(w, cluster), cluster);
    const u64 host = refcounts_allocate_bytes(w->refcounts, length);
    store64(at, compressed_entry(image, host, length));
    if (has_extended_l2(image)) {
        store64(at + 8, 0);
    }
    touch(w, cluster);
    disk_queue_write(w->data, host, bytes, length);
}

/* zero_in_l2_slice() for one cluster. */
static void zero_cluster(struct writer *w, u64 cluster, bool unmaps) {
    struct qcow2 *image = image_of(w);
    u8 *at = entry_at(w, own_table(w, cluster), cluster);
    u64 old = load64(at);
    u64 old_bitmap = has_extended_l2(image) ? load64(at + 8) : 0;
    bool discards = image->version < 3;
    bool has_cluster =
        (old & ENTRY_OFFSET) != 0 || (has_data_file(image) && (old & (ENTRY_COPIED | ENTRY_ZERO)) == ENTRY_COPIED);
    bool frees = (old & ENTRY_COMPRESSED) != 0 || ((unmaps || discards) && has_cluster);
    u64 entry = frees ? 0 : old;
    u64 bitmap = has_extended_l2(image) ? ALL_ZERO : 0;
    entry |= has_extended_l2(image) || discards ? 0 : ENTRY_ZERO;
    if (entry == old && bitmap == old_bitmap) {
        return;
    }
    store64(at, entry);
    if (has_extended_l2(image)) {
        store64(at + 8, bitmap);
    }
    touch(w, cluster);
    if (frees) {
        clusters_free(w->refcounts, data_file(w), old, true);
    }
}

/* zero_l2_subclusters() */
static bool zero_subclusters(struct writer *w, u64 offset, u64 length) {
    struct qcow2 *image = image_of(w);
    u64 cluster = offset >> image->cluster_bits;
    u8 *at = entry_at(w, own_table(w, cluster), cluster);
    if ((load64(at) & ENTRY_COMPRESSED) != 0) {
        return false;
    }
    u64 first = offset_in_cluster(image, offset) / subcluster_size(image);
    u64 bits = ((1ull << (length / subcluster_size(image))) - 1) << first;
    u64 old = load64(at + 8);
    u64 bitmap = (old | bits << 32) & ~bits;
    if (bitmap != old) {
        store64(at + 8, bitmap);
        touch(w, cluster);
    }
    return true;
}

bool writer_zero(struct writer *w, u64 offset, u64 length, bool unmaps) {
    struct qcow2 *image = image_of(w);
    const u64 cluster_size = image->cluster_size;
    u64 end = offset + length;
    if (image->version < 3 && w->has_backing) {
        return false;
    }
    if (has_data_file(image) && (image->autoclear & AUTOCLEAR_RAW_DATA) != 0) { /* the file alone tells it, too */
        disk_queue_zero(w->data, offset, length);
        disk_queue_discard(w->data, offset, length);
    }
    if (end >= image->virtual_size) {
        end = round_up(end, cluster_size);
    }
    u64 head_end = min64(end, round_up(offset, cluster_size));
    if (offset < head_end && !zero_subclusters(w, offset, head_end - offset)) {
        return false;
    }
    u64 tail = max64(head_end, end & ~(cluster_size - 1));
    for (u64 at = head_end; at < tail; at += cluster_size) {
        zero_cluster(w, at >> image->cluster_bits, unmaps);
    }
    return tail >= end || zero_subclusters(w, tail, end - tail);
}

void writer_close(struct writer *w) {
    struct qcow2 *image = image_of(w);
    write_group(w);
    refcounts_write_back(w->refcounts);
    disk_flush(&image->disk);
    refcounts_hold_end(w->refcounts);
    w->lookup->leave = NULL;
}
