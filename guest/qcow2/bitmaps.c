/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/bitmaps.h"

#define EXTENSION_BYTES 24
#define ENTRY_FIXED 24
#define NAME_MAX 1023
#define TABLE_ENTRIES_MAX 0x8000000u
#define PAYLOAD_MAX 0x20000000ull
#define FLAG_IN_USE 1u
#define FLAGS_KNOWN 3u
#define TYPE_DIRTY 1

_Noreturn void bitmaps_refuse(enum bitmaps_fault fault, const u8 *name, u64 length, u64 value) {
    refuse_text(REFUSAL_BITMAPS_EXTENSION, name, length, fault, value);
}

void bitmaps_read_extension(struct qcow2 *image, const u8 *data, u32 length) {
    if (length != EXTENSION_BYTES) {
        bitmaps_refuse(BITMAPS_LENGTH, NULL, 0, length);
    }
    image->has_bitmaps_extension = true;
    if ((image->autoclear & AUTOCLEAR_BITMAPS) == 0) {
        return;
    }
    image->bitmap_count = load32(data);
    image->bitmap_directory_size = load64(data + 8);
    image->bitmap_directory_offset = load64(data + 16);
    if (load32(data + 4) != 0) {
        bitmaps_refuse(BITMAPS_RESERVED, NULL, 0, 0);
    }
    if (image->bitmap_count > BITMAPS_MAX) {
        bitmaps_refuse(BITMAPS_COUNT, NULL, 0, image->bitmap_count);
    }
    if (image->bitmap_count == 0) {
        bitmaps_refuse(BITMAPS_NONE, NULL, 0, 0);
    }
    if (offset_in_cluster(image, image->bitmap_directory_offset) != 0) {
        bitmaps_refuse(BITMAPS_OFFSET, NULL, 0, image->bitmap_directory_offset);
    }
    if (image->bitmap_directory_size > BITMAP_DIRECTORY_BYTES_MAX) {
        bitmaps_refuse(BITMAPS_DIRECTORY_SIZE, NULL, 0, image->bitmap_directory_size);
    }
}

bool bitmaps_present(const struct qcow2 *image) { return image->bitmap_count > 0; }

static void check_entry(const struct qcow2 *image, const u8 *entry, const struct bitmap *bitmap) {
    u32 flags = load32(entry + 12);
    u32 granularity_bits = entry[17];
    u64 payload = (u64)bitmap->table_entries * image->cluster_size;
    bool bad = bitmap->table_entries == 0 || bitmap->table_offset == 0 ||
               offset_in_cluster(image, bitmap->table_offset) != 0 || bitmap->table_entries > TABLE_ENTRIES_MAX ||
               granularity_bits > 31 || granularity_bits < 9 || (flags & ~FLAGS_KNOWN) != 0 ||
               bitmap->name_length > NAME_MAX || entry[16] != TYPE_DIRTY || payload > PAYLOAD_MAX;
    bool too_small = !bad && (flags & FLAG_IN_USE) == 0 && image->virtual_size > (payload * 8) << granularity_bits;
    if (bad || too_small) {
        bitmaps_refuse(BITMAPS_ENTRY, bitmap->name, bitmap->name_length, 0);
    }
}

struct bitmap *bitmaps_read(struct qcow2 *image) {
    u64 size = image->bitmap_directory_size;
    if (size == 0) {
        bitmaps_refuse(BITMAPS_EMPTY_DIRECTORY, NULL, 0, 0);
    }
    if (image->bitmap_directory_offset > image->disk.size || size > image->disk.size - image->bitmap_directory_offset) {
        refuse(REFUSAL_TRUNCATED, TABLE_BITMAP_DIRECTORY, image->bitmap_directory_offset, image->disk.size, 0, 0, 0);
    }
    struct bitmap *bitmaps = heap_take(image->bitmap_count * sizeof(*bitmaps));
    u8 *directory = heap_take(size);
    disk_read(&image->disk, image->bitmap_directory_offset, directory, size);
    u32 count = 0;
    u64 at = 0;
    while (at < size) {
        const u8 *entry = directory + at;
        if (size - at < ENTRY_FIXED) {
            bitmaps_refuse(BITMAPS_BROKEN, NULL, 0, 0);
        }
        if (count == image->bitmap_count) {
            bitmaps_refuse(BITMAPS_MORE, NULL, 0, 0);
        }
        u64 name_length = load16(entry + 18);
        u64 extra = load32(entry + 20);
        u64 length = round_up(ENTRY_FIXED + extra + name_length, 8);
        if (length > size - at) {
            bitmaps_refuse(BITMAPS_BROKEN, NULL, 0, 0);
        }
        if (extra != 0) {
            bitmaps_refuse(BITMAPS_EXTRA, NULL, 0, 0);
        }
        struct bitmap *bitmap = &bitmaps[count++];
        *bitmap = (struct bitmap){load64(entry), load32(entry + 8), (u16)name_length, entry + ENTRY_FIXED};
        check_entry(image, entry, bitmap);
        at += length;
    }
    if (count < image->bitmap_count) {
        bitmaps_refuse(BITMAPS_LESS, NULL, 0, 0);
    }
    return bitmaps;
}
