/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Where the bytes of a disk are, for a reader that goes through it upwards: L2 tables are fetched many at a
 * time. The image need not have been verified; what it says is checked as far as it is followed.
 */
#ifndef AIRLOCK_QCOW2_LOOKUP_H
#define AIRLOCK_QCOW2_LOOKUP_H

#include "disk/extent.h"
#include "qcow2/format.h"

struct lookup {
    struct qcow2 *image;
    u32 data_disk; /* holds the clusters; the image itself unless it has an external data file */
    u64 slice;     /* bytes of a table that are loaded together: all of it, or a power of two */
    u64 first;     /* index of the window's first slice; of the L1 entry, where that is a whole table */
    u32 count;
    u32 room;
    u64 *l1; /* the entries of the window, host byte order */
    u8 *tables;
    void (*leave)(void *context); /* called before the window is read anew; NULL: nobody cares */
    void *leave_context;
};

/* bytes: about as much memory as the window may take. whole: whole tables only, for callers that modify
 * them. */
void lookup_open(struct lookup *lookup, struct qcow2 *image, u32 data_disk, u64 bytes, bool whole);

/* The extent that begins at `offset`, at most `length` bytes, at most to the end of its slice: as
 * qcow2_get_host_offset() finds it. */
struct extent lookup_at(struct lookup *lookup, u64 offset, u64 length);

/* Makes a slice one of the window. */
void lookup_need(struct lookup *lookup, u64 index);

/* What an L2 entry says of the subcluster `index` (of the cluster, in an image without them). */
enum extent_kind entry_kind(const struct qcow2 *image, u64 entry, u64 bitmap, u32 index);

static inline u32 subclusters(const struct qcow2 *image) { return has_extended_l2(image) ? 32 : 1; }

static inline u64 subcluster_size(const struct qcow2 *image) { return image->cluster_size / subclusters(image); }

#endif
