/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/refcount_growth.h"

#include "qcow2/header.h"

/* A larger table in memory, with the entries of the old one and of the block just made. */
static u64 *larger_table(const struct refcount_cache *cache, u64 entries, u64 block_index, u64 block_offset) {
    u64 *table = heap_take_zeroed(entries * 8);
    memcpy(table, cache->table, min64(cache->table_entries, entries) * 8);
    table[block_index] = block_offset;
    return table;
}

/* qcow2_refcount_area(): the table is too small, so new blocks and a new table are put behind
 * everything, in clusters that they count themselves; then the header is switched to them. */
static void grow_table(struct refcounts *refcounts, u64 cluster, u64 block_index, u64 block_offset) {
    struct qcow2 *image = refcounts->image;
    struct refcount_cache *cache = &refcounts->cache;
    u64 used = divide_up(max64(cluster, block_offset >> image->cluster_bits) + 1, cache_block_size(cache));
    u64 start = used << cache->block_bits; /* a cluster index */
    u64 blocks = refcount_blocks_for(image->cluster_size, cache_block_size(cache), start);
    u64 entries = round_up(blocks + divide_up(blocks, 2), image->cluster_size / 8);
    if (entries > REFCOUNT_TABLE_BYTES_MAX / 8) {
        refuse(REFUSAL_FILE_TOO_BIG);
    }
    u64 old_offset = image->refcount_table_offset;
    u64 old_bytes = 8ull * cache->table_entries;
    cache->table = larger_table(cache, entries, block_index, block_offset);
    cache->table_entries = (u32)entries;
    u64 missing = 0;
    for (u64 i = used; i < blocks; i++) {
        missing += cache->table[i] == 0;
    }
    u64 table_clusters = entries * 8 / image->cluster_size;
    u64 end = start + missing + table_clusters;
    disk_queue_reserve(&image->disk, start << image->cluster_bits, (end - start) << image->cluster_bits);
    disk_run();
    for (u64 i = used, next = start; i < blocks; i++) {
        if (cache->table[i] == 0) {
            cache_new_block(cache, (u32)i, next++ << image->cluster_bits);
        }
    }
    for (u64 i = start; i < end; i++) {
        cache_set(cache, i, 1);
    }
    cache_write_blocks(cache);
    cache->hooked_count = 0; /* all of them are in the new table */
    u8 *raw = heap_take(entries * 8);
    for (u64 i = 0; i < entries; i++) {
        store64(raw + 8 * i, cache->table[i]);
    }
    disk_write(&image->disk, (start + missing) << image->cluster_bits, raw, entries * 8);
    disk_flush(&image->disk);
    image->refcount_table_offset = (start + missing) << image->cluster_bits;
    image->refcount_table_clusters = (u32)table_clusters;
    header_write_refcount_table(image);
    disk_flush(&image->disk);
    refcounts_free(refcounts, old_offset, old_bytes, false);
}

/* alloc_refcount_block(). A block is a cluster like any other: it takes the first free one, and needs a reference
 * itself. There are three cases:
 * - It counts itself, because it has come to lie in the range that it is made for: then its own refcount is written in
 *   it.
 * - Another block counts it, and gets the reference.
 * - Nothing counts the cluster that it took. Then that block has to be made first: refcounts_add_reference() calls this
 *   function again, and there is nothing to do for this call; whoever wanted `cluster` starts again, and will be here
 *   once more if need be. It does not go deep: in a range without a block all is free, so the search, which goes on
 *   where it was, finds the inner block a place in the same range, or at the start of the one behind it, and there it
 *   counts itself. */
void refcounts_make_block(struct refcounts *refcounts, u64 cluster) {
    struct qcow2 *image = refcounts->image;
    struct refcount_cache *cache = &refcounts->cache;
    u64 index = cluster >> cache->block_bits;
    u64 at = refcounts_find_free(refcounts, 1);
    bool counts_itself = at >> cache->block_bits == index;
    if (!counts_itself && !refcounts_add_reference(refcounts, at, 1)) {
        return;
    }
    u64 offset = at << image->cluster_bits;
    disk_queue_reserve(&image->disk, offset, image->cluster_size);
    disk_run();
    if (index < cache->table_entries) {
        cache_new_block(cache, (u32)index, offset);
        if (counts_itself) {
            cache_set(cache, at, 1);
        }
        cache_hook(cache, (u32)index);
        return;
    }
    u8 *block = heap_take_zeroed(image->cluster_size);
    if (counts_itself) {
        block_set(block, image->refcount_order, at & (cache_block_size(cache) - 1), 1);
    }
    disk_write(&image->disk, offset, block, image->cluster_size);
    grow_table(refcounts, cluster, index, offset);
}
