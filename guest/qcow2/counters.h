/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * One counter a host cluster, for a window of the file. An image whose clusters do not all fit is
 * worked through window by window.
 *
 * A counter is 16 bits wide with four flags on top; an image that refers to one cluster more than
 * 4095 times gets 32 bits. In code it is always the 32-bit form.
 */
#ifndef AIRLOCK_QCOW2_COUNTERS_H
#define AIRLOCK_QCOW2_COUNTERS_H

#include "start/guest.h"

#define COUNT_MASK 0x0fffffffu
#define FLAGS_SHIFT 28
#ifndef NARROW_COUNT /* tests make it small */
#define NARROW_COUNT 0x0fffu
#endif
#define NARROW_SHIFT 12

struct counters {
    u64 first; /* cluster index */
    u64 count; /* clusters in the window */
    u64 room;
    bool wide;
    bool overflowed; /* a narrow counter was too small: start again with wide ones */
    u16 *narrow_cells;
    u32 *wide_cells;
};

/* Room for `clusters` counters, or as many as memory allows. */
void counters_open(struct counters *counters, u64 clusters, bool wide);

/* The window that begins at `first`, of the `clusters` of a file; all counters zero. */
void counters_window(struct counters *counters, u64 first, u64 clusters);

static inline bool counters_hold_all(const struct counters *counters, u64 clusters) {
    return counters->room >= clusters;
}

static inline bool in_window(const struct counters *counters, u64 cluster) {
    return cluster - counters->first < counters->count;
}

static inline u32 counter_get(const struct counters *counters, u64 cluster) {
    u64 i = cluster - counters->first;
    if (counters->wide) {
        return counters->wide_cells[i];
    }
    u32 cell = counters->narrow_cells[i];
    return (cell >> NARROW_SHIFT) << FLAGS_SHIFT | (cell & NARROW_COUNT);
}

static inline void counter_set(struct counters *counters, u64 cluster, u32 value) {
    u64 i = cluster - counters->first;
    if (counters->wide) {
        counters->wide_cells[i] = value;
        return;
    }
    u32 count = value & COUNT_MASK;
    if (count > NARROW_COUNT) {
        counters->overflowed = true;
        count = NARROW_COUNT;
    }
    counters->narrow_cells[i] = (u16)((value >> FLAGS_SHIFT) << NARROW_SHIFT | count);
}

#endif
