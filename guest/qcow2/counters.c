/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/counters.h"

#ifndef CELLS_BYTES_MAX /* tests make it small */
#define CELLS_BYTES_MAX (64 * MIB)
#endif
#define LEFT_FOR_OTHERS (24 * MIB)

void counters_open(struct counters *counters, u64 clusters, bool wide) {
    *counters = (struct counters){.wide = wide};
    u64 cell = wide ? sizeof(u32) : sizeof(u16);
    u64 left = heap_left() > 2 * LEFT_FOR_OTHERS ? heap_left() - LEFT_FOR_OTHERS : heap_left() / 2;
    counters->room = min64(max64(clusters, 1), min64(CELLS_BYTES_MAX, left) / cell);
    void *cells = heap_take(counters->room * cell);
    counters->narrow_cells = cells;
    counters->wide_cells = cells;
}

void counters_window(struct counters *counters, u64 first, u64 clusters) {
    counters->first = first;
    counters->count = min64(counters->room, clusters - first);
    memset(counters->narrow_cells, 0, counters->count * (counters->wide ? sizeof(u32) : sizeof(u16)));
}
