/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/tally.h"

#include "qcow2/runs.h"

_Noreturn void blame(const struct origin *origin, enum refusal code, u64 cluster_offset, u64 value) {
    refuse(code, .a = origin->table, .b = origin->offset, .c = origin->index, .d = origin->entry, .e = cluster_offset,
           .f = value);
}

static u64 byte_offset(const struct verifier *v, u64 cluster) { return cluster << v->image->cluster_bits; }

static bool covers(const struct qcow2 *image, u64 offset, u64 bytes, u64 cluster) {
    return bytes > 0 && cluster >= offset >> image->cluster_bits &&
           cluster <= (offset + bytes - 1) >> image->cluster_bits;
}

/* What the metadata cluster is in use for already. */
static enum table metadata_kind(const struct verifier *v, u64 cluster) {
    const struct qcow2 *image = v->image;
    if (cluster == 0) {
        return TABLE_HEADER;
    }
    if (covers(image, image->refcount_table_offset, image->refcount_table_clusters * image->cluster_size, cluster)) {
        return TABLE_REFCOUNT_TABLE;
    }
    if (covers(image, image->l1_offset, 8ull * image->l1_entries, cluster)) {
        return TABLE_L1;
    }
    if (covers(image, image->snapshots_offset, image->snapshots_size, cluster)) {
        return TABLE_SNAPSHOT_TABLE;
    }
    if (covers(image, image->crypto_offset, image->crypto_length, cluster)) {
        return TABLE_CRYPTO_HEADER;
    }
    for (u32 i = 0; i < v->refcounts->cache.table_entries; i++) {
        if (v->refcounts->cache.table[i] == byte_offset(v, cluster)) {
            return TABLE_REFCOUNT_BLOCK;
        }
    }
    for (u32 i = 0; i < image->snapshot_count; i++) {
        if (covers(image, image->snapshots[i].l1_offset, 8ull * image->snapshots[i].l1_entries, cluster)) {
            return TABLE_SNAPSHOT_L1;
        }
    }
    return covers(image, image->bitmaps.directory_offset, image->bitmaps.directory_size, cluster)
               ? TABLE_BITMAP_DIRECTORY
               : TABLE_BITMAP_DATA;
}

static bool is_compressed(u32 counter) { return (counter & (KIND | COPIED_SEEN)) == COMPRESSED; }

static enum table kind_of(const struct verifier *v, u64 cluster, u32 counter) {
    if (is_compressed(counter)) {
        return TABLE_DATA;
    }
    return (counter & TABLE) != 0 ? TABLE_L2 : (counter & EXCLUSIVE) != 0 ? metadata_kind(v, cluster) : TABLE_DATA;
}

static void check_hunted(const struct verifier *v, u64 cluster, const struct origin *origin) {
    if (cluster == v->hunted && v->hunted_for == REFUSAL_REFCOUNT_TOO_LOW) {
        struct origin found = *origin;
        found.entry = v->hunted_refcount;
        blame(&found, REFUSAL_REFCOUNT_TOO_LOW, byte_offset(v, cluster), v->hunted_references);
    }
}

static void check_inside(const struct verifier *v, u64 cluster, const struct origin *origin) {
    if (cluster >= v->clusters) {
        blame(origin, REFUSAL_OUTSIDE_FILE, byte_offset(v, cluster), v->image->disk.size);
    }
    if (cluster >= v->counted) {
        struct origin uncounted = *origin;
        uncounted.entry = 0;
        blame(&uncounted, REFUSAL_REFCOUNT_TOO_LOW, byte_offset(v, cluster), 1);
    }
}

void tally_exclusive(struct verifier *v, u64 offset, u64 bytes, const struct origin *origin) {
    if (bytes == 0) {
        return;
    }
    u64 last = (offset + bytes - 1) >> v->image->cluster_bits;
    check_inside(v, last, origin);
    for (u64 cluster = offset >> v->image->cluster_bits; cluster <= last; cluster++) {
        if (!in_window(&v->counters, cluster)) {
            continue;
        }
        check_hunted(v, cluster, origin);
        u32 counter = counter_get(&v->counters, cluster);
        if (counter != 0 && v->hunted == NOTHING) {
            blame(origin, REFUSAL_OVERLAP, byte_offset(v, cluster), kind_of(v, cluster, counter));
        }
        counter_set(&v->counters, cluster, EXCLUSIVE | 1);
    }
}

/* The COPIED flag of an active entry, which has just been counted. Without the flag the answer waits
 * for the refcount: a cluster that leaked a reference rightly has none. */
