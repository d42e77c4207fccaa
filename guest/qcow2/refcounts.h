/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Refcounts and the allocation of clusters, as block/qcow2-refcount.c does it: the same cursor, the
 * same places for new refcount blocks and tables. Changes are made to blocks in memory and go to the
 * file with refcounts_write_back(); what it freed is punched with refcounts_discard().
 */
#ifndef AIRLOCK_QCOW2_REFCOUNTS_H
#define AIRLOCK_QCOW2_REFCOUNTS_H

#include "qcow2/ranges.h"
#include "qcow2/refcount_blocks.h"
#include "qcow2/refcount_cache.h"

struct refcounts {
    struct qcow2 *image;
    struct refcount_cache cache;
    u64 cursor;              /* free_cluster_index of QEMU */
    u64 free_byte;           /* free_byte_offset of QEMU: behind what was allocated in bytes last; 0: nowhere */
    struct range_list freed; /* to be punched */
};

/* Loads the table. The entries must have been verified before anything is allocated. */
void refcounts_open(struct refcounts *refcounts, struct qcow2 *image);

/* The end of what blocks count, a cluster index: behind it everything is free. */
u64 refcounts_end(const struct refcounts *refcounts);

/* How many refcount blocks there are. */
u64 refcounts_blocks(const struct refcounts *refcounts);

u64 refcounts_get(struct refcounts *refcounts, u64 cluster);

/* Contiguous clusters for `bytes` bytes, refcount 1; their offset. */
u64 refcounts_allocate(struct refcounts *refcounts, u64 bytes);

/* Takes the free clusters at an offset, up to the first that is in use, at most `count`; how many
 * (qcow2_alloc_clusters_at()). */
u64 refcounts_allocate_at(struct refcounts *refcounts, u64 offset, u64 count);

/* While tables are changed in memory only, a cluster freed here may still be referenced on the disk. From here to
 * refcounts_hold_end() its refcount on the disk stays one higher, and it is not allocated again, until `relieve` has
 * written the tables and called refcounts_let_go(). */
void refcounts_hold(struct refcounts *refcounts, void (*relieve)(void *context), void *context);
void refcounts_hold_end(struct refcounts *refcounts);

/* The tables on the disk refer to nothing any more that was freed. */
void refcounts_let_go(struct refcounts *refcounts);

/* Room for `bytes` bytes of a compressed cluster, up to a cluster: behind the last ones as long as they end in a
 * cluster that can count one more, or that is followed by a free one (qcow2_alloc_bytes()). */
u64 refcounts_allocate_bytes(struct refcounts *refcounts, u64 bytes);

/* Takes exactly these clusters, if they are free and have blocks that count them. */
bool refcounts_take(struct refcounts *refcounts, u64 first_cluster, u64 count);

/* One reference less for the clusters of the range. punch: what gets free is discarded. */
void refcounts_free(struct refcounts *refcounts, u64 offset, u64 bytes, bool punch);

/* Drops blocks that hold nothing, as a shrinking disk does (qcow2_shrink_reftable()). */
void refcounts_shrink(struct refcounts *refcounts);

/* Reserves room in the file system for every block. */
void refcounts_reserve(struct refcounts *refcounts);

/* Writes changed blocks, then the table's new entries, and forgets the blocks. Stable after the next
 * flush; new blocks are stable before the table names them. */
void refcounts_write_back(struct refcounts *refcounts);

/* The steps of an allocation, of which refcount_growth.c needs both. The first run of free clusters from the cursor on
 * (alloc_clusters_noref()); one reference more for each (update_refcount()). False: a block had to be made to count
 * them, which may have taken some of them. None of them is counted then: look for free ones again. */
u64 refcounts_find_free(struct refcounts *refcounts, u64 count);
bool refcounts_add_reference(struct refcounts *refcounts, u64 first, u64 count);

/* Punches what was freed; the caller has made sure that nothing on the disk refers to it. */
void refcounts_discard(struct refcounts *refcounts);

#endif
