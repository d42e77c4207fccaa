/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/mapping.h"

#define L1_CHUNK (MIB / 8) /* entries that are written at a time */

bool mapping_same_table(const struct mapping *mapping, const struct mapping *unlike, u32 index) {
    return unlike != NULL && index < unlike->entries && ((unlike->l1[index] ^ mapping->l1[index]) & ENTRY_OFFSET) == 0;
}

void mapping_read(struct qcow2 *image, struct mapping *mapping, u64 offset, u32 entries, u32 room) {
    mapping->offset = offset;
    mapping->entries = room;
    mapping->l1 = heap_take_zeroed(8ull * room);
    disk_read(&image->disk, offset, mapping->l1, 8ull * entries);
    for (u32 i = 0; i < entries; i++) {
        mapping->l1[i] = swap64(mapping->l1[i]);
    }
}

static void write_l1(struct qcow2 *image, const struct mapping *mapping, u64 offset, u32 entries, u64 mask) {
    void *mark = heap_mark();
    u64 room = min64(entries, L1_CHUNK);
    u64 *raw = heap_take(8 * room);
    for (u64 first = 0; first < entries; first += room) {
        u64 count = min64(room, entries - first);
        for (u64 i = 0; i < count; i++) {
            raw[i] = first + i < mapping->entries ? swap64(mapping->l1[first + i] & mask) : 0;
        }
        disk_write(&image->disk, offset + 8 * first, raw, 8 * count);
    }
    heap_release(mark);
}

void mapping_write(struct qcow2 *image, const struct mapping *mapping) {
    write_l1(image, mapping, mapping->offset, mapping->entries, UINT64_MAX);
}

void mapping_write_shared(struct qcow2 *image, const struct mapping *mapping, u64 offset, u32 entries) {
    write_l1(image, mapping, offset, entries, ~ENTRY_COPIED);
}

void l1_write(struct qcow2 *image, u64 first, u64 end) {
    mapping_write(image, &(struct mapping){image->l1 + first, (u32)(end - first), image->l1_offset + 8 * first});
    disk_flush(&image->disk);
}

void l1_clear(struct qcow2 *image, u64 first, u64 end) {
    void *mark = heap_mark();
    u64 bytes = 8 * (end - first);
    disk_write(&image->disk, image->l1_offset + 8 * first, heap_take_zeroed(bytes), bytes);
    disk_flush(&image->disk);
    heap_release(mark);
}

void mapping_reserve(struct qcow2 *image, const struct mapping *mapping, const struct mapping *unlike) {
    for (u32 i = 0; i < mapping->entries; i++) {
        if (mapping->l1[i] != 0 && !mapping_same_table(mapping, unlike, i)) {
            disk_queue_reserve(&image->disk, mapping->l1[i] & ENTRY_OFFSET, image->cluster_size);
        }
    }
    disk_queue_reserve(&image->disk, mapping->offset, 8ull * mapping->entries);
    disk_run();
}

void mapping_visit(struct qcow2 *image, const struct mapping *mapping, const struct mapping *unlike, u64 skip,
                   table_visit *visit, void *context) {
    struct table_batch batch;
    void *mark = heap_mark();
    tables_open(&batch, image, visit, context);
    for (u32 i = 0; i < mapping->entries; i++) {
        u64 offset = mapping->l1[i] & ENTRY_OFFSET;
        if (offset != 0 && (mapping->l1[i] & skip) == 0 && !mapping_same_table(mapping, unlike, i)) {
            tables_add(&batch, &(struct table_item){.offset = offset, .index = i});
        }
    }
    tables_run(&batch);
    heap_release(mark);
}

static bool clear_copied(void *context, const struct table_item *item, u8 *table) {
    const struct qcow2 *image = context;
    const u64 flag = 0x80; /* ENTRY_COPIED as it lies in memory: the top bit of the first byte */
    u64 *words = (u64 *)(void *)table;
    u64 step = l2_entry_size(image) / sizeof(u64);
    u64 seen = 0;
    (void)item;
    for (u64 i = 0; i < image->cluster_size / sizeof(u64); i += step) {
        seen |= words[i];
        words[i] &= ~flag;
    }
    return (seen & flag) != 0;
}

bool mapping_clear_copied(struct qcow2 *image, struct mapping *mapping, const struct mapping *unlike) {
    bool changed = false;
    mapping_visit(image, mapping, unlike, 0, clear_copied, image);
    for (u32 i = 0; i < mapping->entries; i++) {
        changed |= (mapping->l1[i] & ENTRY_COPIED) != 0;
        mapping->l1[i] &= ~ENTRY_COPIED;
    }
    return changed;
}

/* Two windows of tables side by side. */
struct comparison {
    struct qcow2 *image;
    u8 *a;
    u8 *b;
    u32 count;
    u32 room;
    u64 differences;
};

static void compare_run(struct comparison *comparison) {
    struct qcow2 *image = comparison->image;
    u32 step = l2_entry_size(image);
    disk_run();
    for (u64 i = 0; i < comparison->count * image->cluster_size; i += step) {
        u64 difference = (load64(comparison->a + i) ^ load64(comparison->b + i)) & ~ENTRY_COPIED;
        if (step == 16) {
            difference |= load64(comparison->a + i + 8) ^ load64(comparison->b + i + 8);
        }
        comparison->differences += difference != 0;
    }
    comparison->count = 0;
}

static void compare_read(struct comparison *comparison, u8 *memory, u64 offset) {
    struct qcow2 *image = comparison->image;
    u8 *table = memory + comparison->count * image->cluster_size;
    if (offset == 0) {
        memset(table, 0, image->cluster_size);
    } else {
        disk_queue_read(&image->disk, offset, table, image->cluster_size);
    }
}

u64 mapping_differences(struct qcow2 *image, const struct mapping *a, const struct mapping *b) {
    void *mark = heap_mark();
    u32 room = (u32)min64(4 * MIB / image->cluster_size, DOORBELL_BATCH / 2);
    struct comparison comparison = {.image = image, .room = room};
    comparison.a = heap_take(room * image->cluster_size);
    comparison.b = heap_take(room * image->cluster_size);
    for (u32 i = 0; i < max64(a->entries, b->entries); i++) {
        u64 offset_a = i < a->entries ? a->l1[i] & ENTRY_OFFSET : 0;
        u64 offset_b = i < b->entries ? b->l1[i] & ENTRY_OFFSET : 0;
        if (offset_a == offset_b) {
            continue;
        }
        compare_read(&comparison, comparison.a, offset_a);
        compare_read(&comparison, comparison.b, offset_b);
        if (++comparison.count == room) {
            compare_run(&comparison);
        }
    }
    compare_run(&comparison);
    heap_release(mark);
    return comparison.differences;
}
