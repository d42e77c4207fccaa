/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/refcount_cache.h"

#include "qcow2/refcount_blocks.h"

#define BLOCKS_BYTES (16 * MIB)
#define BLOCKS_MIN 6
#define BLOCKS_MAX 4096
#define HOOKED_ROOM 4096
#define AHEAD_MAX 64 /* blocks that are read together */

static u32 table_index_of(const struct refcount_cache *cache, u64 cluster) {
    return (u32)(cluster >> cache->block_bits);
}

static u64 index_in_block(const struct refcount_cache *cache, u64 cluster) {
    return cluster & (cache_block_size(cache) - 1);
}

void cache_open(struct refcount_cache *cache, struct qcow2 *image) {
    u64 bytes = image->refcount_table_clusters * image->cluster_size;
    *cache = (struct refcount_cache){.image = image, .table_entries = (u32)(bytes / 8)};
    cache->block_bits = image->cluster_bits + 3 - image->refcount_order;
    cache->max = image->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << image->refcount_order)) - 1;
    cache->table = heap_take(bytes);
    disk_read(&image->disk, image->refcount_table_offset, cache->table, bytes);
    for (u32 i = 0; i < cache->table_entries; i++) {
        cache->table[i] = swap64(cache->table[i]);
    }
    cache->room = (u32)min64(max64(BLOCKS_BYTES / image->cluster_size, BLOCKS_MIN), BLOCKS_MAX);
    cache->blocks = heap_take_zeroed(cache->room * sizeof(struct cached_block));
    u8 *memory = heap_take(cache->room * image->cluster_size);
    for (u32 i = 0; i < cache->room; i++) {
        cache->blocks[i].data = memory + i * image->cluster_size;
    }
    cache->hooked = heap_take(HOOKED_ROOM * sizeof(u32));
}

static struct cached_block *find(struct refcount_cache *cache, u32 table_index) {
    for (u32 n = 0; n < cache->count; n++) {
        u32 i = (cache->last + n) % cache->count;
        if (cache->blocks[i].table_index == table_index) {
            cache->last = i;
            return &cache->blocks[i];
        }
    }
    return NULL;
}

static bool is_cached(const struct refcount_cache *cache, u32 table_index) {
    for (u32 i = 0; i < cache->count; i++) {
        if (cache->blocks[i].table_index == table_index) {
            return true;
        }
    }
    return false;
}

/* While blocks are written, clusters whose free is pending count one more. */
static void lift_pending(struct refcount_cache *cache) {
    const u32 order = cache->image->refcount_order;
    struct pending_free *frees = cache->pending.frees;
    for (u32 i = 0; i < cache->pending.count; i++) {
        const struct cached_block *block = find(cache, table_index_of(cache, frees[i].cluster));
        frees[i].refcount = block != NULL ? block_get(block->data, order, index_in_block(cache, frees[i].cluster)) : 0;
    }
    for (u32 i = 0; i < cache->pending.count; i++) {
        const struct cached_block *block = find(cache, table_index_of(cache, frees[i].cluster));
        if (block != NULL) {
            u64 now = block_get(block->data, order, index_in_block(cache, frees[i].cluster));
            block_set(block->data, order, index_in_block(cache, frees[i].cluster), now < cache->max ? now + 1 : now);
        }
    }
}

static void lower_pending(struct refcount_cache *cache) {
    for (u32 i = 0; i < cache->pending.count; i++) {
        const struct pending_free *pending = &cache->pending.frees[i];
        struct cached_block *block = find(cache, table_index_of(cache, pending->cluster));
        if (block != NULL) {
            block_set(block->data, cache->image->refcount_order, index_in_block(cache, pending->cluster),
                      pending->refcount);
            block->dirty = true;
        }
    }
}

/* No order among blocks is needed. */
void cache_write_blocks(struct refcount_cache *cache) {
    struct qcow2 *image = cache->image;
    lift_pending(cache);
    for (u32 i = 0; i < cache->count; i++) {
        struct cached_block *block = &cache->blocks[i];
        if (block->dirty) {
            disk_queue_write(&image->disk, cache->table[block->table_index], block->data, image->cluster_size);
            block->dirty = false;
        }
    }
    disk_run();
    lower_pending(cache);
}

