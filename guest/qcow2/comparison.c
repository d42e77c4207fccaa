/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/comparison.h"

#include "qcow2/runs.h"

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

static void compare_one(struct verifier *v, u64 cluster, u32 counter, u64 refcount) {
    u64 references = counter & COUNT_MASK;
    if (refcount < references) {
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

/* Eight 16-bit refcounts that are what was counted, and all the same. */
static inline bool compare_run(const struct verifier *v, u64 cluster, const u8 *block, u64 *max) {
    u16x8 refcounts = swap_run(load_run((const u16 *)(const void *)block));
    u16x8 cells = counters_run(&v->counters, cluster);
    const u16 clear_seen = (u16)(CLEAR_SEEN >> FLAGS_SHIFT << NARROW_SHIFT);
    u16 refcount = refcounts[0];
    bool settled = refcount > 1 || none_set(cells & run_of(clear_seen)); /* the flag matters at refcount 1 only */
    if ((refcount == 0 && v->result->first_free == NOTHING) || !settled ||
        !all_equal(cells & run_of(NARROW_COUNT_MAX), refcounts) || !all_equal(refcounts, run_of(refcount))) {
        return false;
    }
    *max = max64(*max, refcount);
    return true;
}

/* The refcounts of the clusters from `first` to `end`, which one block counts. */
static void compare_block(struct verifier *v, u64 first, u64 end, const u8 *block, u64 block_first) {
    struct verification *result = v->result;
    u32 order = v->image->refcount_order;
    bool quick = order == 4 && counters_have_runs(&v->counters);
    u64 max = result->max_refcount;
    for (u64 cluster = first; cluster < end; cluster++) {
        if (quick && cluster + RUN <= end && compare_run(v, cluster, block + 2 * (cluster - block_first), &max)) {
            cluster += RUN - 1;
            continue;
        }
        u64 refcount = block_get(block, quick ? 4 : order, cluster - block_first);
        max = max64(max, refcount);
        if (refcount == 0 && result->first_free == NOTHING) {
            result->first_free = cluster;
        }
        u32 counter = counter_get(&v->counters, cluster);
        if ((counter & COUNT_MASK) != refcount || (counter & ACTIVE_SEEN) == CLEAR_SEEN) {
            compare_one(v, cluster, counter, refcount);
        }
    }
    result->max_refcount = max;
}

/* The same where no block counts: nothing may refer there. */
static void compare_nothing(struct verifier *v, u64 first, u64 end) {
    if (first < end && v->result->first_free == NOTHING) {
        v->result->first_free = first;
    }
    for (u64 cluster = first; cluster < end;) {
        if (!counters_touched(&v->counters, cluster)) {
            cluster = chunk_end(&v->counters, cluster);
            continue;
        }
        u32 counter = counter_get(&v->counters, cluster);
        if (counter != 0) {
            compare_one(v, cluster, counter, 0);
        }
        cluster++;
    }
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

void compare(struct verifier *v) {
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
            compare_nothing(v, at, min64(next, max64(at, window_end)));
            if (at >= window_end && v->result->first_free == NOTHING) {
                v->result->first_free = at;
            }
        }
        at = next;
    }
    tables_run(&batch);
    heap_release(mark);
}
