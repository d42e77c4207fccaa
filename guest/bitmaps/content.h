/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The new bits of a bitmap, computed and stored a window at a time.
 */
#ifndef AIRLOCK_BITMAPS_CONTENT_H
#define AIRLOCK_BITMAPS_CONTENT_H

#include "bitmaps/plan.h"
#include "qcow2/refcounts.h"

struct bitmap_content {
    const struct bitmap_plan *plan;
    struct refcounts *refcounts; /* NULL: nothing is written */
    bool counts;
    u32 table_entries;
    u64 *table;   /* of the new bitmap, big-endian */
    bool changed; /* other bits than before */
    struct dirty_count dirty;
    u64 *windows; /* memory to work in; NULL: it is taken, and can serve the next content as well */
};

/* Bytes of bits that bitmap_content_make() goes over: those that the bitmap has, and those of each that is
 * merged into it. */
u64 bitmap_content_work(const struct bitmap_plan *plan);

/* Computes what the plan's bitmap will be. What differs from what the image has goes to new clusters; a cluster
 * of the old bitmap whose bits stay as they are is kept. */
void bitmap_content_make(struct bitmap_content *content);

/* One reference less for the table of a bitmap and for its data but for what `kept` (entries as they stand in
 * a table, NULL: none) names as well. */
void bitmap_content_free(struct qcow2 *image, struct refcounts *refcounts, const struct bitmap *bitmap, const u64 *kept,
                         u64 *freed);

#endif
