/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Eight at a time. Clusters that were written in a row lie in a row, so their L2 entries count up by
 * one cluster with equal flags, and their counters and refcounts are neighbours.
 */
#ifndef AIRLOCK_QCOW2_RUNS_H
#define AIRLOCK_QCOW2_RUNS_H

#include "start/guest.h"

#define RUN 8

typedef u16 u16x8 __attribute__((vector_size(16), aligned(2), may_alias));
typedef u8 u8x8 __attribute__((vector_size(8), aligned(1), may_alias));
typedef u64 u64x2 __attribute__((vector_size(16), may_alias));

/* Do the eight 8-byte entries at `entries`, the first of which is `first`, count up by `step`? */
static inline bool is_run(const u8 *entries, u64 first, u64 step) {
    u64 differences = 0;
    for (u64 i = 1; i < RUN; i++) {
        differences |= load64(entries + 8 * i) ^ (first + i * step);
    }
    return differences == 0;
}

static inline bool none_set(u16x8 values) {
    const u64x2 halves = (u64x2)values;
    return (halves[0] | halves[1]) == 0;
}

static inline bool all_equal(u16x8 a, u16x8 b) { return none_set(a ^ b); }

static inline u16x8 load_run(const u16 *at) { return *(const u16x8 *)at; }

static inline void store_run(u16 *at, u16x8 values) { *(u16x8 *)at = values; }

/* Eight bytes, and eight numbers that are bytes. */
static inline u16x8 widen_run(const u8 *at) { return __builtin_convertvector(*(const u8x8 *)(const void *)at, u16x8); }

static inline void narrow_run(u8 *at, u16x8 values) { *(u8x8 *)(void *)at = __builtin_convertvector(values, u8x8); }

/* Eight big-endian numbers. */
static inline u16x8 swap_run(u16x8 values) { return values << 8 | values >> 8; }

static inline u16x8 run_of(u16 value) { return (u16x8){value, value, value, value, value, value, value, value}; }

#endif
