/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/references.h"

#include "qcow2/derivation.h"

/* Flags of a counter while the references of one mapping are counted. */
#define MAPPED_TABLE (1u << 31)      /* an L2 table */
#define MAPPED_COMPRESSED (1u << 30) /* compressed clusters share it: more than one reference is in order */

/* After the refcount blocks are done a counter holds its cluster's refcount, cut to MANY; or this: */
#define MANY 2
#define FREED 3 /* refcount 0 since now, and not an L2 table */

#define L1_FREED (1ull << 0) /* a reserved bit, set in memory only: the L2 table is free now */

enum change {
    CHECK_UNIQUE,
    CHECK_ROOM,
    ADD,
    DROP
};

struct walk {
    struct qcow2 *image;
    struct refcounts *refcounts;
    struct verification *verification;
    struct counters own;
    struct counters *counters; /* those of the verification, if it has kept them */
    u64 clusters;              /* of the file */
    enum change change;
    bool all_states; /* set a state for every cluster, counted or not */
    u64 freed;
};

static void count_one(struct walk *walk, u64 cluster, u32 flag, const struct table_item *item, u64 index, u64 entry) {
    if (!in_window(walk->counters, cluster)) {
        return;
    }
    u32 counter = counter_get(walk->counters, cluster);
    bool twice = counter != 0 && (flag != MAPPED_COMPRESSED || (counter & MAPPED_COMPRESSED) == 0);
    if (twice && walk->change == CHECK_UNIQUE) {
        refuse(REFUSAL_SHARED_CLUSTER, .a = TABLE_L2, .b = item->offset, .c = index, .d = entry,
               .e = cluster << walk->image->cluster_bits, .f = counter & COUNT_MASK);
    }
    counter_set(walk->counters, cluster, (counter + 1) | flag);
}

static void count_compressed(struct walk *walk, const struct table_item *item, u64 index, u64 entry) {
    u64 offset;
    u64 length;
    compressed_range(walk->image, entry, &offset, &length);
    u64 last = (offset + length - 1) >> walk->image->cluster_bits;
    for (u64 cluster = offset >> walk->image->cluster_bits; cluster <= last; cluster++) {
        count_one(walk, cluster, MAPPED_COMPRESSED, item, index, entry);
    }
}

/* Eight entries in a row to which the mapping has not referred yet. */
static inline bool count_run(struct walk *walk, const u8 *entries, u64 entry) {
    u64 cluster = (entry & ENTRY_OFFSET) >> walk->image->cluster_bits;
    if ((entry & ENTRY_COMPRESSED) != 0 || (entry & ENTRY_OFFSET) == 0 || !run_in_window(walk->counters, cluster) ||
        !is_run(entries, entry, walk->image->cluster_size) || !none_set(counters_run(walk->counters, cluster))) {
        return false;
    }
    counters_set_run(walk->counters, cluster, run_of(1));
    return true;
}

static bool count_l2(void *context, const struct table_item *item, u8 *table) {
    struct walk *walk = context;
    struct qcow2 *image = walk->image;
    u32 step = l2_entry_size(image);
    bool quick = step == 8 && counters_have_runs(walk->counters);
    u64 count = l2_entries(image);
    for (u64 i = 0; i < count; i++) {
        u64 entry = load64(table + i * step);
        u64 offset = entry & ENTRY_OFFSET;
        if (quick && i + RUN <= count && count_run(walk, table + i * step, entry)) {
            i += RUN - 1;
            continue;
        }
        if ((entry & ENTRY_COMPRESSED) != 0) {
            count_compressed(walk, item, i, entry);
        } else if (offset != 0) {
            count_one(walk, offset >> image->cluster_bits, 0, item, i, entry);
        }
    }
    return false;
}

static void count_mapping(struct walk *walk, const struct mapping *mapping, const struct mapping *unlike) {
    for (u32 i = 0; i < mapping->entries; i++) {
        u64 offset = mapping->l1[i] & ENTRY_OFFSET;
        const struct table_item item = {.offset = mapping->offset, .index = i};
        if (offset != 0 && !mapping_same_table(mapping, unlike, i)) {
            count_one(walk, offset >> walk->image->cluster_bits, MAPPED_TABLE, &item, i, mapping->l1[i]);
        }
    }
    mapping_visit(walk->image, mapping, unlike, 0, count_l2, walk); /* a freed one has clusters in other windows */
}

