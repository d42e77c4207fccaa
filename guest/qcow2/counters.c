/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/counters.h"

#ifndef CELLS_BYTES_MORE /* tests make it small, and let no byte be had for a cluster */
#define CELLS_BYTES_MORE (32 * MIB)
#define CELLS_A_CLUSTER 1
#endif
#define LEFT_FOR_OTHERS (24 * MIB)

static u64 chunks(u64 cells) { return divide_up(cells, 1ull << CHUNK_BITS); }

u32 counters_width(u64 count) { return count <= BYTE_COUNT ? 1 : count <= NARROW_COUNT ? 2 : 4; }

void counters_open(struct counters *counters, u64 clusters, u32 width) {
    *counters = (struct counters){.width = width};
    counters->limit = width == 1 ? BYTE_COUNT : width == 2 ? NARROW_COUNT : COUNT_MASK;
    u64 left = heap_left() > 2 * LEFT_FOR_OTHERS ? heap_left() - LEFT_FOR_OTHERS : heap_left() / 2;
    u64 bytes = min64(left, CELLS_BYTES_MORE + CELLS_A_CLUSTER * clusters);
    counters->room = min64(max64(clusters, 1), bytes / width);
    u64 cells = round_up(counters->room * width, 8);
    counters->memory = cells + chunks(counters->room);
    counters->cells = heap_take_zeroed(counters->memory);
    counters->touched = counters->cells + cells;
}

void counters_window(struct counters *counters, u64 first, u64 clusters) {
    for (u64 chunk = 0; chunk < chunks(counters->count); chunk++) {
        if (counters->touched[chunk] != 0) {
            u64 start = chunk << CHUNK_BITS;
            u64 end = min64(start + (1ull << CHUNK_BITS), counters->count);
            memset(counters->cells + start * counters->width, 0, (end - start) * counters->width);
            counters->touched[chunk] = 0;
        }
    }
    counters->first = first;
    counters->count = min64(counters->room, clusters - first);
}

void counters_keep(struct counters *counters, void *mark) {
    const u64 cells = (u64)(counters->touched - counters->cells);
    counters->cells = heap_keep(mark, counters->cells, counters->memory);
    counters->touched = counters->cells + cells;
}

static bool run_has(const struct counters *counters, u64 cluster, u32 bits) {
    const u16 wanted = (u16)(bits >> FLAGS_SHIFT << NARROW_SHIFT | (bits & NARROW_COUNT_MAX));
    return !none_set(counters_run(counters, cluster) & run_of(wanted));
}

u64 counters_next(const struct counters *counters, u64 cluster, u64 end, u32 bits) {
    end = min64(end, counters->first + counters->count);
    while (cluster < end) {
        if (!counters_touched(counters, cluster)) {
            cluster = chunk_end(counters, cluster);
        } else if (counters_have_runs(counters) && run_in_window(counters, cluster) &&
                   !run_has(counters, cluster, bits)) {
            cluster += RUN;
        } else if ((counter_get(counters, cluster) & bits) != 0) {
            return cluster;
        } else {
            cluster++;
        }
    }
    return NOTHING;
}
