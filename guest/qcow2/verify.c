/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/verify.h"

#include "qcow2/runs.h"
#include "qcow2/snapshots.h"
#include "qcow2/tally.h"

#define L1_BATCH_BYTES (1 * MIB)

static void count_refcount_structures(struct verifier *v) {
    struct qcow2 *image = v->image;
    struct origin header = {TABLE_HEADER, 0, 0, 0};
    tally_exclusive(v, 0, image->cluster_size, &header);
    header.entry = image->refcount_table_offset;
    tally_exclusive(v, image->refcount_table_offset, image->refcount_table_clusters * image->cluster_size, &header);
    for (u32 i = 0; i < v->refcounts->cache.table_entries; i++) {
        u64 entry = v->refcounts->cache.table[i];
        const struct origin origin = {TABLE_REFCOUNT_TABLE, image->refcount_table_offset, i, entry};
        if ((entry & REFCOUNT_TABLE_RESERVED) != 0) {
            blame(&origin, REFUSAL_RESERVED_BITS, entry, 0);
        }
        if (offset_in_cluster(image, entry) != 0) {
            blame(&origin, REFUSAL_UNALIGNED, entry, 0);
        }
        tally_exclusive(v, entry, entry != 0 ? image->cluster_size : 0, &origin);
    }
}

static void count_other_metadata(struct verifier *v) {
    struct qcow2 *image = v->image;
    struct origin header = {TABLE_HEADER, 0, 0, image->l1_offset};
    tally_exclusive(v, image->l1_offset, 8ull * image->l1_entries, &header);
    header.entry = image->snapshots_offset;
    tally_exclusive(v, image->snapshots_offset, image->snapshots_size, &header);
    header.entry = image->crypto_offset;
    if (image->crypto_length > image->disk.size || image->crypto_offset > image->disk.size) {
        blame(&header, REFUSAL_OUTSIDE_FILE, image->crypto_offset, image->disk.size);
    }
    tally_exclusive(v, image->crypto_offset, image->crypto_length, &header);
    for (u32 i = 0; i < image->snapshot_count; i++) {
        const struct snapshot *snapshot = &image->snapshots[i];
        const struct origin origin = {TABLE_SNAPSHOT_TABLE, image->snapshots_offset, i, snapshot->l1_offset};
        if (offset_in_cluster(image, snapshot->l1_offset) != 0) {
            blame(&origin, REFUSAL_UNALIGNED, snapshot->l1_offset, 0);
        }
        if (snapshot->l1_offset > image->disk.size || 8ull * snapshot->l1_entries > L1_BYTES_MAX) {
            blame(&origin, REFUSAL_OUTSIDE_FILE, snapshot->l1_offset, image->disk.size);
        }
        tally_exclusive(v, snapshot->l1_offset, 8ull * snapshot->l1_entries, &origin);
    }
}

struct counting { /* of a bitmap's table */
    struct verifier *v;
    const struct bitmap *bitmap;
};

static bool count_bitmap_entry(void *context, u64 index, u64 entry) {
    const struct counting *counting = context;
    struct verifier *v = counting->v;
    const struct origin origin = {TABLE_BITMAP_TABLE, counting->bitmap->table_offset, index, entry};
    u64 offset = entry & ENTRY_OFFSET;
    if (!bitmap_entry_is_sound(entry, v->image->cluster_bits)) {
        blame(&origin, bitmap_entry_has_reserved_bits(entry) ? REFUSAL_RESERVED_BITS : REFUSAL_UNALIGNED, offset, 0);
    }
    tally_exclusive(v, offset, offset != 0 ? v->image->cluster_size : 0, &origin);
    return true;
}

