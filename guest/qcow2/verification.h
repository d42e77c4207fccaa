/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What a verification has found out besides that the image is sound: operations decide by it.
 */
#ifndef AIRLOCK_QCOW2_VERIFICATION_H
#define AIRLOCK_QCOW2_VERIFICATION_H

#include "qcow2/counters.h"

struct verification {
    u64 leaked_clusters; /* refcount above what refers to the cluster */
    u64 first_free;      /* cluster index */
    u64 max_refcount;
    u64 windows;          /* of counters, that it took */
    u32 width;            /* bytes of a counter that are enough for every cluster */
    u32 snapshots;        /* that the image had then */
    bool has_compressed;  /* clusters */
    bool stale_are_whole; /* every cluster of image->stale, read before, is counted once and nobody else's */
    bool has_counters;    /* memory for all counters is at hand, below */
    bool is_counted;      /* and they are still as counted: flags as in tally.h */
    struct counters counters;
};

#endif
