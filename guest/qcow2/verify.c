/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/verify.h"

#include "qcow2/comparison.h"
#include "qcow2/references_work.h"
#include "qcow2/snapshots.h"
#include "qcow2/tally.h"

#define L1_BATCH_BYTES (1 * MIB)
#define LEFT_TO_OPERATION (48 * MIB)
#define SPARE_COUNTERS 131072 /* for clusters that the operation adds: tables mostly */

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
            v->named++;
            tally_table(v, offset >> v->image->cluster_bits, &origin, active);
        }
    }
}

/* Where the counters are not all in one window, or an external data file wants to know the places of its entries: each
 * table is read for each L1 table that names it. The active one comes last, so that its entries meet complete counters.
 */
static void visit_l2_tables(struct verifier *v, const struct origin *at, const u64 *entries, u32 count, bool active) {
    for (u32 i = 0; i < count && !v->counters.overflowed; i++) {
        u64 offset = entries[i] & ENTRY_OFFSET;
        if (offset != 0) {
            tables_add(&v->l2,
                       &(struct table_item){.offset = offset, .index = at->index + i, .weight = 1, .owner = active});
        }
    }
}

/* The counters know the tables: each is read once, in the order in which they lie, and counts as often as it is named.
 * Those of the active mapping come last here, too. */
static void sweep_l2_tables(struct verifier *v, bool active) {
    struct counters *counters = &v->counters;
    u64 cluster = 0;
    while (!counters->overflowed && (cluster = counters_next(counters, cluster, v->counted, TABLE)) != NOTHING) {
        u32 counter = counter_get(counters, cluster);
        if (((counter & KIND) == KIND) == active) {
            tables_add(&v->l2, &(struct table_item){.offset = cluster << v->image->cluster_bits,
                                                    .weight = counter & COUNT_MASK,
                                                    .owner = active});
        }
        cluster++;
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

/* Now that it is known how many tables there are. whole: each is read once. */
static void tell_work(struct verifier *v, bool whole) {
    const struct mapping active = {.l1 = v->image->l1, .entries = v->image->l1_entries};
    const u64 cluster = v->image->cluster_size;
    const u64 tables = (whole ? v->tables : v->named) * cluster;
    const u64 windows = divide_up(v->counted, v->counters.room);
    struct work_kinds kinds = {.tables = work_of_visiting(v->image, &active, NULL),
                               .blocks = refcounts_blocks(v->refcounts) * cluster};
    kinds.others = min64(tables - min64(tables, kinds.tables), kinds.tables);
    if (v->counters.first == 0 && v->hunted == NOTHING) {
        work_verify(&v->image->work, (whole ? 1 : windows) * tables + kinds.blocks, &kinds);
    }
}

void count_references(struct verifier *v) {
    v->named = v->tables = 0;
    count_refcount_structures(v);
    count_other_metadata(v);
    count_bitmaps(v);
    walk_l1_tables(v, visit_references_to_l2);
    const bool whole = counters_hold_all(&v->counters, v->counted) && !has_data_file(v->image);
    tell_work(v, whole);
    if (whole) {
        sweep_l2_tables(v, false);
        sweep_l2_tables(v, true);
    } else {
        walk_l1_tables(v, visit_l2_tables);
    }
    tables_run(&v->l2);
    count_stale(v);
}

/* Before anything is written: is there the memory with which all tables are read once, and not for each window? Who
 * asks may do it only once, and thinks of the other images as well. */
static void ask_for_memory(const struct verifier *v) {
    const struct call_header *call = call_memory();
    struct result_header *result = result_memory();
    u64 clusters = v->counted;
    const u64 short_of = COUNTERS_BYTES_MORE - heap_left();
    if (call->may_ask == 0 || result->modified != 0 || (int64_t)(clusters + short_of) <= 0) {
        return;
    }
    for (u32 i = 0; i < call->disk_count; i++) {
        clusters = max64(clusters, call->disk_size[i] >> v->image->cluster_bits);
    }
    result->memory_wanted = MEMORY_SIZE + short_of + clusters + LEFT_TO_OPERATION + 16ull * v->image->l1_entries;
    refuse(REFUSAL_NO_MEMORY, .a = result->memory_wanted);
}

/* False: the counters were too small for this image. Otherwise they stay on the heap. */
static bool pass(struct verifier *v, u32 width) {
    void *mark = heap_mark();
    *v->result =
        (struct verification){.first_free = NOTHING, .width = width, .stale_are_whole = v->image->stale.is_whole};
    counters_open(&v->counters, v->counted + SPARE_COUNTERS, width);
    void *above = heap_mark();
    tables_open(&v->l2, v->image, tally_l2, v);
    for (u64 first = 0; first < v->counted && !v->counters.overflowed; first += v->counters.room) {
        counters_window(&v->counters, first, v->counted);
        count_references(v);
        if (!v->counters.overflowed) {
            compare(v);
        }
        v->result->windows++;
    }
    heap_release(v->counters.overflowed ? mark : above);
    return !v->counters.overflowed;
}

/* The counters stay for what the operation counts later, if that leaves memory for all the rest of it. */
static void keep_counters(struct verifier *v, void *mark) {
    const u64 left = heap_left() + (u64)((u8 *)heap_mark() - (u8 *)mark);
    if (!counters_hold_all(&v->counters, v->counted) ||
        left <= v->counters.memory + LEFT_TO_OPERATION + 16ull * v->image->l1_entries) {
        heap_release(mark);
        return;
    }
    counters_keep(&v->counters, mark);
    v->result->counters = v->counters;
    v->result->has_counters = true;
    v->result->is_counted = true;
}

void verify(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification, bool keeps_counters) {
    void *mark = heap_mark();
    struct verifier v = {.image = image, .refcounts = refcounts, .result = verification, .hunted = NOTHING};
    v.clusters = clusters_of(image, image->disk.size);
    v.counted = max64(min64(v.clusters, refcounts_end(refcounts)), 1); /* the header is looked at in any case */
    const bool reads_bitmaps = bitmaps_present(image) && image->bitmaps.directory == NULL;
    if (reads_bitmaps) {
        bitmaps_read(image);
    }
    ask_for_memory(&v);
    void *before = heap_mark();
    u32 width =
        counters_width(1 + min64(image->snapshot_count, NARROW_COUNT_MAX - 1)); /* more are seldom shared by all */
    while (!pass(&v, width)) {
        width *= 2;
    }
    if (image->stale.is_whole && !verification->stale_are_whole) {
        image->stale.is_whole = false; /* none of them counts, not even those that could have been theirs */
        heap_release(before);
        pass(&v, width);
    }
    if (verification->first_free == NOTHING) {
        verification->first_free = refcounts_end(refcounts);
    }
    verification->snapshots = image->snapshot_count;
    refcounts->cursor = verification->first_free;
    struct result_header *result = result_memory();
    result->leaked_clusters = verification->leaked_clusters;
    result->windows = (u32)max64(result->windows, verification->windows);
    if (keeps_counters) {
        keep_counters(&v, mark);
    } else {
        heap_release(mark);
    }
    if (reads_bitmaps) {
        image->bitmaps.directory = NULL;
        image->bitmaps.bitmaps = NULL;
        image->bitmaps.is_whole = false;
    }
}
