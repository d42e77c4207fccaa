/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/refcounts.h"

#include "qcow2/header.h"
#include "qcow2/refcount_blocks.h"

#define LOADED_BYTES (16 * MIB)
#define HOOKED_ROOM 4096
#define FREED_ROOM 65536
#define HELD_ROOM 4096

static u64 block_size(const struct refcounts *refcounts) { return 1ull << refcounts->block_bits; }

void refcounts_open(struct refcounts *refcounts, struct qcow2 *image) {
    u64 bytes = image->refcount_table_clusters * image->cluster_size;
    *refcounts = (struct refcounts){.image = image, .table_entries = (u32)(bytes / 8)};
    refcounts->block_bits = image->cluster_bits + 3 - image->refcount_order;
    refcounts->max = image->refcount_order == 6 ? UINT64_MAX : (1ull << (1u << image->refcount_order)) - 1;
    refcounts->table = heap_take(bytes);
    disk_read(&image->disk, image->refcount_table_offset, refcounts->table, bytes);
    for (u32 i = 0; i < refcounts->table_entries; i++) {
        refcounts->table[i] = swap64(refcounts->table[i]);
    }
    refcounts->loaded_room = (u32)max64(LOADED_BYTES / image->cluster_size, 6);
    refcounts->loaded_room = (u32)min64(refcounts->loaded_room, 4096);
    refcounts->loaded = heap_take_zeroed(refcounts->loaded_room * sizeof(struct loaded_block));
    u8 *memory = heap_take(refcounts->loaded_room * image->cluster_size);
    for (u32 i = 0; i < refcounts->loaded_room; i++) {
        refcounts->loaded[i].data = memory + i * image->cluster_size;
    }
    refcounts->hooked = heap_take(HOOKED_ROOM * sizeof(u32));
    ranges_open(&refcounts->freed, FREED_ROOM);
}

u64 refcounts_end(const struct refcounts *refcounts) {
    u64 entries = refcounts->table_entries;
    while (entries > 0 && refcounts->table[entries - 1] == 0) {
        entries--;
    }
    return entries << refcounts->block_bits;
}

static struct loaded_block *find_loaded(struct refcounts *refcounts, u32 table_index) {
    for (u32 n = 0; n < refcounts->loaded_count; n++) {
        u32 i = (refcounts->last + n) % refcounts->loaded_count;
        if (refcounts->loaded[i].table_index == table_index) {
            refcounts->last = i;
            return &refcounts->loaded[i];
        }
    }
    return NULL;
}

/* The block in memory that counts a held cluster, and the index there; NULL: it is as the disk has it. */
static struct loaded_block *block_of_held(struct refcounts *refcounts, const struct held_cluster *held, u64 *index) {
    *index = held->cluster & (block_size(refcounts) - 1);
    return find_loaded(refcounts, (u32)(held->cluster >> refcounts->block_bits));
}

/* Held clusters count one more while blocks are written. */
static void lift_held(struct refcounts *refcounts) {
    const u32 order = refcounts->image->refcount_order;
    u64 index;
    for (u32 i = 0; i < refcounts->held_count; i++) {
        const struct loaded_block *block = block_of_held(refcounts, &refcounts->held[i], &index);
        refcounts->held[i].refcount = block != NULL ? block_get(block->data, order, index) : 0;
    }
    for (u32 i = 0; i < refcounts->held_count; i++) {
        const struct loaded_block *block = block_of_held(refcounts, &refcounts->held[i], &index);
        if (block != NULL) {
            u64 now = block_get(block->data, order, index);
            block_set(block->data, order, index, now < refcounts->max ? now + 1 : now);
        }
    }
}

static void lower_held(struct refcounts *refcounts) {
    u64 index;
    for (u32 i = 0; i < refcounts->held_count; i++) {
        struct loaded_block *block = block_of_held(refcounts, &refcounts->held[i], &index);
        if (block != NULL) {
            block_set(block->data, refcounts->image->refcount_order, index, refcounts->held[i].refcount);
            block->dirty = true;
        }
    }
}

/* Writes every changed block; no order among them is needed. */
static void write_blocks(struct refcounts *refcounts) {
    struct qcow2 *image = refcounts->image;
    lift_held(refcounts);
    for (u32 i = 0; i < refcounts->loaded_count; i++) {
        struct loaded_block *block = &refcounts->loaded[i];
        if (block->dirty) {
            disk_queue_write(&image->disk, refcounts->table[block->table_index], block->data, image->cluster_size);
            block->dirty = false;
        }
    }
    disk_run();
    lower_held(refcounts);
}