static void write_hooked(struct refcount_cache *cache) {
    struct qcow2 *image = cache->image;
    if (cache->hooked_count == 0) {
        return;
    }
    disk_flush(&image->disk);
    for (u32 i = 0; i < cache->hooked_count; i++) {
        u8 entry[8];
        store64(entry, cache->table[cache->hooked[i]]);
        disk_write(&image->disk, image->refcount_table_offset + 8ull * cache->hooked[i], entry, sizeof(entry));
    }
    cache->hooked_count = 0;
}

void cache_write(struct refcount_cache *cache) {
    cache_write_blocks(cache);
    write_hooked(cache);
}

/* A place in memory for a block: a new one, else one that is written already. */
static struct cached_block *take_place(struct refcount_cache *cache) {
    if (cache->count < cache->room) {
        return &cache->blocks[cache->count++];
    }
    for (u32 tries = 0; tries < cache->room; tries++) {
        cache->victim = (cache->victim + 1) % cache->room;
        if (!cache->blocks[cache->victim].dirty) {
            return &cache->blocks[cache->victim];
        }
    }
    if (cache->pending.count > 0) {
        cache->pending.relieve(cache->pending.context); /* a block with one stays changed when it is written */
    }
    cache_write(cache);
    return &cache->blocks[cache->victim];
}

bool cache_counts(const struct refcount_cache *cache, u64 cluster) {
    u64 table_index = cluster >> cache->block_bits;
    return table_index < cache->table_entries && cache->table[table_index] != 0;
}

static void queue_block(struct refcount_cache *cache, struct cached_block *place, u32 table_index) {
    place->table_index = table_index;
    disk_queue_read(&cache->image->disk, cache->table[table_index], place->data, cache->image->cluster_size);
    cache->next = table_index + 1;
}

/* Can the next block have a place without anything being written? */
static bool has_clean_place(const struct refcount_cache *cache) {
    const u32 next = cache->victim + 1 < cache->room ? cache->victim + 1 : 0;
    return cache->count < cache->room || !cache->blocks[next].dirty;
}

/* Whoever goes from block to block, looking for free clusters, gets more and more of them at a time. */
static struct cached_block *load(struct refcount_cache *cache, u32 table_index) {
    struct cached_block *block = find(cache, table_index);
    if (block != NULL) {
        return block;
    }
    cache->ahead = table_index == cache->next ? min64(2 * cache->ahead + 1, min64(cache->room / 2, AHEAD_MAX)) : 1;
    block = take_place(cache);
    cache->last = (u32)(block - cache->blocks);
    queue_block(cache, block, table_index);
    for (u64 i = 1; i < cache->ahead && cache->next < cache->table_entries && cache->table[cache->next] != 0; i++) {
        if (!has_clean_place(cache) || is_cached(cache, cache->next)) {
            break;
        }
        queue_block(cache, take_place(cache), cache->next);
    }
    disk_run();
    return block;
}

void cache_new_block(struct refcount_cache *cache, u32 table_index, u64 offset) {
    struct cached_block *block = take_place(cache);
    cache->table[table_index] = offset;
    block->table_index = table_index;
    block->dirty = true;
    memset(block->data, 0, cache->image->cluster_size);
}

void cache_drop_block(struct refcount_cache *cache, u32 table_index) {
    struct cached_block *block = find(cache, table_index);
    if (block != NULL) {
        block->dirty = false;
        block->table_index = UINT32_MAX;
    }
    cache->table[table_index] = 0;
}

void cache_hook(struct refcount_cache *cache, u32 table_index) {
    if (cache->hooked_count == HOOKED_ROOM) {
        cache_write(cache);
    }
    cache->hooked[cache->hooked_count++] = table_index;
}

u64 cache_get(struct refcount_cache *cache, u64 cluster) {
    if (!cache_counts(cache, cluster)) {
        return 0;
    }
    const struct cached_block *block = load(cache, table_index_of(cache, cluster));
    return block_get(block->data, cache->image->refcount_order, index_in_block(cache, cluster));
}

void cache_set(struct refcount_cache *cache, u64 cluster, u64 refcount) {
    struct cached_block *block = load(cache, table_index_of(cache, cluster));
    block_set(block->data, cache->image->refcount_order, index_in_block(cache, cluster), refcount);
    block->dirty = true;
}

void cache_forget(struct refcount_cache *cache) {
    cache->count = 0;
    cache->last = 0;
}
