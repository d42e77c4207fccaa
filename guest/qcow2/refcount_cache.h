/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The refcount table, and blocks of it in memory: read when they are looked at, changed there, written together. What
 * block/qcow2-cache.c is to refcount blocks, but that nothing is written before it is asked for or memory is full.
 */
#ifndef AIRLOCK_QCOW2_REFCOUNT_CACHE_H
#define AIRLOCK_QCOW2_REFCOUNT_CACHE_H

#include "qcow2/format.h"
#include "qcow2/pending_frees.h"

struct cached_block {
    u8 *data;
    u32 table_index;
    bool dirty;
};

struct refcount_cache {
    struct qcow2 *image;
    u64 *table; /* offsets of the blocks; 0: none */
    u32 table_entries;
    u32 block_bits; /* log2 of the refcounts in a block */
    u64 max;        /* largest refcount */
    struct cached_block *blocks;
    u32 count;
    u32 room;
    u32 last;    /* index into blocks: found last */
    u32 victim;  /* given to another block last */
    u32 next;    /* behind the block that was read last */
    u64 ahead;   /* blocks that were read together last */
    u32 *hooked; /* entries that the table in the file does not have yet: as QEMU says of a block that it hooks up */
    u32 hooked_count;
    struct pending_frees pending; /* which clusters the disk is to count once more */
};

/* Loads the table. */
void cache_open(struct refcount_cache *cache, struct qcow2 *image);

static inline u64 cache_block_size(const struct refcount_cache *cache) { return 1ull << cache->block_bits; }

/* Is there a block that counts the cluster? */
bool cache_counts(const struct refcount_cache *cache, u64 cluster);

/* 0 where no block counts. */
u64 cache_get(struct refcount_cache *cache, u64 cluster);

/* A block must count the cluster. */
void cache_set(struct refcount_cache *cache, u64 cluster, u64 refcount);

/* An empty block for an entry of the table, to lie at `offset`. The file's table does not name it: cache_hook(). */
void cache_new_block(struct refcount_cache *cache, u32 table_index, u64 offset);

/* The block of this entry is not to be written any more, and the table in memory has none. */
void cache_drop_block(struct refcount_cache *cache, u32 table_index);

/* The table in the file gets this entry, after the block itself. */
void cache_hook(struct refcount_cache *cache, u32 table_index);

/* Writes all that is changed: the blocks, or also the table's new entries, before which the blocks are stable. */
void cache_write_blocks(struct refcount_cache *cache);
void cache_write(struct refcount_cache *cache);

/* Who changes blocks in bulk must not meet an old copy here. Nothing may be changed, and nothing pending. */
void cache_forget(struct refcount_cache *cache);

#endif