/* One cluster's refcount by the mapping's references; returns the new one. */
static u64 change_one(struct walk *walk, u64 cluster, u64 refcount, u32 counter) {
    u64 references = counter & COUNT_MASK;
    if (walk->change == DROP) {
        if (refcount < references) {
            refuse(REFUSAL_REFCOUNT_TOO_LOW, .a = TABLE_DATA, .d = refcount, .e = cluster << walk->image->cluster_bits,
                   .f = references);
        }
        return refcount - references;
    }
    if (references > walk->refcounts->cache.max - refcount) {
        refuse(REFUSAL_REFCOUNT_OVERFLOW, .a = 1u << walk->image->refcount_order,
               .b = cluster << walk->image->cluster_bits);
    }
    return refcount + references;
}

/* Eight 16-bit refcounts that are far from overflowing. */
static inline bool add_run(const struct walk *walk, u64 cluster, u8 *block, bool *changed) {
    u16 *at = (u16 *)(void *)block;
    u16x8 refcounts = swap_run(load_run(at));
    u16x8 counts = counters_run(walk->counters, cluster) & run_of(NARROW_COUNT_MAX);
    if (!none_set(refcounts & run_of(0x8000))) {
        return false;
    }
    *changed |= !none_set(counts);
    store_run(at, swap_run(refcounts + counts));
    return true;
}

/* 16-bit refcounts and counters, nothing that may overflow or get free: the bulk of most images. */
static bool add_quickly(const struct walk *walk, u64 first, u64 end, u8 *block) {
    bool changed = false;
    for (u64 i = 0; i < end - first; i++) {
        if (i + RUN <= end - first && add_run(walk, first + i, block + 2 * i, &changed)) {
            i += RUN - 1;
            continue;
        }
        u32 references = counter_get(walk->counters, first + i) & COUNT_MASK;
        u32 sum = load16(block + 2 * i) + references;
        if (sum > UINT16_MAX) {
            refuse(REFUSAL_REFCOUNT_OVERFLOW, .a = 16, .b = (first + i) << walk->image->cluster_bits);
        }
        changed |= references != 0;
        store16(block + 2 * i, (u16)sum);
    }
    return changed;
}

/* Eight 16-bit refcounts in a row go down by equal counts; nothing gets free. */
static inline bool drop_run(struct walk *walk, u64 cluster, u8 *block, bool *changed) {
    u16x8 cells = counters_run(walk->counters, cluster);
    u16x8 refcounts = swap_run(load_run((const u16 *)(const void *)block));
    u16 refcount = refcounts[0];
    u16 count = cells[0];
    if (count > NARROW_COUNT_MAX || refcount <= count || !all_equal(cells, run_of(count)) ||
        !all_equal(refcounts, run_of(refcount))) {
        return false;
    }
    refcount = (u16)(refcount - count);
    *changed |= count != 0;
    store_run((u16 *)(void *)block, swap_run(run_of(refcount)));
    counters_set_run(walk->counters, cluster, run_of((u16)min64(refcount, MANY)));
    return true;
}

static bool change_block(void *context, const struct table_item *item, u8 *block) {
    struct walk *walk = context;
    u32 order = walk->image->refcount_order;
    u64 block_first = item->index << walk->refcounts->cache.block_bits;
    u64 first = max64(block_first, walk->counters->first);
    u64 end =
        min64(block_first + (1ull << walk->refcounts->cache.block_bits), walk->counters->first + walk->counters->count);
    bool changed = false;
    if (walk->change == ADD && order == 4 && counters_have_runs(walk->counters)) {
        return add_quickly(walk, first, end, block + 2 * (first - block_first));
    }
    bool quick = walk->change == DROP && order == 4 && counters_have_runs(walk->counters);
    for (u64 cluster = first; cluster < end; cluster++) {
        if (quick && cluster + RUN <= end && drop_run(walk, cluster, block + 2 * (cluster - block_first), &changed)) {
            cluster += RUN - 1;
            continue;
        }
        u32 counter = counter_get(walk->counters, cluster);
        if (counter == 0 && walk->change != DROP) {
            continue;
        }
        u64 refcount = block_get(block, order, cluster - block_first);
        bool becomes_free = false;
        if (counter != 0) {
            refcount = change_one(walk, cluster, refcount, counter);
            if (walk->change != CHECK_ROOM) {
                block_set(block, order, cluster - block_first, refcount);
                changed = true;
            }
            becomes_free = refcount == 0;
        }
        if (walk->change == DROP) {
            walk->freed += becomes_free;
            bool punch = becomes_free && (counter & MAPPED_TABLE) == 0; /* tables are still read: punch_tables() */
            counter_set(walk->counters, cluster, punch ? FREED : (u32)min64(refcount, MANY));
        }
    }
    return changed;
}

/* Does any of the clusters have a counter? */
static bool any_counted(const struct walk *walk, u64 first, u64 end) {
    return counters_next(walk->counters, max64(first, walk->counters->first), end, UINT32_MAX) != NOTHING;
}

