/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Where no refcount block counts a cluster yet: a new block, and a larger table where the old one has no entry for it.
 */
#ifndef AIRLOCK_QCOW2_REFCOUNT_GROWTH_H
#define AIRLOCK_QCOW2_REFCOUNT_GROWTH_H

#include "qcow2/refcounts.h"

/* Makes a block that is missing before `cluster` can be counted: mostly the one that counts it, but see there. The
 * caller has to look again for what it wanted, for the block may have taken it. */
void refcounts_make_block(struct refcounts *refcounts, u64 cluster);

#endif
