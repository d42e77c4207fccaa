/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#ifndef AIRLOCK_QCOW2_REFCOUNT_BLOCKS_H
#define AIRLOCK_QCOW2_REFCOUNT_BLOCKS_H

#include "start/guest.h"

/* How many blocks of `block_entries` refcounts cover `clusters` clusters, themselves and a table that names them, as
 * qcow2_refcount_metadata_size() reckons with room to grow. */
u64 refcount_blocks_for(u64 cluster_size, u64 block_entries, u64 clusters);

#endif