/* All blocks of the window that have something to change. */
static void change_blocks(struct walk *walk) {
    struct refcounts *refcounts = walk->refcounts;
    struct table_batch batch;
    void *mark = heap_mark();
    tables_open(&batch, walk->image, change_block, walk);
    u64 end = walk->counters->first + walk->counters->count;
    for (u64 index = walk->counters->first >> refcounts->cache.block_bits; index << refcounts->cache.block_bits < end;
         index++) {
        u64 first = index << refcounts->cache.block_bits;
        u64 next = first + (1ull << refcounts->cache.block_bits);
        if (index < refcounts->cache.table_entries && refcounts->cache.table[index] != 0 &&
            (walk->all_states || any_counted(walk, first, next))) {
            tables_add(&batch, &(struct table_item){.offset = refcounts->cache.table[index], .index = index});
        }
    }
    tables_run(&batch);
    heap_release(mark);
}

/* Punches what change_blocks() has found free. */
static void punch_freed(const struct walk *walk) {
    u32 bits = walk->image->cluster_bits;
    u64 cluster = walk->freed > 0 ? walk->counters->first : NOTHING;
    while ((cluster = counters_next(walk->counters, cluster, NOTHING, COUNT_MASK)) != NOTHING) {
        if (counter_get(walk->counters, cluster) == FREED) {
            disk_queue_discard(&walk->image->disk, cluster << bits, walk->image->cluster_size);
        }
        cluster++;
    }
    disk_run();
}

static void walk_open(struct walk *walk, struct qcow2 *image, struct refcounts *refcounts,
                      struct verification *verification, enum change change) {
    *walk = (struct walk){.image = image, .refcounts = refcounts, .verification = verification, .change = change};
    walk->clusters = min64(clusters_of(image, image->disk.size), refcounts_end(refcounts));
    walk->counters = verification->has_counters ? &verification->counters : &walk->own;
    if (!verification->has_counters) {
        counters_open(&walk->own, walk->clusters, verification->width);
    }
}

/* The references of the mapping to the window that begins at `first`: from the verification, else counted. */
static void count_window(struct walk *walk, u64 first, const struct mapping *mapping, const struct mapping *unlike) {
    if (unlike == NULL && derive_references(walk->image, walk->verification, mapping, MAPPED_TABLE)) {
        walk->clusters = walk->counters->count;
        return;
    }
    walk->verification->is_counted = false;
    counters_window(walk->counters, first, walk->clusters);
    count_mapping(walk, mapping, unlike);
}

static void change_references(struct walk *walk, const struct mapping *mapping, const struct mapping *unlike) {
    for (u64 first = 0; first < walk->clusters; first += walk->counters->room) {
        count_window(walk, first, mapping, unlike);
        if (walk->change != CHECK_UNIQUE) {
            change_blocks(walk);
        }
    }
}

void references_check_unique(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification,
                             const struct mapping *mapping) {
    if (derive_unique(image, verification, mapping)) {
        return;
    }
    void *mark = heap_mark();
    struct walk walk;
    walk_open(&walk, image, refcounts, verification, CHECK_UNIQUE);
    change_references(&walk, mapping, NULL);
    heap_release(mark);
}

void references_check_room(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification,
                           const struct mapping *mapping) {
    if (verification->max_refcount <= refcounts->cache.max / 2) {
        return; /* no mapping has more references to a cluster than its refcount says */
    }
    void *mark = heap_mark();
    struct walk walk;
    walk_open(&walk, image, refcounts, verification, CHECK_ROOM);
    change_references(&walk, mapping, NULL);
    heap_release(mark);
}

void references_add(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification,
                    const struct mapping *mapping, const struct mapping *unlike) {
    void *mark = heap_mark();
    struct walk walk;
    walk_open(&walk, image, refcounts, verification, ADD);
    change_references(&walk, mapping, unlike);
    heap_release(mark);
}

/* Eight entries in a row whose clusters have equal counters. */
static inline bool refresh_run(const struct walk *walk, u8 *entries, u64 entry, bool *changed) {
    u64 cluster = (entry & ENTRY_OFFSET) >> walk->image->cluster_bits;
    if ((entry & ENTRY_COMPRESSED) != 0 || (entry & ENTRY_OFFSET) == 0 || !run_in_window(walk->counters, cluster) ||
        !is_run(entries, entry, walk->image->cluster_size)) {
        return false;
    }
    u16x8 cells = counters_run(walk->counters, cluster);
    if (!all_equal(cells, run_of(cells[0]))) {
        return false;
    }
    u64 wanted = (entry & ~ENTRY_COPIED) | (cells[0] == 1 ? ENTRY_COPIED : 0);
    for (u64 k = 0; k < RUN && wanted != entry; k++) {
        store64(entries + 8 * k, wanted + k * walk->image->cluster_size);
        *changed = true;
    }
    return true;
}