static void count_bitmaps(struct verifier *v) {
    struct qcow2 *image = v->image;
    if (!bitmaps_present(image)) {
        return;
    }
    const struct bitmap_set *set = &image->bitmaps;
    const struct origin header = {TABLE_HEADER, 0, 0, set->directory_offset};
    tally_exclusive(v, set->directory_offset, set->directory_size, &header);
    void *mark = heap_mark();
    struct bitmap_tables tables;
    bitmap_tables_open(&tables, &image->disk, set->bitmaps, set->count, 0);
    for (u32 i = 0; i < set->count; i++) {
        const struct bitmap *bitmap = &set->bitmaps[i];
        const struct origin origin = {TABLE_BITMAP_DIRECTORY, set->directory_offset, i, bitmap->table_offset};
        if (bitmap->table_offset > image->disk.size) {
            blame(&origin, REFUSAL_OUTSIDE_FILE, bitmap->table_offset, image->disk.size);
        }
        tally_exclusive(v, bitmap->table_offset, 8ull * bitmap->table_entries, &origin);
        bitmap_tables_visit(&tables, i, count_bitmap_entry, &(struct counting){v, bitmap});
    }
    heap_release(mark);
}

/* A part of an L1 table, entries in host byte order. */
typedef void visit_l1(struct verifier *v, const struct origin *origin, const u64 *entries, u32 count, bool active);

static void visit_references_to_l2(struct verifier *v, const struct origin *at, const u64 *entries, u32 count,
                                   bool active) {
    for (u32 i = 0; i < count; i++) {
        const struct origin origin = {at->table, at->offset, at->index + i, entries[i]};
        u64 offset = entries[i] & ENTRY_OFFSET;
        if ((entries[i] & L1_RESERVED) != 0 || entries[i] == ENTRY_COPIED) {
            blame(&origin, REFUSAL_RESERVED_BITS, offset, 0);
        }
        if (offset_in_cluster(v->image, offset) != 0) {
            blame(&origin, REFUSAL_UNALIGNED, offset, 0);
        }
        if (offset != 0) {
            tally_table(v, offset >> v->image->cluster_bits, &origin, active);
        }
    }
}

/* With all counters in one window a table that several L1 tables name is read once, and counts as
 * often as it is named; else it is read for each of them. The active tables come last, so that their
 * entries meet complete counters. */
static void visit_l2_tables(struct verifier *v, const struct origin *at, const u64 *entries, u32 count, bool active) {
    for (u32 i = 0; i < count; i++) {
        u64 offset = entries[i] & ENTRY_OFFSET;
        u64 cluster = offset >> v->image->cluster_bits;
        struct table_item item = {.offset = offset, .index = at->index + i, .weight = 1, .owner = active};
        if (offset == 0) {
            continue;
        }
        if (v->visited != NULL) {
            u8 bit = (u8)(1u << (cluster % 8));
            u32 counter = counter_get(&v->counters, cluster);
            bool waits = !active && (counter & KIND) == KIND;
            if (waits || (v->visited[cluster / 8] & bit) != 0) {
                continue;
            }
            v->visited[cluster / 8] |= bit;
            item.weight = counter & COUNT_MASK;
        }
        tables_add(&v->l2, &item);
    }
}

/* The L1 tables of all snapshots, small ones many at a time. */
static void walk_snapshots(struct verifier *v, visit_l1 *visit) {
    struct qcow2 *image = v->image;
    void *mark = heap_mark();
    u64 room = L1_BATCH_BYTES / 8;
    u64 *memory = heap_take(8 * room);
    struct {
        u32 snapshot;
        u32 first;
        u32 count;
    } parts[DOORBELL_BATCH];
    u32 part_count = 0;
    u64 used = 0;
    for (u32 i = 0, first = 0; i < image->snapshot_count || part_count > 0;) {
        bool more = i < image->snapshot_count && part_count < DOORBELL_BATCH && used < room;
        if (more) {
            const struct snapshot *snapshot = &image->snapshots[i];
            u32 count = (u32)min64(room - used, snapshot->l1_entries - first);
            disk_queue_read(&image->disk, snapshot->l1_offset + 8ull * first, memory + used, 8ull * count);
            parts[part_count].snapshot = i;
            parts[part_count].first = first;
            parts[part_count++].count = count;
            used += count;
            first += count;
            if (first == snapshot->l1_entries) {
                i++;
                first = 0;
            }
            continue;
        }
        disk_run();
        u64 *at = memory;
        for (u32 n = 0; n < part_count; at += parts[n++].count) {
            for (u32 k = 0; k < parts[n].count; k++) {
                at[k] = swap64(at[k]);
            }
            u64 offset = image->snapshots[parts[n].snapshot].l1_offset;
            visit(v, &(struct origin){TABLE_SNAPSHOT_L1, offset, parts[n].first, 0}, at, parts[n].count, false);
        }
        part_count = 0;
        used = 0;
    }
    heap_release(mark);
}

