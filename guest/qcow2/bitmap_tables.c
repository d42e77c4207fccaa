/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/bitmap_tables.h"

#define TABLE_PART 65536u /* entries that are read together */

/* False: enough. table: as stored. */
static bool visit_part(const u64 *table, u64 first, u64 count, bitmap_visit *visit, void *context) {
    for (u64 i = 0; i < count; i++) {
        if (!visit(context, first + i, swap64(table[i]))) {
            return false;
        }
    }
    return true;
}

void bitmap_visit_table(struct disk *disk, const struct bitmap *bitmap, bitmap_visit *visit, void *context) {
    void *mark = heap_mark();
    u64 *table = heap_take(TABLE_PART * sizeof(u64));
    bool more = true;
    for (u64 first = 0; first < bitmap->table_entries && more; first += TABLE_PART) {
        u64 count = min64(bitmap->table_entries - first, TABLE_PART);
        disk_read(disk, bitmap->table_offset + 8 * first, table, 8 * count);
        more = visit_part(table, first, count, visit, context);
    }
    heap_release(mark);
}

void bitmap_tables_open(struct bitmap_tables *tables, struct disk *disk, const struct bitmap *bitmaps, u32 count,
                        u32 left_out) {
    *tables = (struct bitmap_tables){.disk = disk, .bitmaps = bitmaps, .count = count, .left_out = left_out};
    tables->memory = heap_take(TABLE_PART * sizeof(u64));
}

/* Entries that are kept in memory. */
static u32 entries_of(const struct bitmap_tables *tables, u32 index) {
    const struct bitmap *bitmap = &tables->bitmaps[index];
    return (bitmap->flags & tables->left_out) != 0 ? 0 : bitmap->table_entries;
}

static bool inside_file(const struct disk *disk, u64 offset, u64 bytes) {
    return offset <= disk->size && bytes <= disk->size - offset;
}

/* Those from `index` on that fit. */
static void read_from(struct bitmap_tables *tables, u32 index) {
    u64 used = 0;
    tables->table = tables->memory;
    tables->first = tables->end = index;
    for (; tables->end < tables->count && tables->end - index < DOORBELL_BATCH; tables->end++) {
        const u64 offset = tables->bitmaps[tables->end].table_offset;
        const u32 entries = entries_of(tables, tables->end);
        if (entries > TABLE_PART - used || !inside_file(tables->disk, offset, 8ull * entries)) {
            break;
        }
        disk_queue_read(tables->disk, offset, tables->memory + used, 8ull * entries);
        used += entries;
    }
    disk_run();
}

const u64 *bitmap_tables_get(struct bitmap_tables *tables, u32 index) {
    if (index < tables->first || index >= tables->end) {
        read_from(tables, index);
    }
    if (index >= tables->end) {
        return NULL;
    }
    for (; tables->first < index; tables->first++) {
        tables->table += entries_of(tables, tables->first);
    }
    return tables->table;
}

void bitmap_tables_visit(struct bitmap_tables *tables, u32 index, bitmap_visit *visit, void *context) {
    const u64 *table = bitmap_tables_get(tables, index);
    if (table != NULL) {
        visit_part(table, 0, tables->bitmaps[index].table_entries, visit, context);
    } else {
        bitmap_visit_table(tables->disk, &tables->bitmaps[index], visit, context);
    }
}