static void write_hooked(struct refcounts *refcounts) {
    struct qcow2 *image = refcounts->image;
    if (refcounts->hooked_count == 0) {
        return;
    }
    disk_flush(&image->disk);
    for (u32 i = 0; i < refcounts->hooked_count; i++) {
        u8 entry[8];
        store64(entry, refcounts->table[refcounts->hooked[i]]);
        disk_write(&image->disk, image->refcount_table_offset + 8ull * refcounts->hooked[i], entry, sizeof(entry));
    }
    refcounts->hooked_count = 0;
}

/* A place in memory for a block: a new one, else one that is written already. */
static struct loaded_block *take_place(struct refcounts *refcounts) {
    if (refcounts->loaded_count < refcounts->loaded_room) {
        return &refcounts->loaded[refcounts->loaded_count++];
    }
    for (u32 tries = 0; tries < refcounts->loaded_room; tries++) {
        refcounts->victim = (refcounts->victim + 1) % refcounts->loaded_room;
        if (!refcounts->loaded[refcounts->victim].dirty) {
            return &refcounts->loaded[refcounts->victim];
        }
    }
    if (refcounts->held_count > 0) {
        refcounts->relieve(refcounts->relieve_context);
    }
    write_blocks(refcounts);
    write_hooked(refcounts);
    return &refcounts->loaded[refcounts->victim];
}

static bool has_block(const struct refcounts *refcounts, u64 table_index) {
    return table_index < refcounts->table_entries && refcounts->table[table_index] != 0;
}

static struct loaded_block *load_block(struct refcounts *refcounts, u32 table_index) {
    struct loaded_block *block = find_loaded(refcounts, table_index);
    if (block == NULL) {
        block = take_place(refcounts);
        block->table_index = table_index;
        refcounts->last = (u32)(block - refcounts->loaded);
        struct qcow2 *image = refcounts->image;
        disk_read(&image->disk, refcounts->table[table_index], block->data, image->cluster_size);
    }
    return block;
}

/* An empty block in memory for table entry table_index, to lie at `offset`. */
static struct loaded_block *new_block(struct refcounts *refcounts, u32 table_index, u64 offset) {
    struct loaded_block *block = take_place(refcounts);
    refcounts->table[table_index] = offset;
    block->table_index = table_index;
    block->dirty = true;
    memset(block->data, 0, refcounts->image->cluster_size);
    return block;
}

u64 refcounts_get(struct refcounts *refcounts, u64 cluster) {
    u64 table_index = cluster >> refcounts->block_bits;
    if (!has_block(refcounts, table_index)) {
        return 0;
    }
    const struct loaded_block *block = load_block(refcounts, (u32)table_index);
    return block_get(block->data, refcounts->image->refcount_order, cluster & (block_size(refcounts) - 1));
}

static void set_refcount(struct refcounts *refcounts, u64 cluster, u64 value) {
    struct loaded_block *block = load_block(refcounts, (u32)(cluster >> refcounts->block_bits));
    block_set(block->data, refcounts->image->refcount_order, cluster & (block_size(refcounts) - 1), value);
    block->dirty = true;
}

void refcounts_hold(struct refcounts *refcounts, void (*relieve)(void *context), void *context) {
    refcounts->held = heap_take(HELD_ROOM * sizeof(*refcounts->held));
    refcounts->relieve = relieve;
    refcounts->relieve_context = context;
}

void refcounts_let_go(struct refcounts *refcounts) { refcounts->held_count = 0; }

static void hold(struct refcounts *refcounts, u64 cluster) {
    if (refcounts->held == NULL) {
        return;
    }
    if (refcounts->held_count == HELD_ROOM) {
        refcounts->relieve(refcounts->relieve_context);
    }
    refcounts->held[refcounts->held_count++].cluster = cluster;
}

/* Before clusters are taken: are they free on the disk as well? */
static void make_free(struct refcounts *refcounts, u64 first, u64 count) {
    for (u32 i = 0; i < refcounts->held_count; i++) {
        if (refcounts->held[i].cluster - first < count) {
            refcounts->relieve(refcounts->relieve_context);
            return;
        }
    }
}

/* alloc_clusters_noref(): the first run of free clusters from the cursor on. */
static u64 find_free(struct refcounts *refcounts, u64 count) {
    for (u64 run = 0; run < count;) {
        run = refcounts_get(refcounts, refcounts->cursor++) == 0 ? run + 1 : 0;
    }
    u64 first = refcounts->cursor - count;
    if (count > 0 && refcounts->cursor - 1 > HOST_OFFSET_MAX >> refcounts->image->cluster_bits) {
        refuse(REFUSAL_FILE_TOO_BIG);
    }
    make_free(refcounts, first, count);
    /* What is taken will be written in full: it must not be punched later. */
    ranges_remove(&refcounts->freed, first << refcounts->image->cluster_bits, count << refcounts->image->cluster_bits);
    return first;
}