static void walk_l1_tables(struct verifier *v, visit_l1 *visit) {
    struct qcow2 *image = v->image;
    walk_snapshots(v, visit);
    visit(v, &(struct origin){TABLE_L1, image->l1_offset, 0, 0}, image->l1, image->l1_entries, true);
}

/* A cluster of stale bitmaps: nobody has kept it for them, so it may be another's by now. */
static void count_stale_cluster(struct verifier *v, u64 cluster) {
    if (cluster >= v->counted) {
        v->result->stale_are_whole = false;
    } else if (in_window(&v->counters, cluster)) {
        bool own = counter_get(&v->counters, cluster) == 0 && refcounts_get(v->refcounts, cluster) == 1;
        v->result->stale_are_whole &= own;
        if (own) {
            counter_set(&v->counters, cluster, EXCLUSIVE | 1);
        }
    }
}

static void count_stale_run(struct verifier *v, u64 offset, u64 bytes) {
    const u32 bits = v->image->cluster_bits;
    if (bytes == 0) {
        return;
    }
    u64 last = (offset + bytes - 1) >> bits;
    v->result->stale_are_whole &= offset <= v->image->disk.size;
    for (u64 cluster = offset >> bits; cluster <= last && v->result->stale_are_whole; cluster++) {
        count_stale_cluster(v, cluster);
    }
}

static bool count_stale_entry(void *context, u64 index, u64 entry) {
    struct verifier *v = context;
    u64 offset = entry & ENTRY_OFFSET;
    (void)index;
    v->result->stale_are_whole &= bitmap_entry_is_sound(entry, v->image->cluster_bits);
    count_stale_run(v, offset, offset != 0 ? v->image->cluster_size : 0);
    return v->result->stale_are_whole;
}

/* Comes last: what everything else refers to is known. If the stale directory was not read, its clusters count as
 * leaked. */
static void count_stale(struct verifier *v) {
    const struct bitmap_set *set = &v->image->stale;
    if (!v->result->stale_are_whole) {
        return;
    }
    void *mark = heap_mark();
    struct bitmap_tables tables;
    bitmap_tables_open(&tables, &v->image->disk, set->bitmaps, set->count, 0);
    count_stale_run(v, set->directory_offset, set->directory_size);
    for (u32 i = 0; i < set->count && v->result->stale_are_whole; i++) {
        count_stale_run(v, set->bitmaps[i].table_offset, 8ull * set->bitmaps[i].table_entries);
        if (v->result->stale_are_whole) {
            bitmap_tables_visit(&tables, i, count_stale_entry, v);
        }
    }
    heap_release(mark);
}

static void count_references(struct verifier *v) {
    if (v->visited != NULL) {
        memset(v->visited, 0, divide_up(v->counted, 8));
    }
    count_refcount_structures(v);
    count_other_metadata(v);
    count_bitmaps(v);
    walk_l1_tables(v, visit_references_to_l2);
    walk_l1_tables(v, visit_l2_tables);
    tables_run(&v->l2);
    count_stale(v);
}

