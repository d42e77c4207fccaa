/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What a list of actions on one bitmap comes to. A bitmap is all that its actions have added since it was last
 * empty; so the list is gone through once without looking at a bit, and leaves a set of bitmaps to be merged.
 */
#ifndef AIRLOCK_BITMAPS_PLAN_H
#define AIRLOCK_BITMAPS_PLAN_H

#include "qcow2/payload.h"

#define NO_BITMAP UINT32_MAX

struct bitmap_plan {
    struct qcow2 *image;
    const u8 *name;
    u32 name_length;
    u32 named;    /* bitmaps of the image that have the name */
    u32 original; /* the first of them, an index; NO_BITMAP: none */
    bool exists;  /* afterwards */
    bool fresh;   /* what exists then was added: it stands at the directory's end */
    bool keeps;   /* its old bits are among the new ones */
    bool recording;
    u32 granularity_bits;
    bool drops_stale; /* an action was about a stale bitmap */
    struct payload *sources;
    u32 source_count;
};

/* Goes through the list; refuses what cannot be done with the action's index. The directory must have been read. */
void bitmap_plan_make(struct bitmap_plan *plan, struct qcow2 *image, const struct call_bitmap_change *call);

/* Does the set of bitmaps change, whatever the bits? */
bool bitmap_plan_changes_set(const struct bitmap_plan *plan);

/* Does only reading the bits tell whether they change? */
bool bitmap_plan_touches_bits(const struct bitmap_plan *plan);

bool bitmap_plan_changes_recording(const struct bitmap_plan *plan);

#endif