static bool refresh_l2(void *context, const struct table_item *item, u8 *table) {
    const struct walk *walk = context;
    const struct qcow2 *image = walk->image;
    u32 step = l2_entry_size(image);
    bool changed = false;
    (void)item;
    u64 count = l2_entries(image);
    bool quick = step == 8 && counters_have_runs(walk->counters);
    for (u64 i = 0; i < count; i++) {
        u64 old = load64(table + i * step);
        if (quick && i + RUN <= count && refresh_run(walk, table + i * step, old, &changed)) {
            i += RUN - 1;
            continue;
        }
        if (old == 0) {
            continue;
        }
        u64 entry = old & ~ENTRY_COPIED;
        u64 cluster = (entry & ENTRY_OFFSET) >> image->cluster_bits;
        if ((entry & ENTRY_COMPRESSED) == 0 && cluster != 0) {
            if (!in_window(walk->counters, cluster)) {
                continue;
            }
            entry |= counter_get(walk->counters, cluster) == 1 ? ENTRY_COPIED : 0;
        }
        if (entry != old) {
            store64(table + i * step, entry);
            changed = true;
        }
    }
    return changed;
}

/* Marks the L2 tables of this window that are free now, so that they are not touched any more. */
static void mark_freed_tables(const struct walk *walk, struct mapping *gone, const struct mapping *unlike) {
    for (u32 i = 0; i < gone->entries; i++) {
        u64 cluster = (gone->l1[i] & ENTRY_OFFSET) >> walk->image->cluster_bits;
        if (cluster != 0 && !mapping_same_table(gone, unlike, i) && in_window(walk->counters, cluster) &&
            counter_get(walk->counters, cluster) == 0) {
            gone->l1[i] |= L1_FREED;
        }
    }
}

static void punch_tables(struct qcow2 *image, const struct mapping *gone) {
    for (u32 i = 0; i < gone->entries; i++) {
        if ((gone->l1[i] & L1_FREED) != 0) {
            disk_queue_discard(&image->disk, gone->l1[i] & ENTRY_OFFSET, image->cluster_size);
        }
    }
    disk_run();
}

static bool refresh_l1(const struct walk *walk, struct mapping *mapping) {
    bool changed = false;
    for (u32 i = 0; i < mapping->entries; i++) {
        u64 cluster = (mapping->l1[i] & ENTRY_OFFSET) >> walk->image->cluster_bits;
        if (cluster == 0 || !in_window(walk->counters, cluster)) {
            continue;
        }
        u64 copied = counter_get(walk->counters, cluster) == 1 ? ENTRY_COPIED : 0;
        changed |= (mapping->l1[i] & ENTRY_COPIED) != copied;
        mapping->l1[i] = (mapping->l1[i] & ~ENTRY_COPIED) | copied;
    }
    return changed;
}

static bool drop(struct walk *walk, struct mapping *gone, const struct mapping *unlike, struct mapping *kept) {
    struct qcow2 *image = walk->image;
    bool changed = false;
    for (u64 first = 0; first < walk->clusters; first += walk->counters->room) {
        count_window(walk, first, gone, unlike);
        change_blocks(walk);
        disk_flush(&image->disk); /* a flag must not say COPIED before the refcount does */
        refcounts_discard(walk->refcounts);
        punch_freed(walk);
        mark_freed_tables(walk, gone, unlike);
        mapping_visit(walk->image, gone, unlike, L1_FREED, refresh_l2, walk);
        if (kept != NULL) {
            mapping_visit(walk->image, kept, gone, 0, refresh_l2, walk);
            changed |= refresh_l1(walk, kept);
        }
    }
    punch_tables(image, gone);
    return changed;
}

void references_drop(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification,
                     struct mapping *gone, const struct mapping *unlike, u64 *freed) {
    void *mark = heap_mark();
    struct walk walk;
    walk_open(&walk, image, refcounts, verification, DROP);
    drop(&walk, gone, unlike, NULL);
    *freed = walk.freed;
    heap_release(mark);
}

bool references_drop_and_refresh(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification,
                                 struct mapping *gone, struct mapping *kept, u64 *freed) {
    void *mark = heap_mark();
    struct walk walk;
    walk_open(&walk, image, refcounts, verification, DROP);
    walk.all_states = true;
    bool changed = drop(&walk, gone, NULL, kept);
    *freed = walk.freed;
    heap_release(mark);
    return changed;
}
