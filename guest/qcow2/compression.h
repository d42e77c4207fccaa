/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#ifndef AIRLOCK_QCOW2_COMPRESSION_H
#define AIRLOCK_QCOW2_COMPRESSION_H

#include "qcow2/format.h"

#define COMPRESSED_MAX (4 * MIB) /* bytes that an entry of the largest clusters can claim */

/* Reads the compressed cluster that an L2 entry names (qcow2_co_preadv_compressed()). cluster: cluster_size
 * bytes; scratch: COMPRESSED_MAX bytes. Refuses what does not inflate to exactly a cluster. */
void inflate_entry(struct qcow2 *image, u64 entry, u8 *cluster, u8 *scratch);

#endif
