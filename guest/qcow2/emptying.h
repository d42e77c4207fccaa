/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Making an image hold nothing (qcow2_make_empty()), after a commit: what it shows stays the same, for its base
 * has it all. The bytes left are qemu's; on the way there the image is whole at every moment, but for one layout
 * of the old tables in which the dirty bit says that it is not.
 */
#ifndef AIRLOCK_QCOW2_EMPTYING_H
#define AIRLOCK_QCOW2_EMPTYING_H

#include "qcow2/refcounts.h"

#define CLUSTERS_IN_FRONT 3 /* header, refcount table, refcount block; the L1 table follows */

/* Writes the tables of an image that holds nothing, behind the header's cluster: zeros for the L1 table, l1_bytes of
 * them, and what counts these clusters. In an order that suits tables which are in use already. */
void empty_tables_write(struct qcow2 *image, u64 l1_bytes);

/* The image must have been verified, its L1 table loaded. data: its external data file, NULL: it has none. */
void image_empty(struct qcow2 *image, struct refcounts *refcounts, struct disk *data);

#endif