static u32 check_copied(const struct verifier *v, u64 cluster, u32 counter, const struct origin *origin) {
    bool only = (counter & COUNT_MASK) == 1;
    if ((origin->entry & ENTRY_COPIED) != 0) {
        if (!only) {
            blame(origin, REFUSAL_COPIED_FLAG, byte_offset(v, cluster), counter & COUNT_MASK);
        }
        return counter | COPIED_SEEN;
    }
    if (cluster == v->hunted && v->hunted_for == REFUSAL_COPIED_FLAG) {
        blame(origin, REFUSAL_COPIED_FLAG, byte_offset(v, cluster), v->hunted_refcount);
    }
    return counter | (only ? CLEAR_SEEN : ACTIVE_SEEN);
}

void tally_table(struct verifier *v, u64 cluster, const struct origin *origin, bool active) {
    check_inside(v, cluster, origin);
    if (!in_window(&v->counters, cluster)) {
        return;
    }
    check_hunted(v, cluster, origin);
    u32 counter = counter_get(&v->counters, cluster);
    if ((counter & KIND) == EXCLUSIVE) {
        blame(origin, REFUSAL_OVERLAP, byte_offset(v, cluster), kind_of(v, cluster, counter));
    }
    if (active && (counter & KIND) == KIND) {
        blame(origin, REFUSAL_SHARED_CLUSTER, byte_offset(v, cluster), counter & COUNT_MASK);
    }
    if ((counter & COUNT_MASK) == COUNT_MASK) {
        blame(origin, REFUSAL_REFCOUNT_TOO_LOW, byte_offset(v, cluster), COUNT_MASK);
    }
    v->tables += counter == 0;
    counter = (counter + 1) | TABLE;
    if (active) {
        counter = check_copied(v, cluster, counter | EXCLUSIVE, origin);
    }
    counter_set(&v->counters, cluster, counter);
}

static void add_data(struct verifier *v, u64 cluster, u32 weight, const struct origin *origin, bool active,
                     bool compressed) {
    check_inside(v, cluster, origin);
    if (!in_window(&v->counters, cluster)) {
        return;
    }
    check_hunted(v, cluster, origin);
    u32 counter = counter_get(&v->counters, cluster);
    if ((counter & KIND) != 0 && !is_compressed(counter)) {
        blame(origin, REFUSAL_OVERLAP, byte_offset(v, cluster), kind_of(v, cluster, counter));
    }
    bool sole = v->image->snapshot_count == 0;
    bool shared = compressed ? counter != 0 && !is_compressed(counter) : (sole && counter != 0);
    if (shared || (!compressed && (counter & ACTIVE_SEEN) != 0)) {
        blame(origin, REFUSAL_SHARED_CLUSTER, byte_offset(v, cluster), counter & COUNT_MASK);
    }
    if ((counter & COUNT_MASK) + weight > COUNT_MASK) {
        blame(origin, REFUSAL_REFCOUNT_TOO_LOW, byte_offset(v, cluster), COUNT_MASK);
    }
    counter += weight;
    if (compressed) {
        v->result->has_compressed = true;
        counter |= COMPRESSED;
    } else if (active) {
        counter = check_copied(v, cluster, counter, origin);
    }
    counter_set(&v->counters, cluster, counter);
}

static void add_compressed(struct verifier *v, u32 weight, const struct origin *origin, bool active) {
    struct qcow2 *image = v->image;
    u64 offset;
    u64 length;
    if ((origin->entry & ENTRY_COPIED) != 0) {
        blame(origin, REFUSAL_COPIED_FLAG, 0, 0);
    }
    compressed_range(image, origin->entry, &offset, &length);
    u64 last = (offset + length - 1) >> image->cluster_bits;
    for (u64 cluster = offset >> image->cluster_bits; cluster <= last; cluster++) {
        add_data(v, cluster, weight, origin, active, true);
    }
}

/* Subclusters cannot be allocated and zero at once, nor allocated in no cluster. In an external data file offset 0
 * is one. */
static void check_subclusters(const struct qcow2 *image, const struct origin *origin, u64 bitmap) {
    u64 allocated = bitmap & 0xffffffffu;
    bool no_cluster = (origin->entry & (ENTRY_OFFSET | (has_data_file(image) ? ENTRY_COPIED : 0))) == 0;
    if ((allocated & (bitmap >> 32)) != 0 || (no_cluster && allocated != 0)) {
        struct origin wrong = *origin;
        wrong.entry = bitmap;
        blame(&wrong, REFUSAL_SUBCLUSTERS, origin->entry & ENTRY_OFFSET, 0);
    }
}

