/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What both halves of the mutator use: mutate.c knows the format but for bitmaps, mutate_bitmaps.c those.
 */
#ifndef AIRLOCK_FUZZ_MUTATE_H
#define AIRLOCK_FUZZ_MUTATE_H

#include "input.h"

/* Where things lie, as far as they lie inside. */
struct layout {
    u8 *image;
    u64 length;
    u32 bits;
    u64 size; /* of a cluster */
    u32 order;
    u32 step; /* bytes from one L2 entry to the next */
    u64 l1;
    u64 l1_entries;
    u64 table; /* refcount table */
    u64 table_entries;
    u64 snapshots;
    u64 snapshot_count;
    u64 *random;
};

u64 number(const struct layout *at, u64 below);

bool inside(const struct layout *at, u64 offset, u64 bytes);

/* Numbers of the image; nothing happens, and 0 comes back, outside of it. */
u64 read64(const struct layout *at, u64 offset);
void write64(const struct layout *at, u64 offset, u64 value);

/* Values that may mean something. */
u64 some_offset(const struct layout *at);
u64 some_number(const struct layout *at);

/* A reference to all clusters of a range, for the refcounts that are set to them. */
void count_range(const struct layout *at, u64 offset, u64 bytes);

void change_bitmaps(const struct layout *at);
void count_bitmaps(const struct layout *at);

#endif
