/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/refcounts.h"

#include "qcow2/refcount_growth.h"

#define FREED_ROOM 65536

void refcounts_open(struct refcounts *refcounts, struct qcow2 *image) {
    *refcounts = (struct refcounts){.image = image};
    cache_open(&refcounts->cache, image);
    ranges_open(&refcounts->freed, FREED_ROOM);
}

u64 refcounts_end(const struct refcounts *refcounts) {
    u64 entries = refcounts->cache.table_entries;
    while (entries > 0 && refcounts->cache.table[entries - 1] == 0) {
        entries--;
    }
    return entries << refcounts->cache.block_bits;
}

u64 refcounts_blocks(const struct refcounts *refcounts) {
    u64 count = 0;
    for (u32 i = 0; i < refcounts->cache.table_entries; i++) {
        count += refcounts->cache.table[i] != 0;
    }
    return count;
}

u64 refcounts_get(struct refcounts *refcounts, u64 cluster) { return cache_get(&refcounts->cache, cluster); }

void refcounts_hold(struct refcounts *refcounts, void (*relieve)(void *context), void *context) {
    pending_open(&refcounts->cache.pending, relieve, context);
}

void refcounts_hold_end(struct refcounts *refcounts) { pending_close(&refcounts->cache.pending); }

void refcounts_let_go(struct refcounts *refcounts) { pending_forget(&refcounts->cache.pending); }

u64 refcounts_find_free(struct refcounts *refcounts, u64 count) {
    for (u64 run = 0; run < count;) {
        run = refcounts_get(refcounts, refcounts->cursor++) == 0 ? run + 1 : 0;
    }
    u64 first = refcounts->cursor - count;
    if (count > 0 && refcounts->cursor - 1 > HOST_OFFSET_MAX >> refcounts->image->cluster_bits) {
        refuse(REFUSAL_FILE_TOO_BIG);
    }
    pending_settle(&refcounts->cache.pending, first, count);
    /* What is taken will be written in full: it must not be punched later. */
    ranges_remove(&refcounts->freed, first << refcounts->image->cluster_bits, count << refcounts->image->cluster_bits);
    return first;
}

bool refcounts_add_reference(struct refcounts *refcounts, u64 first, u64 count) {
    for (u64 i = first; i < first + count; i++) {
        if (!cache_counts(&refcounts->cache, i)) {
            for (u64 done = first; done < i; done++) {
                cache_set(&refcounts->cache, done, refcounts_get(refcounts, done) - 1);
            }
            refcounts_make_block(refcounts, i);
            refcounts->cursor = min64(refcounts->cursor, first);
            return false;
        }
        cache_set(&refcounts->cache, i, refcounts_get(refcounts, i) + 1);
    }
    return true;
}

u64 refcounts_allocate(struct refcounts *refcounts, u64 bytes) {
    u64 count = clusters_of(refcounts->image, bytes);
    u64 first;
    if (count == 0) {
        return 0; /* qemu's cursor, which is still at 0 wherever this happens */
    }
    do {
        first = refcounts_find_free(refcounts, count);
    } while (!refcounts_add_reference(refcounts, first, count));
    return first << refcounts->image->cluster_bits;
}

u64 refcounts_allocate_at(struct refcounts *refcounts, u64 offset, u64 count) {
    u64 first = offset >> refcounts->image->cluster_bits;
    u64 taken;
    do {
        taken = 0;
        while (taken < count && refcounts_get(refcounts, first + taken) == 0) {
            taken++;
        }
        pending_settle(&refcounts->cache.pending, first, taken);
    } while (!refcounts_add_reference(refcounts, first, taken));
    ranges_remove(&refcounts->freed, offset, taken << refcounts->image->cluster_bits);
    return taken;
}

u64 refcounts_allocate_bytes(struct refcounts *refcounts, u64 bytes) {
    const u64 cluster = refcounts->image->cluster_size;
    u64 offset = refcounts->free_byte;
    bool counted;
    if (offset != 0 && refcounts_get(refcounts, offset / cluster) == refcounts->cache.max) {
        offset = 0;
    }
    u64 room = cluster - offset % cluster;
    do {
        if (offset == 0 || room < bytes) {
            u64 fresh = refcounts_find_free(refcounts, 1) * cluster;
            bool continues = offset != 0 && round_up(offset, cluster) == fresh;
            offset = continues ? offset : fresh;
            room = continues ? room + cluster : cluster;
            if (fresh + cluster - 1 > compressed_offset_max(refcounts->image)) {
                refuse(REFUSAL_FILE_TOO_BIG);
            }
        }
        u64 first = offset / cluster;
        counted = refcounts_add_reference(refcounts, first, (offset + bytes - 1) / cluster - first + 1);
        offset = counted ? offset : 0;
    } while (!counted);
    refcounts->free_byte = (offset + bytes) % cluster != 0 ? offset + bytes : 0;
    return offset;
}

