/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Discarding clusters of the disk, so that the image holds nothing there (qcow2_cluster_discard()).
 */
#ifndef AIRLOCK_QCOW2_DISCARDING_H
#define AIRLOCK_QCOW2_DISCARDING_H

#include "qcow2/refcounts.h"

/* The guest clusters from `first` to `end`, of one L2 table, which becomes the disk's own first. What the disk on the
 * medium refers to is sound at every moment. table: room for two clusters. data: the external data file, NULL: there
 * is none. */
void discard_clusters(struct qcow2 *image, struct refcounts *refcounts, struct disk *data, u64 first, u64 end,
                      u8 *table);

/* Every cluster of the disk, as qcow2_make_empty() does where it must: each L2 table becomes the disk's own first,
 * even one that was not there. For an image that shows the same without them: meanwhile it holds nothing already. */
void discard_disk(struct qcow2 *image, struct refcounts *refcounts, struct disk *data);

#endif
