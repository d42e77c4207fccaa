/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#ifndef AIRLOCK_QCOW2_REFCOUNT_BLOCKS_H
#define AIRLOCK_QCOW2_REFCOUNT_BLOCKS_H

#include "start/guest.h"

/* A refcount in a block. order: log2 of its width in bits. */
static inline u64 block_get(const u8 *block, u32 order, u64 index) {
    switch (order) {
    case 0:
        return (block[index / 8] >> (index % 8)) & 1;
    case 1:
        return (block[index / 4] >> (2 * (index % 4))) & 3;
    case 2:
        return (block[index / 2] >> (4 * (index % 2))) & 15;
    case 3:
        return block[index];
    case 4:
        return load16(block + 2 * index);
    case 5:
        return load32(block + 4 * index);
    default:
        return load64(block + 8 * index);
    }
}

static inline void block_set(u8 *block, u32 order, u64 index, u64 value) {
    switch (order) {
    case 0:
        block[index / 8] = (u8)((block[index / 8] & ~(1u << (index % 8))) | (u32)value << (index % 8));
        break;
    case 1:
        block[index / 4] = (u8)((block[index / 4] & ~(3u << (2 * (index % 4)))) | (u32)value << (2 * (index % 4)));
        break;
    case 2:
        block[index / 2] = (u8)((block[index / 2] & ~(15u << (4 * (index % 2)))) | (u32)value << (4 * (index % 2)));
        break;
    case 3:
        block[index] = (u8)value;
        break;
    case 4:
        store16(block + 2 * index, (u16)value);
        break;
    case 5:
        store32(block + 4 * index, (u32)value);
        break;
    default:
        store64(block + 8 * index, value);
    }
}

/* How many blocks of `block_entries` refcounts cover `clusters` clusters, themselves and a table that names them, as
 * qcow2_refcount_metadata_size() reckons with room to grow. */
u64 refcount_blocks_for(u64 cluster_size, u64 block_entries, u64 clusters);

#endif
