/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The proof that comes before the first write: every reference of the image is counted and held
 * against the refcounts.
 */
#ifndef AIRLOCK_QCOW2_VERIFY_H
#define AIRLOCK_QCOW2_VERIFY_H

#include "qcow2/refcounts.h"
#include "qcow2/verification.h"

/* Refuses, with the table and entry, an image in which a reference is outside the file, unaligned,
 * has reserved bits, overlaps something else, has the wrong COPIED flag, or is not counted.
 * The L1 table and the refcount table must have been loaded. Sets the cursor of the allocation to
 * the first free cluster, which is where qemu's search would get to.
 * keeps_counters: if memory allows, they stay on the heap, for references.h. */
void verify(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification, bool keeps_counters);

#endif
