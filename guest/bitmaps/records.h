/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Bitmaps as an answer tells them.
 */
#ifndef AIRLOCK_BITMAPS_RECORDS_H
#define AIRLOCK_BITMAPS_RECORDS_H

#include "qcow2/payload.h"

struct bitmap_records {
    u8 *start;
    u64 length; /* bytes */
    u32 count;
};

/* Records for the bitmaps of a set, with these flags besides their own, nothing counted yet. They follow
 * what was added before: heap_extend(). */
void records_add(struct bitmap_records *records, const struct bitmap_set *set, u32 flags);

/* The next record. */
struct bitmap_record *record_after(struct bitmap_record *record);

/* Counts the dirty bits of every bitmap of the image that is in order; the records are in the set's order. `known`
 * (an index, or NO_BITMAP) has been counted already. Stops where bitmaps claim more clusters than there are. */
void records_count(struct qcow2 *image, struct bitmap_records *records, u32 known);

void record_set_count(struct bitmap_record *record, const struct dirty_count *dirty);

#endif
