/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The top of a chain, a qcow2 image, when a commit has made it needless.
 */
#ifndef AIRLOCK_CHAIN_TOP_H
#define AIRLOCK_CHAIN_TOP_H

#include "chain/chain.h"
#include "qcow2/refcounts.h"

/* Clusters that the top itself holds. */
u64 top_clusters(struct chain *chain);

/* The top holds nothing any more. It must have been verified. */
void top_empty(struct chain *chain, struct refcounts *refcounts);

#endif
