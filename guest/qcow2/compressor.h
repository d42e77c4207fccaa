/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Compressing clusters. Apart from compression.h, for few operations do it and what it takes is large.
 */
#ifndef AIRLOCK_QCOW2_COMPRESSOR_H
#define AIRLOCK_QCOW2_COMPRESSOR_H

#include "qcow2/format.h"

struct compressor {
    u64 cluster_size;
    void *state; /* of the library, used again for each cluster */
    /* Compresses a cluster as QEMU does; how many bytes that gives, less than a cluster: `to` has room for so many.
     * 0: it does not get smaller. */
    u64 (*compress)(struct compressor *compressor, const u8 *cluster, u8 *to);
};

typedef void compressor_opener(struct compressor *compressor, const struct qcow2 *image);

/* For the compression type of the image. */
compressor_opener compressor_open;

#endif
