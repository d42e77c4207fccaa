/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Persistent dirty bitmaps (block/qcow2-bitmap.c): what an operation on snapshots has to know of
 * them, which is where their clusters lie.
 */
#ifndef AIRLOCK_QCOW2_BITMAPS_H
#define AIRLOCK_QCOW2_BITMAPS_H

#include "qcow2/format.h"

struct bitmap {
    u64 table_offset;
    u32 table_entries;
    u16 name_length;
    const u8 *name;
};

/* Checks the header extension. Stale bitmaps (autoclear bit off) count as none. */
void bitmaps_read_extension(struct qcow2 *image, const u8 *data, u32 length);

bool bitmaps_present(const struct qcow2 *image);

/* Reads and checks the directory; bitmap_count bitmaps. */
struct bitmap *bitmaps_read(struct qcow2 *image);

_Noreturn void bitmaps_refuse(enum bitmaps_fault fault, const u8 *name, u64 length, u64 value);

#endif