/* Counts once more, up to the first reference to the cluster, which names itself. */
static _Noreturn void hunt(struct verifier *v, u64 cluster, enum refusal code, u64 refcount) {
    u32 references = counter_get(&v->counters, cluster) & COUNT_MASK;
    v->hunted = cluster;
    v->hunted_for = code;
    v->hunted_refcount = refcount;
    v->hunted_references = references;
    counters_window(&v->counters, v->counters.first, v->counted);
    count_references(v);
    refuse(code, .a = TABLE_DATA, .d = refcount, .e = cluster << v->image->cluster_bits, .f = references);
}

static void compare_one(struct verifier *v, u64 cluster, u64 refcount) {
    u32 counter = counter_get(&v->counters, cluster);
    u64 references = counter & COUNT_MASK;
    if (refcount < references && !v->counters.overflowed) {
        hunt(v, cluster, REFUSAL_REFCOUNT_TOO_LOW, refcount);
    }
    if ((counter & ACTIVE_SEEN) == CLEAR_SEEN && refcount == 1) {
        hunt(v, cluster, REFUSAL_COPIED_FLAG, refcount);
    }
    v->result->leaked_clusters += refcount > references;
    if (refcount == 1 && references == 0 && v->image->orphans != NULL && cluster < v->clusters) {
        v->image->orphans[cluster / 64] |= 1ull << (cluster % 64);
    }
}

/* Eight 16-bit refcounts that are what was counted, none of them 0 and all the same. */
static inline bool compare_run(const struct verifier *v, u64 cluster, const u8 *block, u64 *max) {
    u16x8 refcounts = swap_run(load_run((const u16 *)(const void *)block));
    u16x8 cells = load_run(v->counters.narrow_cells + (cluster - v->counters.first));
    const u16 clear_seen = (u16)(CLEAR_SEEN >> FLAGS_SHIFT << NARROW_SHIFT);
    u16 refcount = refcounts[0];
    bool settled = refcount > 1 || none_set(cells & run_of(clear_seen)); /* the flag matters at refcount 1 only */
    if (refcount == 0 || !settled || !all_equal(cells & run_of(NARROW_COUNT), refcounts) ||
        !all_equal(refcounts, run_of(refcount))) {
        return false;
    }
    *max = max64(*max, refcount);
    return true;
}

/* The refcounts of the clusters from `first` to `end`, which one block counts; NULL: there is none. */
static void compare_block(struct verifier *v, u64 first, u64 end, const u8 *block, u64 block_first) {
    struct verification *result = v->result;
    u32 order = v->image->refcount_order;
    bool quick = order == 4 && !v->counters.wide;
    u64 max = result->max_refcount;
    for (u64 cluster = first; cluster < end; cluster++) {
        if (quick && block != NULL && cluster + RUN <= end &&
            compare_run(v, cluster, block + 2 * (cluster - block_first), &max)) {
            cluster += RUN - 1;
            continue;
        }
        u64 refcount = block != NULL ? block_get(block, quick ? 4 : order, cluster - block_first) : 0;
        max = max64(max, refcount);
        if (refcount == 0 && result->first_free == NOTHING) {
            result->first_free = cluster;
        }
        if (quick) {
            u32 cell = v->counters.narrow_cells[cluster - v->counters.first];
            const u32 seen = ACTIVE_SEEN >> FLAGS_SHIFT << NARROW_SHIFT;
            const u32 clear_seen = CLEAR_SEEN >> FLAGS_SHIFT << NARROW_SHIFT;
            if ((cell & NARROW_COUNT) == refcount && (cell & seen) != clear_seen) {
                continue;
            }
        }
        compare_one(v, cluster, refcount);
    }
    result->max_refcount = max;
}