/* A larger table in memory, with the entries of the old one and of the block just made. */
static u64 *larger_table(struct refcounts *refcounts, u64 entries, u64 block_index, u64 block_offset) {
    u64 *table = heap_take_zeroed(entries * 8);
    memcpy(table, refcounts->table, min64(refcounts->table_entries, entries) * 8);
    table[block_index] = block_offset;
    return table;
}

/* qcow2_refcount_area(): the table is too small, so new blocks and a new table are put behind
 * everything, in clusters that they count themselves; then the header is switched to them. */
static void grow_table(struct refcounts *refcounts, u64 cluster, u64 block_index, u64 block_offset) {
    struct qcow2 *image = refcounts->image;
    u64 used = divide_up(max64(cluster, block_offset >> image->cluster_bits) + 1, block_size(refcounts));
    u64 start = used << refcounts->block_bits; /* a cluster index */
    u64 blocks = refcount_blocks_for(image->cluster_size, block_size(refcounts), start);
    u64 entries = round_up(blocks + divide_up(blocks, 2), image->cluster_size / 8);
    if (entries > REFCOUNT_TABLE_BYTES_MAX / 8) {
        refuse(REFUSAL_FILE_TOO_BIG);
    }
    u64 old_offset = image->refcount_table_offset;
    u64 old_bytes = 8ull * refcounts->table_entries;
    refcounts->table = larger_table(refcounts, entries, block_index, block_offset);
    refcounts->table_entries = (u32)entries;
    u64 missing = 0;
    for (u64 i = used; i < blocks; i++) {
        missing += refcounts->table[i] == 0;
    }
    u64 table_clusters = entries * 8 / image->cluster_size;
    u64 end = start + missing + table_clusters;
    disk_queue_reserve(&image->disk, start << image->cluster_bits, (end - start) << image->cluster_bits);
    disk_run();
    for (u64 i = used, next = start; i < blocks; i++) {
        if (refcounts->table[i] == 0) {
            new_block(refcounts, (u32)i, next++ << image->cluster_bits);
        }
    }
    for (u64 i = start; i < end; i++) {
        set_refcount(refcounts, i, 1);
    }
    write_blocks(refcounts);
    refcounts->hooked_count = 0; /* all of them are in the new table */
    u8 *raw = heap_take(entries * 8);
    for (u64 i = 0; i < entries; i++) {
        store64(raw + 8 * i, refcounts->table[i]);
    }
    disk_write(&image->disk, (start + missing) << image->cluster_bits, raw, entries * 8);
    disk_flush(&image->disk);
    image->refcount_table_offset = (start + missing) << image->cluster_bits;
    image->refcount_table_clusters = (u32)table_clusters;
    header_write_refcount_table(image);
    disk_flush(&image->disk);
    refcounts_free(refcounts, old_offset, old_bytes, false);
}

static bool add_reference(struct refcounts *refcounts, u64 first, u64 count);

/* alloc_refcount_block(): makes the block that counts `cluster`. The caller has to look for its
 * clusters again, for the block may have taken them. */
static void make_block(struct refcounts *refcounts, u64 cluster) {
    struct qcow2 *image = refcounts->image;
    u64 index = cluster >> refcounts->block_bits;
    u64 at = find_free(refcounts, 1);
    bool counts_itself = at >> refcounts->block_bits == index;
    if (!counts_itself && !add_reference(refcounts, at, 1)) {
        return; /* made the block that counts the new one; the search starts again */
    }
    u64 offset = at << image->cluster_bits;
    disk_queue_reserve(&image->disk, offset, image->cluster_size);
    disk_run();
    if (index < refcounts->table_entries) {
        new_block(refcounts, (u32)index, offset);
        if (counts_itself) {
            set_refcount(refcounts, at, 1);
        }
        if (refcounts->hooked_count == HOOKED_ROOM) {
            write_blocks(refcounts);
            write_hooked(refcounts);
        }
        refcounts->hooked[refcounts->hooked_count++] = (u32)index;
        return;
    }
    u8 *block = heap_take_zeroed(image->cluster_size);
    if (counts_itself) {
        block_set(block, image->refcount_order, at & (block_size(refcounts) - 1), 1);
    }
    disk_write(&image->disk, offset, block, image->cluster_size);
    grow_table(refcounts, cluster, index, offset);
}

/* update_refcount() with +1. False: a block had to be made, nothing is counted, start again. */
static bool add_reference(struct refcounts *refcounts, u64 first, u64 count) {
    for (u64 i = first; i < first + count; i++) {
        if (!has_block(refcounts, i >> refcounts->block_bits)) {
            for (u64 done = first; done < i; done++) {
                set_refcount(refcounts, done, refcounts_get(refcounts, done) - 1);
            }
            make_block(refcounts, i);
            refcounts->cursor = min64(refcounts->cursor, first);
            return false;
        }
        set_refcount(refcounts, i, refcounts_get(refcounts, i) + 1);
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
        first = find_free(refcounts, count);
    } while (!add_reference(refcounts, first, count));
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
        make_free(refcounts, first, taken);
    } while (!add_reference(refcounts, first, taken));
    ranges_remove(&refcounts->freed, offset, taken << refcounts->image->cluster_bits);
    return taken;
}

