/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Changes of bitmaps: their extension, directory, tables and bits.
 */
#include "mutate.h"
#include "qcow2/bitmaps.h"

enum {
    EXTENSION = 0x23852875
};

/* Where the data of the bitmaps extension stands in the header; 0 when there is none. */
static u64 extension_at(const struct layout *at) {
    u64 place = load32(at->image + 4) == 3 ? load32(at->image + 100) : 72;
    while (place + 32 <= at->size && inside(at, place, 32)) {
        u32 kind = load32(at->image + place);
        if (kind == EXTENSION) {
            return place + 8;
        }
        if (kind == 0) {
            return 0;
        }
        place += 8 + round_up(load32(at->image + place + 4), 8);
    }
    return 0;
}

/* The offset of a directory entry, the place behind the last one for index `count`; length when it is not inside. */
static u64 entry_at(const struct layout *at, u64 extension, u64 index) {
    u64 offset = read64(at, extension + 16);
    for (u64 i = 0; i < index; i++) {
        if (!inside(at, offset, BITMAP_ENTRY_FIXED)) {
            return at->length;
        }
        const u8 *entry = at->image + offset;
        offset += round_up(BITMAP_ENTRY_FIXED + (u64)load16(entry + 18) + load32(entry + 20), 8);
    }
    return inside(at, offset, BITMAP_ENTRY_FIXED) ? offset : at->length;
}

static void change_entry(const struct layout *at, u8 *entry) {
    static const u8 fields[] = {0, 0, 8, 12, 16, 17, 17, 18, 20, 24};
    u64 field = fields[number(at, sizeof(fields))];
    if (field == 0) {
        store64(entry, some_offset(at));
    } else if (field == 8 || field == 20) {
        store32(entry + field, (u32)some_number(at));
    } else if (field == 12) {
        store32(entry + field, (u32)number(at, 5));
    } else if (field == 17) {
        entry[field] = (u8)(number(at, 4) == 0 ? number(at, 256) : 9 + number(at, 8));
    } else if (field == 18) {
        store16(entry + field, (u16)number(at, 10));
    } else {
        entry[field] = (u8)number(at, 3);
    }
}

static void change_table(const struct layout *at, const u8 *entry) {
    u64 place = load64(entry) + 8 * number(at, load32(entry + 8));
    u64 word = number(at, 4) == 0 ? number(at, 4) : some_offset(at);
    write64(at, place, number(at, 8) == 0 ? some_number(at) : word);
}

static void change_bits(const struct layout *at, const u8 *entry) {
    u64 data = read64(at, load64(entry) + 8 * number(at, load32(entry + 8))) & ENTRY_OFFSET;
    for (u64 i = 0; data != 0 && i < 4; i++) {
        write64(at, data + 8 * number(at, at->size / 8), 0 - number(at, 3));
    }
}

void change_bitmaps(const struct layout *at) {
    u64 extension = extension_at(at);
    if (extension == 0) {
        return;
    }
    u64 count = load32(at->image + extension);
    u64 place = entry_at(at, extension, number(at, min64(count, 8)));
    switch (number(at, 12)) {
    case 0:
        write64(at, 88, number(at, 4));
        break;
    case 1:
        write64(at, extension + 16, some_offset(at));
        break;
    case 2:
        write64(at, extension + 8, number(at, 2) == 0 ? some_number(at) : 8 * number(at, 16));
        break;
    case 3:
        store32(at->image + extension, (u32)number(at, 5));
        break;
    default:
        if (place >= at->length) {
            break;
        }
        if (number(at, 3) == 0) {
            change_entry(at, at->image + place);
        } else if (number(at, 2) == 0) {
            change_table(at, at->image + place);
        } else {
            change_bits(at, at->image + place);
        }
    }
}

void count_bitmaps(const struct layout *at) {
    u64 extension = extension_at(at);
    if (extension == 0) {
        return;
    }
    u64 count = min64(load32(at->image + extension), 64);
    count_range(at, read64(at, extension + 16), read64(at, extension + 8));
    for (u64 i = 0; i < count; i++) {
        u64 place = entry_at(at, extension, i);
        if (place >= at->length) {
            return;
        }
        u64 table = load64(at->image + place);
        u64 entries = min64(load32(at->image + place + 8), at->length / 8);
        count_range(at, table, 8 * entries);
        for (u64 k = 0; k < entries; k++) {
            u64 data = read64(at, table + 8 * k) & ENTRY_OFFSET;
            count_range(at, data, data != 0 ? at->size : 0);
        }
    }
}
