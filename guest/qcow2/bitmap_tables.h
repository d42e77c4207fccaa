/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The tables of bitmaps. An image may have tens of thousands of them, of a few bytes each: those of many are read
 * together.
 */
#ifndef AIRLOCK_QCOW2_BITMAP_TABLES_H
#define AIRLOCK_QCOW2_BITMAP_TABLES_H

#include "qcow2/format.h"

/* Called with each entry of a bitmap's table in turn; false: enough. */
typedef bool bitmap_visit(void *context, u64 index, u64 entry);

void bitmap_visit_table(struct disk *disk, const struct bitmap *bitmap, bitmap_visit *visit, void *context);

/* The tables of `count` bitmaps, which are looked at in their order. */
struct bitmap_tables {
    struct disk *disk;
    const struct bitmap *bitmaps;
    u64 *memory;
    u64 *table; /* as stored, of the bitmap `first` */
    u32 count;
    u32 left_out; /* flags: bitmaps with any of them are not asked for */
    u32 first;    /* those that are in memory */
    u32 end;
};

void bitmap_tables_open(struct bitmap_tables *tables, struct disk *disk, const struct bitmap *bitmaps, u32 count,
                        u32 left_out);

/* The table of a bitmap as it is stored, until the next call; NULL: it is too large, or not all in the file. */
const u64 *bitmap_tables_get(struct bitmap_tables *tables, u32 index);

void bitmap_tables_visit(struct bitmap_tables *tables, u32 index, bitmap_visit *visit, void *context);

#endif