bool refcounts_take(struct refcounts *refcounts, u64 first_cluster, u64 count) {
    for (u64 i = first_cluster; i < first_cluster + count; i++) {
        if (!cache_counts(&refcounts->cache, i) || refcounts_get(refcounts, i) != 0) {
            return false;
        }
    }
    return refcounts_add_reference(refcounts, first_cluster, count);
}

void refcounts_free(struct refcounts *refcounts, u64 offset, u64 bytes, bool punch) {
    struct qcow2 *image = refcounts->image;
    if (bytes == 0) {
        return;
    }
    u64 last = (offset + bytes - 1) >> image->cluster_bits;
    for (u64 i = offset >> image->cluster_bits; i <= last; i++) {
        u64 refcount = refcounts_get(refcounts, i);
        if (refcount == 0) {
            refuse(REFUSAL_REFCOUNT_TOO_LOW, .a = TABLE_DATA, .e = i << image->cluster_bits, .f = 1);
        }
        pending_add(&refcounts->cache.pending, i);
        cache_set(&refcounts->cache, i, refcount - 1);
        if (refcount > 1) {
            continue;
        }
        refcounts->cursor = min64(refcounts->cursor, i);
        if (punch) {
            if (ranges_full(&refcounts->freed)) {
                cache_write_blocks(&refcounts->cache);
                disk_flush(&image->disk);
                refcounts_discard(refcounts);
            }
            ranges_add(&refcounts->freed, i << image->cluster_bits, image->cluster_size);
        }
    }
}

static bool is_empty(struct refcounts *refcounts, u32 index) {
    u64 own = refcounts->cache.table[index] >> refcounts->image->cluster_bits;
    bool counts_itself = own >> refcounts->cache.block_bits == index;
    for (u64 i = 0; i < cache_block_size(&refcounts->cache); i++) {
        u64 cluster = ((u64)index << refcounts->cache.block_bits) + i;
        if (refcounts_get(refcounts, cluster) != 0 && !(counts_itself && cluster == own)) {
            return false;
        }
    }
    return true;
}

void refcounts_shrink(struct refcounts *refcounts) {
    struct qcow2 *image = refcounts->image;
    u64 *dropped = heap_take_zeroed(8ull * refcounts->cache.table_entries);
    u8 *raw = heap_take(8ull * refcounts->cache.table_entries);
    for (u32 i = 0; i < refcounts->cache.table_entries; i++) {
        if (refcounts->cache.table[i] != 0 && is_empty(refcounts, i)) {
            dropped[i] = refcounts->cache.table[i];
        }
        store64(raw + 8ull * i, dropped[i] != 0 ? 0 : refcounts->cache.table[i]);
    }
    cache_write(&refcounts->cache);
    disk_flush(&image->disk);
    disk_write(&image->disk, image->refcount_table_offset, raw, 8ull * refcounts->cache.table_entries);
    disk_flush(&image->disk);
    for (u32 i = 0; i < refcounts->cache.table_entries; i++) {
        if (dropped[i] == 0) {
            continue;
        }
        /* A block that counted only itself goes with its table entry; there is nothing left to lower. */
        bool counts_itself = dropped[i] >> image->cluster_bits >> refcounts->cache.block_bits == i;
        if (counts_itself) {
            u64 cluster = dropped[i] >> image->cluster_bits;
            refcounts->cursor = min64(refcounts->cursor, cluster);
            if (ranges_full(&refcounts->freed)) {
                refcounts_discard(refcounts);
            }
            ranges_add(&refcounts->freed, dropped[i], image->cluster_size);
        } else {
            refcounts_free(refcounts, dropped[i], image->cluster_size, true);
        }
        cache_drop_block(&refcounts->cache, i);
    }
}

void refcounts_reserve(struct refcounts *refcounts) {
    struct qcow2 *image = refcounts->image;
    for (u32 i = 0; i < refcounts->cache.table_entries; i++) {
        if (refcounts->cache.table[i] != 0) {
            disk_queue_reserve(&image->disk, refcounts->cache.table[i], image->cluster_size);
        }
    }
    disk_run();
}

void refcounts_write_back(struct refcounts *refcounts) {
    cache_write(&refcounts->cache);
    if (refcounts->cache.pending.count == 0) {
        cache_forget(&refcounts->cache);
    }
}

void refcounts_discard(struct refcounts *refcounts) {
    struct disk *disk = &refcounts->image->disk;
    for (u32 i = 0; i < refcounts->freed.count; i++) {
        disk_queue_discard(disk, refcounts->freed.ranges[i].offset, refcounts->freed.ranges[i].length);
    }
    disk_run();
    refcounts->freed.count = 0;
}