u64 refcounts_allocate_bytes(struct refcounts *refcounts, u64 bytes) {
    const u64 cluster = refcounts->image->cluster_size;
    u64 offset = refcounts->free_byte;
    bool counted;
    if (offset != 0 && refcounts_get(refcounts, offset / cluster) == refcounts->max) {
        offset = 0;
    }
    u64 room = cluster - offset % cluster;
    do {
        if (offset == 0 || room < bytes) {
            u64 fresh = find_free(refcounts, 1) * cluster;
            bool continues = offset != 0 && round_up(offset, cluster) == fresh;
            offset = continues ? offset : fresh;
            room = continues ? room + cluster : cluster;
            if (fresh + cluster - 1 > compressed_offset_max(refcounts->image)) {
                refuse(REFUSAL_FILE_TOO_BIG);
            }
        }
        u64 first = offset / cluster;
        counted = add_reference(refcounts, first, (offset + bytes - 1) / cluster - first + 1);
        offset = counted ? offset : 0;
    } while (!counted);
    refcounts->free_byte = (offset + bytes) % cluster != 0 ? offset + bytes : 0;
    return offset;
}

bool refcounts_take(struct refcounts *refcounts, u64 first_cluster, u64 count) {
    for (u64 i = first_cluster; i < first_cluster + count; i++) {
        if (!has_block(refcounts, i >> refcounts->block_bits) || refcounts_get(refcounts, i) != 0) {
            return false;
        }
    }
    return add_reference(refcounts, first_cluster, count);
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
        hold(refcounts, i);
        set_refcount(refcounts, i, refcount - 1);
        if (refcount > 1) {
            continue;
        }
        refcounts->cursor = min64(refcounts->cursor, i);
        if (punch) {
            if (ranges_full(&refcounts->freed)) {
                write_blocks(refcounts);
                disk_flush(&image->disk);
                refcounts_discard(refcounts);
            }
            ranges_add(&refcounts->freed, i << image->cluster_bits, image->cluster_size);
        }
    }
}

static bool is_empty(struct refcounts *refcounts, u32 index) {
    u64 own = refcounts->table[index] >> refcounts->image->cluster_bits;
    bool counts_itself = own >> refcounts->block_bits == index;
    for (u64 i = 0; i < block_size(refcounts); i++) {
        u64 cluster = ((u64)index << refcounts->block_bits) + i;
        if (refcounts_get(refcounts, cluster) != 0 && !(counts_itself && cluster == own)) {
            return false;
        }
    }
    return true;
}

void refcounts_shrink(struct refcounts *refcounts) {
    struct qcow2 *image = refcounts->image;
    u64 *dropped = heap_take_zeroed(8ull * refcounts->table_entries);
    u8 *raw = heap_take(8ull * refcounts->table_entries);
    for (u32 i = 0; i < refcounts->table_entries; i++) {
        if (refcounts->table[i] != 0 && is_empty(refcounts, i)) {
            dropped[i] = refcounts->table[i];
        }
        store64(raw + 8ull * i, dropped[i] != 0 ? 0 : refcounts->table[i]);
    }
    write_blocks(refcounts);
    write_hooked(refcounts);
    disk_flush(&image->disk);
    disk_write(&image->disk, image->refcount_table_offset, raw, 8ull * refcounts->table_entries);
    disk_flush(&image->disk);
    for (u32 i = 0; i < refcounts->table_entries; i++) {
        if (dropped[i] == 0) {
            continue;
        }
        /* A block that counted only itself goes with its table entry; there is nothing left to lower. */
        bool counts_itself = dropped[i] >> image->cluster_bits >> refcounts->block_bits == i;
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
        struct loaded_block *block = find_loaded(refcounts, i);
        if (block != NULL) {
            block->dirty = false;
            block->table_index = UINT32_MAX;
        }
        refcounts->table[i] = 0;
    }
}

void refcounts_reserve(struct refcounts *refcounts) {
    struct qcow2 *image = refcounts->image;
    for (u32 i = 0; i < refcounts->table_entries; i++) {
        if (refcounts->table[i] != 0) {
            disk_queue_reserve(&image->disk, refcounts->table[i], image->cluster_size);
        }
    }
    disk_run();
}

void refcounts_write_back(struct refcounts *refcounts) {
    write_blocks(refcounts);
    write_hooked(refcounts);
    if (refcounts->held_count == 0) {
        refcounts->loaded_count = 0; /* who changes blocks in bulk must not meet an old copy here */
        refcounts->last = 0;
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