static void add_l2_entry(struct verifier *v, u32 weight, const struct origin *origin, bool active, u64 bitmap) {
    struct qcow2 *image = v->image;
    u64 entry = origin->entry;
    if ((entry & ENTRY_COMPRESSED) != 0) {
        if (has_data_file(image)) {
            blame(origin, REFUSAL_RESERVED_BITS, 0, 0); /* a data file has no compressed clusters */
        }
        if (has_extended_l2(image) && bitmap != 0) {
            check_subclusters(image, &(struct origin){origin->table, origin->offset, origin->index, 0}, bitmap);
        }
        add_compressed(v, weight, origin, active);
        return;
    }
    bool no_zero_flag = image->version < 3 || has_extended_l2(image);
    if ((entry & (L2_RESERVED | (no_zero_flag ? ENTRY_ZERO : 0))) != 0) {
        blame(origin, REFUSAL_RESERVED_BITS, entry & ENTRY_OFFSET, 0);
    }
    if (has_extended_l2(image)) {
        check_subclusters(image, origin, bitmap);
    }
    u64 offset = entry & ENTRY_OFFSET;
    if (offset == 0) {
        return;
    }
    if (offset_in_cluster(image, offset) != 0) {
        blame(origin, REFUSAL_UNALIGNED, offset, 0);
    }
    if (has_data_file(image)) {
        return; /* the cluster lies there, where nothing is counted */
    }
    add_data(v, offset >> image->cluster_bits, weight, origin, active, false);
}

/* Adds to a counter without flags; NOTHING: that is not the usual case. */
static inline u64 usual_sum(const struct verifier *v, u64 entry, u64 counter, u32 weight, bool active) {
    u64 sum = counter + weight;
    bool copied = (entry & ENTRY_COPIED) != 0;
    if (sum > v->counters.limit || (active && copied != (sum == 1))) {
        return NOTHING;
    }
    return sum | (!active ? 0 : copied ? COPIED_SEEN : ACTIVE_SEEN);
}

/* The usual case without a call: an ordinary entry whose counter has room. False: not usual. */
static inline bool add_quickly(struct verifier *v, u64 entry, u32 weight, bool active, u64 unusual_bits) {
    u64 cluster = (entry & ENTRY_OFFSET) >> v->image->cluster_bits;
    if ((entry & unusual_bits) != 0 || !in_window(&v->counters, cluster)) {
        return false;
    }
    u64 sum = usual_sum(v, entry, counter_get(&v->counters, cluster), weight, active);
    if (sum == NOTHING) {
        return false;
    }
    counter_set(&v->counters, cluster, (u32)sum);
    return true;
}

/* Eight entries in a row that are referred to equally often. */
static inline bool add_run(struct verifier *v, const u8 *entries, u64 entry, u32 weight, bool active,
                           u64 unusual_bits) {
    u64 cluster = (entry & ENTRY_OFFSET) >> v->image->cluster_bits;
    if ((entry & unusual_bits) != 0 || cluster + RUN > v->counted || !is_run(entries, entry, v->image->cluster_size)) {
        return false;
    }
    if (!run_in_window(&v->counters, cluster)) {
        return !in_window(&v->counters, cluster) && !in_window(&v->counters, cluster + RUN - 1);
    }
    u16x8 cells = counters_run(&v->counters, cluster);
    u64 sum = cells[0] > NARROW_COUNT_MAX ? NOTHING : usual_sum(v, entry, cells[0], weight, active);
    if (sum == NOTHING || !all_equal(cells, run_of(cells[0]))) {
        return false;
    }
    counters_set_run(&v->counters, cluster, run_of((u16)(sum >> FLAGS_SHIFT << NARROW_SHIFT | sum)));
    return true;
}

bool tally_l2(void *context, const struct table_item *item, u8 *table) {
    struct verifier *v = context;
    struct qcow2 *image = v->image;
    u32 step = l2_entry_size(image);
    bool active = item->owner != 0;
    bool quick = step == 8 && !has_data_file(image) && counters_have_runs(&v->counters) && v->hunted == NOTHING &&
                 (active || image->snapshot_count != 0);
    u64 unusual_bits = ENTRY_COMPRESSED | L2_RESERVED | (image->version < 3 ? ENTRY_ZERO : 0) |
                       ((image->cluster_size - 1) & ENTRY_OFFSET);
    u64 count = l2_entries(image);
    for (u64 i = 0; i < count; i++) {
        u64 entry = load64(table + i * step);
        if (quick && i + RUN <= count && (entry & ENTRY_OFFSET) != 0 &&
            add_run(v, table + i * step, entry, item->weight, active, unusual_bits)) {
            i += RUN - 1;
            continue;
        }
        if (has_data_file(image) && (entry & ENTRY_OFFSET) != 0 &&
            (entry & ENTRY_OFFSET) != (item->index * count + i) << image->cluster_bits) {
            blame(&(struct origin){TABLE_L2, item->offset, i, entry}, REFUSAL_DATA_FILE_OFFSET, entry & ENTRY_OFFSET,
                  0);
        }
        if ((entry | (step == 16 ? load64(table + i * step + 8) : 0)) == 0) {
            continue;
        }
        if (quick && (entry & ENTRY_OFFSET) != 0 && add_quickly(v, entry, item->weight, active, unusual_bits)) {
            continue;
        }
        const struct origin origin = {TABLE_L2, item->offset, i, entry};
        add_l2_entry(v, item->weight, &origin, active, step == 16 ? load64(table + i * step + 8) : 0);
    }
    return false;
}
