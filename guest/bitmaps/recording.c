/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "bitmaps/recording.h"

#include "qcow2/bits.h"
#include "qcow2/extension.h"

/* A bitmap that got a new table, as it was before. */
struct replaced {
    struct bitmap old;
    u64 *table; /* the new one; NULL: it stayed as it was */
};

static bool is_usable(const struct bitmap *bitmap) { return (bitmap->flags & BITMAP_FLAG_IN_USE) == 0; }

static bool records(const struct bitmap *bitmap) {
    return is_usable(bitmap) && (bitmap->flags & BITMAP_FLAG_AUTO) != 0;
}

/* Does the bitmap change at all? */
static bool concerns(const struct recording *r, const struct bitmap *bitmap) {
    return records(bitmap) || (r->grows && is_usable(bitmap));
}

/* A usable bitmap that the larger disk makes too large would make the image unreadable. */
static void check_growth(const struct qcow2 *image, u64 size) {
    for (u32 i = 0; i < image->bitmaps.count; i++) {
        const struct bitmap *bitmap = &image->bitmaps.bitmaps[i];
        u64 bytes = divide_up(bitmap_bits(size, bitmap->granularity_bits), 8);
        if (is_usable(bitmap) && bytes > BITMAP_PAYLOAD_MAX) {
            refuse(REFUSAL_BITMAP_TOO_LARGE, .text = bitmap->name, .length = bitmap->name_length,
                   .a = 1ull << bitmap->granularity_bits, .b = bytes);
        }
    }
}

static void mark_in_use(struct recording *r) {
    struct qcow2 *image = r->image;
    struct bitmap_set *set = &image->bitmaps;
    u8 *flags = heap_take(4ull * set->count);
    for (u32 i = 0; i < set->count; i++) {
        const struct bitmap *bitmap = &set->bitmaps[i];
        if (concerns(r, bitmap)) {
            u64 at = (u64)(bitmap->name - set->directory) - BITMAP_ENTRY_FIXED;
            store32(flags + 4ull * i, bitmap->flags | BITMAP_FLAG_IN_USE);
            disk_queue_write(&image->disk, set->directory_offset + at + BITMAP_ENTRY_FLAGS, flags + 4ull * i, 4);
        }
    }
    disk_run();
    disk_flush(&image->disk);
}

void recording_start(struct recording *recording, struct qcow2 *image, struct refcounts *refcounts, u64 size,
                     u32 chunk_bits) {
    *recording = (struct recording){.image = image, .refcounts = refcounts, .chunk_bits = chunk_bits};
    bool any_records = false;
    if (!bitmaps_present(image)) {
        return;
    }
    bitmaps_read(image);
    recording->grows = size > image->virtual_size;
    check_growth(image, size);
    for (u32 i = 0; i < image->bitmaps.count; i++) {
        any_records |= records(&image->bitmaps.bitmaps[i]);
        recording->active |= concerns(recording, &image->bitmaps.bitmaps[i]);
    }
    if (any_records) {
        recording->bits = bitmap_bits(size, chunk_bits);
        recording->written = heap_take_zeroed(divide_up(recording->bits, 64) * 8);
    }
    if (recording->active) {
        mark_in_use(recording);
    }
}

void recording_note(struct recording *recording, u64 offset, u64 length) {
    if (recording->written != NULL) {
        bits_set(recording->written, offset >> recording->chunk_bits,
                 bitmap_bits(offset + length, recording->chunk_bits));
        recording->end = max64(recording->end, offset + length);
    }
}

/* The new bits of one bitmap; its entry in memory gets them. */
static void store_bitmap(struct recording *r, u32 index, struct bitmap_content *content, struct replaced *replaced) {
    struct qcow2 *image = r->image;
    struct bitmap *bitmap = &image->bitmaps.bitmaps[index];
    struct payload written = payload_in_memory(r->written, r->bits, r->chunk_bits, r->end);
    const struct bitmap_plan plan = {.image = image,
                                     .original = index,
                                     .exists = true,
                                     .keeps = true,
                                     .granularity_bits = bitmap->granularity_bits,
                                     .sources = &written,
                                     .source_count = records(bitmap) && r->written != NULL};
    u64 *windows = content->windows;
    *content = (struct bitmap_content){.plan = &plan, .refcounts = r->refcounts, .windows = windows};
    bitmap_content_make(content);
    if (!content->changed && content->table_entries == bitmap->table_entries) {
        return;
    }
    u64 bytes = 8ull * content->table_entries;
    *replaced = (struct replaced){*bitmap, content->table};
    bitmap->table_offset = refcounts_allocate(r->refcounts, bytes);
    bitmap->table_entries = content->table_entries;
    disk_write(&image->disk, bitmap->table_offset, content->table, bytes);
}

void recording_store(struct recording *r) {
    struct qcow2 *image = r->image;
    struct bitmap_set *set = &image->bitmaps;
    struct bitmap_content content = {0};
    u64 freed = 0;
    if (!r->active) {
        return;
    }
    struct replaced *replaced = heap_take_zeroed(set->count * sizeof(*replaced));
    for (u32 i = 0; i < set->count; i++) {
        if (concerns(r, &set->bitmaps[i])) {
            store_bitmap(r, i, &content, &replaced[i]);
            bitmaps_store_entry(set, i);
        }
    }
    u64 old_directory = set->directory_offset;
    set->directory_offset = refcounts_allocate(r->refcounts, set->directory_size);
    disk_write(&image->disk, set->directory_offset, set->directory, set->directory_size);
    refcounts_write_back(r->refcounts);
    disk_flush(&image->disk);
    extension_write(image);
    refcounts_free(r->refcounts, old_directory, set->directory_size, false);
    for (u32 i = 0; i < set->count; i++) {
        if (replaced[i].table != NULL) {
            bitmap_content_free(image, r->refcounts, &replaced[i].old, replaced[i].table, &freed);
        }
    }
    refcounts_write_back(r->refcounts);
    disk_flush(&image->disk);
    refcounts_discard(r->refcounts);
}
