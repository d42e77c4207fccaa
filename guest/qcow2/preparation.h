/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the mutations have in common: before the first write, and at the commit point.
 */
#ifndef AIRLOCK_QCOW2_PREPARATION_H
#define AIRLOCK_QCOW2_PREPARATION_H

#include "qcow2/header.h"
#include "qcow2/references.h"
#include "qcow2/snapshots.h"
#include "qcow2/verify.h"

/* Loads what a mutation works on and verifies the image. The second also keeps the counters, for references.h. */
void prepare(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification);
void prepare_references(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification);

/* The rewrite of the header that qemu does when it opens such an image for writing. */
void prepare_header(struct qcow2 *image);

/* Switches the header to the table of `count` snapshots at `offset` and frees the old table. */
void commit_snapshots(struct qcow2 *image, struct refcounts *refcounts, u32 count, u64 offset, u64 size);

#endif
