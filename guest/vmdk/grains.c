/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "vmdk/grains.h"

/* As check_table_count() of qcow2/lookup.c: no more tables than the file has room for. */
static void check_table_count(const struct grains *grains) {
    struct vmdk *image = grains->image;
    const u64 room = image->disk.size / table_bytes(image);
    u32 *entries = (u32 *)grains->tables;
    u64 tables = 0;
    for (u64 at = 0, count; image->tables > room && at < image->tables; at += count) {
        count = min64(grains->room * table_bytes(image) / 4, image->tables - at);
        directory_read(image, image->directory_offset, at, (u32)count, entries);
        for (u64 i = 0; i < count; i++) {
            tables += entries[i] != 0;
            if (tables > room) {
                result_disk(image->disk.index);
                refuse(REFUSAL_VMDK_OVERLAP, .a = TABLE_GRAIN_DIRECTORY, .b = image->directory_offset, .c = at + i,
                       .d = entries[i], .e = entries[i] * SECTOR);
            }
        }
    }
}

void grains_open(struct grains *grains, struct vmdk *image, u64 bytes) {
    u64 room = max64(min64(bytes / table_bytes(image), DOORBELL_BATCH), 1);
    *grains = (struct grains){.image = image, .room = (u32)room};
    grains->directory = heap_take(4 * room);
    grains->tables = heap_take(room * table_bytes(image));
    check_table_count(grains);
}

void directory_read(struct vmdk *image, u64 offset, u64 index, u32 count, u32 *entries) {
    disk_read(&image->disk, offset + 4 * index, entries, 4ull * count);
}

void directory_check(const struct vmdk *image, u64 offset, u64 index, u32 entry) {
    if (entry * SECTOR + table_bytes(image) > image->disk.size) {
        result_disk(image->disk.index);
        refuse(REFUSAL_VMDK_OUTSIDE, .a = TABLE_GRAIN_DIRECTORY, .b = offset, .c = index, .d = entry,
               .e = entry * SECTOR);
    }
}

static void load_window(struct grains *grains, u64 index) {
    struct vmdk *image = grains->image;
    grains->first = index;
    grains->count = (u32)min64(grains->room, image->tables - index);
    directory_read(image, image->directory_offset, index, grains->count, grains->directory);
    for (u32 i = 0; i < grains->count; i++) {
        if (grains->directory[i] != 0) {
            directory_check(image, image->directory_offset, index + i, grains->directory[i]);
            disk_queue_read(&image->disk, grains->directory[i] * SECTOR, grains->tables + i * table_bytes(image),
                            table_bytes(image));
        }
    }
    disk_run();
}

u8 *grains_need(struct grains *grains, u64 index) {
    if (index - grains->first >= grains->count) {
        if (grains->leave != NULL) {
            grains->leave(grains->leave_context);
        }
        load_window(grains, index);
    }
    u64 at = index - grains->first;
    return grains->directory[at] != 0 ? grains->tables + at * table_bytes(grains->image) : NULL;
}

/* One grain, from `offset` to its end; table NULL: it is not there. */
static struct extent one(const struct grains *grains, const u8 *table, u64 offset) {
    const struct vmdk *image = grains->image;
    const u64 inside = offset % image->grain_size;
    const u64 index = offset / image->grain_size % image->table_entries;
    struct extent found = {.kind = EXTENT_ABSENT, .disk = image->disk.index, .length = image->grain_size - inside};
    u32 entry = table != NULL ? little32(table + 4 * index) : ENTRY_NO_GRAIN;
    if (entry == ENTRY_NO_GRAIN) {
        return found;
    }
    if (entry == ENTRY_ZEROED && image->has_zeroed_grains) {
        found.kind = EXTENT_ZERO;
        return found;
    }
    if (entry * SECTOR < image->data_offset || entry * SECTOR >= max64(image->disk.size, image->end)) {
        u64 at = grains->directory[offset / table_covers(image) - grains->first] * SECTOR;
        result_disk(image->disk.index);
        refuse(REFUSAL_VMDK_OUTSIDE, .a = TABLE_GRAIN_TABLE, .b = at, .c = index, .d = entry, .e = entry * SECTOR);
    }
    found.kind = EXTENT_DATA;
    found.host = entry * SECTOR + inside;
    return found;
}

struct extent grains_at(struct grains *grains, u64 offset, u64 length) {
    const u64 covered = table_covers(grains->image);
    const u64 index = offset / covered;
    length = min64(length, (index + 1) * covered - offset);
    if (index >= grains->image->tables) {
        return (struct extent){.kind = EXTENT_ABSENT, .length = length};
    }
    const u8 *table = grains_need(grains, index);
    if (table == NULL) {
        return (struct extent){.kind = EXTENT_ABSENT, .length = length};
    }
    struct extent found = one(grains, table, offset);
    while (found.kind != EXTENT_ZERO && found.length < length) {
        struct extent next = one(grains, table, offset + found.length);
        if (next.kind != found.kind || (found.kind == EXTENT_DATA && next.host != found.host + found.length)) {
            break;
        }
        found.length += next.length;
    }
    found.length = min64(found.length, length);
    return found;
}
