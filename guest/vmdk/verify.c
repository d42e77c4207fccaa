/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "vmdk/verify.h"

#include "vmdk/grains.h"

/* Units of the file from `start` to `end`, a bit each: what is in use already. */
struct used {
    u64 start;
    u64 end;
    u64 unit; /* bytes */
    u64 *words;
};

static void used_open(struct used *used, u64 start, u64 end, u64 unit) {
    *used = (struct used){.start = start, .end = end, .unit = unit};
    used->words = heap_take_zeroed(8 * divide_up(divide_up(end - start, unit), 64));
}

enum mark {
    MARKED,
    MARK_OUTSIDE,
    MARK_OVERLAPS
};

/* Marks whole units; `offset` is on the border of one. */
static enum mark mark(struct used *used, u64 offset, u64 length) {
    if (offset < used->start || offset > used->end || length > used->end - offset) {
        return MARK_OUTSIDE;
    }
    u64 first = (offset - used->start) / used->unit;
    u64 end = divide_up(offset - used->start + length, used->unit);
    for (u64 i = first; i < end; i++) {
        u64 bit = 1ull << (i % 64);
        if ((used->words[i / 64] & bit) != 0) {
            return MARK_OVERLAPS;
        }
        used->words[i / 64] |= bit;
    }
    return MARKED;
}

static void require(enum mark found, enum table table, u64 at, u64 index, u64 sector) {
    if (found != MARKED) {
        enum refusal code = found == MARK_OUTSIDE ? REFUSAL_VMDK_OUTSIDE : REFUSAL_VMDK_OVERLAP;
        refuse(code, .a = table, .b = at, .c = index, .d = sector, .e = sector * SECTOR);
    }
}

/* One of the two directories, and the tables that it names. They may be those of the first one: then there is one copy
 * of them, as readers have it. */
static void verify_directory(struct vmdk *image, struct used *used, u64 offset, bool grows) {
    u32 entries[512];
    u32 first[512];
    require(mark(used, offset, 4 * image->tables), TABLE_HEADER, 0, 0, offset / SECTOR);
    for (u64 index = 0; index < image->tables;) {
        u32 count = (u32)min64(image->tables - index, sizeof(entries) / 4);
        directory_read(image, offset, index, count, entries);
        directory_read(image, image->directory_offset, index, count, first);
        for (u32 i = 0; i < count; i++) {
            if (entries[i] == 0 && !grows) {
                continue;
            }
            if (entries[i] == 0) {
                refuse(REFUSAL_VMDK_NO_TABLE, .a = TABLE_GRAIN_DIRECTORY, .b = offset, .c = index + i);
            }
            directory_check(image, offset, index + i, entries[i]);
            if (offset != image->directory_offset && entries[i] == first[i]) {
                continue;
            }
            require(mark(used, entries[i] * SECTOR, table_bytes(image)), TABLE_GRAIN_DIRECTORY, offset, index + i,
                    entries[i]);
        }
        index += count;
    }
}

static void verify_metadata(struct vmdk *image, bool grows) {
    void *before = heap_mark();
    struct used used;
    used_open(&used, 0, image->data_offset, SECTOR);
    require(mark(&used, 0, DESCRIPTOR_OFFSET + image->descriptor_size), TABLE_HEADER, 0, 0, 0);
    verify_directory(image, &used, image->directory_offset, grows);
    if (image->redundant_offset != 0) {
        verify_directory(image, &used, image->redundant_offset, grows);
    }
    heap_release(before);
}

/* False: a grain is not on the border of a unit; *sector becomes its place. */
static bool verify_table(const struct vmdk *image, struct used *used, const u8 *table, u64 at, u32 *sector) {
    for (u64 i = 0; i < image->table_entries; i++) {
        u32 entry = little32(table + 4 * i);
        if (entry == ENTRY_NO_GRAIN || (entry == ENTRY_ZEROED && image->has_zeroed_grains)) {
            continue;
        }
        if (entry * SECTOR >= used->start && (entry * SECTOR - used->start) % used->unit != 0) {
            *sector = entry;
            return false;
        }
        require(mark(used, entry * SECTOR, image->grain_size), TABLE_GRAIN_TABLE, at, i, entry);
    }
    return true;
}

static bool verify_grains(struct vmdk *image, struct grains *grains, u64 unit, u32 *sector) {
    void *before = heap_mark();
    struct used used;
    used_open(&used, image->data_offset, max64(image->disk.size, image->data_offset), unit);
    for (u64 index = 0; index < image->tables; index++) {
        const u8 *table = grains_need(grains, index);
        u64 at = grains->directory[index - grains->first] * SECTOR;
        if (table != NULL && !verify_table(image, &used, table, at, sector)) {
            heap_release(before);
            return false;
        }
    }
    heap_release(before);
    return true;
}

void vmdk_verify(struct vmdk *image, bool grows) {
    void *before = heap_mark();
    struct grains grains;
    u32 sector = 0;
    result_disk(image->disk.index);
    verify_metadata(image, grows);
    grains_open(&grains, image, DOORBELL_BATCH * table_bytes(image));
    u64 unit = image->grain_size; /* as programs place them; a smaller one takes more memory */
    while (!verify_grains(image, &grains, unit, &sector)) {
        u64 distance = sector * SECTOR - image->data_offset;
        unit = distance & -distance;
    }
    heap_release(before);
    result_disk(0);
}