static bool visit_block(void *context, const struct table_item *item, u8 *block) {
    struct verifier *v = context;
    u64 first = item->index << v->refcounts->cache.block_bits;
    u64 end = first + (1ull << v->refcounts->cache.block_bits);
    u64 window_end = v->counters.first + v->counters.count;
    compare_block(v, max64(first, v->counters.first), min64(end, window_end), block, first);
    if (window_end < v->counted) {
        return false;
    }
    for (u64 cluster = max64(first, v->counted); cluster < end; cluster++) { /* behind the end: nothing refers there */
        u64 refcount = block_get(block, v->image->refcount_order, cluster - first);
        v->result->leaked_clusters += refcount != 0;
        if (refcount == 0 && v->result->first_free == NOTHING) {
            v->result->first_free = cluster;
        }
    }
    return false;
}

/* All blocks that count a cluster of the window; in the last window those behind the file as well. */
static void compare(struct verifier *v) {
    struct refcounts *refcounts = v->refcounts;
    struct table_batch batch;
    void *mark = heap_mark();
    tables_open(&batch, v->image, visit_block, v);
    u64 window_end = v->counters.first + v->counters.count;
    u64 end = window_end == v->clusters ? max64(refcounts_end(refcounts), window_end) : window_end;
    for (u64 at = v->counters.first; at < end;) {
        u64 index = at >> refcounts->cache.block_bits;
        u64 next = (index + 1) << refcounts->cache.block_bits;
        if (index < refcounts->cache.table_entries && refcounts->cache.table[index] != 0) {
            tables_add(&batch, &(struct table_item){.offset = refcounts->cache.table[index], .index = index});
        } else {
            tables_run(&batch);
            compare_block(v, at, min64(next, max64(at, window_end)), NULL, at);
            if (at >= window_end && v->result->first_free == NOTHING) {
                v->result->first_free = at;
            }
        }
        at = next;
    }
    tables_run(&batch);
    heap_release(mark);
}

static bool pass(struct verifier *v, bool wide) {
    void *mark = heap_mark();
    *v->result = (struct verification){
        .first_free = NOTHING, .wide_counters = wide, .stale_are_whole = v->image->stale.is_whole};
    tables_open(&v->l2, v->image, tally_l2, v);
    v->visited = NULL;
    void *before_visited = heap_mark();
    u8 *visited = heap_left() > divide_up(v->counted, 8) + 64 * MIB ? heap_take(divide_up(v->counted, 8)) : NULL;
    counters_open(&v->counters, v->counted, wide);
    if (counters_hold_all(&v->counters, v->counted)) {
        v->visited = visited;
    } else {
        heap_release(before_visited);
        counters_open(&v->counters, v->counted, wide);
    }
    for (u64 first = 0; first < v->counted; first += v->counters.room) {
        counters_window(&v->counters, first, v->counted);
        count_references(v);
        compare(v);
    }
    bool enough = !v->counters.overflowed;
    heap_release(mark);
    return enough;
}

void verify(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification) {
    void *mark = heap_mark();
    struct verifier v = {.image = image, .refcounts = refcounts, .result = verification, .hunted = NOTHING};
    v.clusters = clusters_of(image, image->disk.size);
    v.counted = max64(min64(v.clusters, refcounts_end(refcounts)), 1); /* the header is looked at in any case */
    const bool reads_bitmaps = bitmaps_present(image) && image->bitmaps.directory == NULL;
    if (reads_bitmaps) {
        bitmaps_read(image);
    }
    if (!pass(&v, false)) {
        pass(&v, true);
    }
    if (image->stale.is_whole && !verification->stale_are_whole) {
        image->stale.is_whole = false; /* none of them counts, not even those that could have been theirs */
        pass(&v, verification->wide_counters);
    }
    if (verification->first_free == NOTHING) {
        verification->first_free = refcounts_end(refcounts);
    }
    refcounts->cursor = verification->first_free;
    struct result_header *result = result_memory();
    result->leaked_clusters = verification->leaked_clusters;
    heap_release(mark);
    if (reads_bitmaps) {
        image->bitmaps.directory = NULL;
        image->bitmaps.bitmaps = NULL;
        image->bitmaps.is_whole = false;
    }
}
