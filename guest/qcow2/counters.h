/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * One counter a host cluster, for a window of the file. An image whose clusters do not all fit is
 * worked through window by window.
 *
 * A counter has four flags on top, and 8, 16 or 32 bits with them. In code it is always the 32-bit form. Most images
 * need no more than 8: a count that is too large for them is where the next width begins (counters_wider()).
 *
 * Nothing here touches cells that were never set: where an image has nothing, it takes neither memory nor time.
 */
#ifndef AIRLOCK_QCOW2_COUNTERS_H
#define AIRLOCK_QCOW2_COUNTERS_H

#include "qcow2/runs.h"

#define COUNT_MASK 0x0fffffffu
#define FLAGS_SHIFT 28
#ifndef BYTE_COUNT /* tests make it small */
#define BYTE_COUNT 0xfu
#endif
#ifndef NARROW_COUNT /* tests make it small */
#define NARROW_COUNT 0xfffu
#endif
#define BYTE_SHIFT 4
#define NARROW_SHIFT 12
#define NARROW_COUNT_MAX 0xfffu /* the part of a cell that is no flag */
#define CHUNK_BITS 15           /* log2 of cells */

#define NOTHING UINT64_MAX

struct counters {
    u64 first; /* cluster index */
    u64 count; /* clusters in the window */
    u64 room;
    u32 width;       /* bytes of a cell: 1, 2 or 4 */
    u32 limit;       /* the largest count that a cell holds */
    bool overflowed; /* a counter was too small: start again with wider ones */
    u8 *cells;
    u8 *touched; /* for each 1 << CHUNK_BITS cells of the window: not 0 where one may be set */
    u64 memory;  /* bytes of both, from `cells` on */
};

/* Bytes of memory, and one for each cluster, with which counters_open() gets all that it ever takes. */
#define COUNTERS_BYTES_MORE (57 * MIB)

/* Room for `clusters` counters, or as many as memory allows. width: bytes. */
void counters_open(struct counters *counters, u64 clusters, u32 width);

/* The width that is enough for counts up to this one. */
u32 counters_width(u64 count);

/* The window that begins at `first`, of the `clusters` of a file; all counters zero. */
void counters_window(struct counters *counters, u64 first, u64 clusters);

/* They stay as they are, on a heap that is given back to the mark, which was taken before them. */
void counters_keep(struct counters *counters, void *mark);

/* The first cluster of the window, from `cluster` on and before `end`, in whose counter one of these bits is set;
 * NOTHING: there is none. */
u64 counters_next(const struct counters *counters, u64 cluster, u64 end, u32 bits);

static inline bool counters_hold_all(const struct counters *counters, u64 clusters) {
    return counters->room >= clusters;
}

static inline bool in_window(const struct counters *counters, u64 cluster) {
    return cluster - counters->first < counters->count;
}

/* May a counter be set from here, a cluster of the window, to the end of its chunk? */
static inline bool counters_touched(const struct counters *counters, u64 cluster) {
    return counters->touched[(cluster - counters->first) >> CHUNK_BITS] != 0;
}

/* The first cluster of the next chunk, or the end of the window. */
static inline u64 chunk_end(const struct counters *counters, u64 cluster) {
    u64 next = (((cluster - counters->first) >> CHUNK_BITS) + 1) << CHUNK_BITS;
    return counters->first + min64(next, counters->count);
}

static inline u32 counter_get(const struct counters *counters, u64 cluster) {
    u64 i = cluster - counters->first;
    u32 cell;
    switch (counters->width) {
    case 1:
        cell = counters->cells[i];
        return (cell >> BYTE_SHIFT) << FLAGS_SHIFT | (cell & 0xf);
    case 2:
        cell = ((const u16 *)(const void *)counters->cells)[i];
        return (cell >> NARROW_SHIFT) << FLAGS_SHIFT | (cell & NARROW_COUNT_MAX);
    default:
        return ((const u32 *)(const void *)counters->cells)[i];
    }
}

static inline void counter_set(struct counters *counters, u64 cluster, u32 value) {
    u64 i = cluster - counters->first;
    u32 count = value & COUNT_MASK;
    u32 flags = value >> FLAGS_SHIFT;
    counters->touched[i >> CHUNK_BITS] = 1;
    if (count > counters->limit) {
        counters->overflowed = true;
        count = counters->limit;
    }
    switch (counters->width) {
    case 1:
        counters->cells[i] = (u8)(flags << BYTE_SHIFT | count);
        return;
    case 2:
        ((u16 *)(void *)counters->cells)[i] = (u16)(flags << NARROW_SHIFT | count);
        return;
    default:
        ((u32 *)(void *)counters->cells)[i] = value;
    }
}

/* Runs of RUN cells, of 8 or 16 bits, have the form of 16 bits in code. */
static inline bool counters_have_runs(const struct counters *counters) { return counters->width <= 2; }

static inline bool run_in_window(const struct counters *counters, u64 cluster) {
    return cluster - counters->first < counters->count && counters->count - (cluster - counters->first) >= RUN;
}

static inline u16x8 counters_run(const struct counters *counters, u64 cluster) {
    u64 i = cluster - counters->first;
    if (counters->width == 1) {
        u16x8 cells = widen_run(counters->cells + i);
        return (cells & run_of(0xf0)) << 8 | (cells & run_of(0xf));
    }
    return load_run((const u16 *)(const void *)counters->cells + i);
}

/* No count may be above the limit. */
static inline void counters_set_run(struct counters *counters, u64 cluster, u16x8 values) {
    u64 i = cluster - counters->first;
    counters->touched[i >> CHUNK_BITS] = 1;
    counters->touched[(i + RUN - 1) >> CHUNK_BITS] = 1;
    if (counters->width == 1) {
        narrow_run(counters->cells + i, (values >> 8 & run_of(0xf0)) | (values & run_of(0xf)));
    } else {
        store_run((u16 *)(void *)counters->cells + i, values);
    }
}

#endif
