/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Refcounts and the allocation of clusters, as block/qcow2-refcount.c does it: the same cursor, the
 * same places for new refcount blocks and tables. Changes are made to blocks in memory and go to the
 * file with refcounts_write_back(); what it freed is punched with refcounts_discard().
 */
#ifndef AIRLOCK_QCOW2_REFCOUNTS_H
#define AIRLOCK_QCOW2_REFCOUNTS_H

#include "qcow2/format.h"
#include "qcow2/ranges.h"

struct loaded_block { /* of refcounts */
    u8 *data;
    u32 table_index;
    bool dirty;
};

struct held_cluster {
    u64 cluster;
    u64 refcount; /* that it is to have */
};

struct refcounts {
    struct qcow2 *image;
    u64 *table; /* offsets of the blocks; 0: none */
    u32 table_entries;
    u32 block_bits; /* log2 of the refcounts in a block */
    u64 max;        /* largest refcount */
    u64 cursor;     /* free_cluster_index of qemu */
    u64 free_byte;  /* free_byte_offset of qemu: behind what was allocated in bytes last; 0: nowhere */
    struct loaded_block *loaded;
    u32 loaded_count;
    u32 loaded_room;
    u32 last; /* index into loaded: found last */
    u32 victim;
    u32 *hooked; /* table entries that the file does not have yet */
    u32 hooked_count;
    struct range_list freed; /* to be punched */
    struct held_cluster
        *held; /* one reference less in memory, but the disk may refer there still; NULL: not asked for */
    u32 held_count;
    void (*relieve)(void *context); /* makes the disk refer to none of them any more */
    void *relieve_context;
};

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

/* Loads the table. The entries must have been verified before anything is allocated. */
void refcounts_open(struct refcounts *refcounts, struct qcow2 *image);

/* The end of what blocks count, a cluster index: behind it everything is free. */
u64 refcounts_end(const struct refcounts *refcounts);

u64 refcounts_get(struct refcounts *refcounts, u64 cluster);

/* Contiguous clusters for `bytes` bytes, refcount 1; their offset. */
u64 refcounts_allocate(struct refcounts *refcounts, u64 bytes);

/* Takes the free clusters at an offset, up to the first that is in use, at most `count`; how many
 * (qcow2_alloc_clusters_at()). */
u64 refcounts_allocate_at(struct refcounts *refcounts, u64 offset, u64 count);

/* From here on a cluster keeps on the disk the reference that it loses in memory, until refcounts_let_go(); it is
 * not taken anew before `relieve` has seen to that. For who changes tables in memory. */
void refcounts_hold(struct refcounts *refcounts, void (*relieve)(void *context), void *context);

/* The tables on the disk refer to nothing any more that was freed. */
void refcounts_let_go(struct refcounts *refcounts);

/* Room for `bytes` bytes of a compressed cluster, up to a cluster: behind the last ones as long as they end in a
 * cluster that can count one more, or that is followed by a free one (qcow2_alloc_bytes()). */
u64 refcounts_allocate_bytes(struct refcounts *refcounts, u64 bytes);

/* Takes exactly these clusters, if they are free and have blocks that count them. */
bool refcounts_take(struct refcounts *refcounts, u64 first_cluster, u64 count);

/* One reference less for the clusters of the range. punch: what gets free is discarded. */
void refcounts_free(struct refcounts *refcounts, u64 offset, u64 bytes, bool punch);

/* Drops blocks that hold nothing, as a shrinking disk does (qcow2_shrink_reftable()). */
void refcounts_shrink(struct refcounts *refcounts);

/* Reserves room in the file system for every block. */
void refcounts_reserve(struct refcounts *refcounts);

/* Writes changed blocks, then the table's new entries, and forgets the blocks. Stable after the next
 * flush; new blocks are stable before the table names them. */
void refcounts_write_back(struct refcounts *refcounts);

/* Punches what was freed; the caller has made sure that nothing on the disk refers to it. */
void refcounts_discard(struct refcounts *refcounts);

#endif
