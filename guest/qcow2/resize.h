/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Changing the size of the disk and of its L1 table (qcow2_co_truncate(), qcow2_grow_l1_table()).
 */
#ifndef AIRLOCK_QCOW2_RESIZE_H
#define AIRLOCK_QCOW2_RESIZE_H

#include "qcow2/refcounts.h"

/* Gives the L1 table `entries` entries, in a new place; a table that is large enough stays. */
void resize_l1(struct qcow2 *image, struct refcounts *refcounts, u64 entries);

/* Changes the size of the disk to `size` bytes. When it shrinks, the clusters behind the new end are
 * freed. The header has the new size first: what a crash leaves is a disk of the new size with
 * clusters leaked. */
void resize_mapping(struct qcow2 *image, struct refcounts *refcounts, u64 size);

/* After the disk has shrunk: drops refcount blocks that count nothing and cuts the file behind its
 * last cluster in use. */
void resize_file(struct qcow2 *image, struct refcounts *refcounts);

#endif
