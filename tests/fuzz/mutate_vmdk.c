/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Changes to a vmdk image: a field, an entry of a directory or of a grain table, the descriptor's text. Half of the
 * time the redundant tables become copies of the others again.
 */
#include <string.h>

#include "chain_input.h"
#include "vmdk/format.h"

/* Where things lie, as the header says. */
struct disk_layout {
    u8 *image;
    u64 length;
    u64 *random;
    u64 directory; /* bytes */
    u64 redundant;
    u64 tables;
    u64 entries; /* of a table */
    u64 grain;   /* sectors */
};

static u64 below(const struct disk_layout *at, u64 limit) { return random_below(at->random, limit); }

static bool has(const struct disk_layout *at, u64 offset, u64 bytes) {
    return offset <= at->length && bytes <= at->length - offset;
}

static u32 read32(const struct disk_layout *at, u64 offset) {
    return has(at, offset, 4) ? little32(at->image + offset) : 0;
}

static void write32(const struct disk_layout *at, u64 offset, u32 value) {
    if (has(at, offset, 4)) {
        put_little32(at->image + offset, value);
    }
}

static struct disk_layout find(u8 *image, u64 length, u64 *random) {
    struct disk_layout at = {.image = image, .length = length, .random = random};
    u64 sectors = length / SECTOR;
    at.grain = max64(little64(image + 20), 1);
    at.entries = min64(max64(little32(image + 44), 1), 512);
    at.tables = min64(divide_up(divide_up(little64(image + 12), at.grain), at.entries), length / SECTOR);
    at.redundant = min64(little64(image + 48), sectors) * SECTOR;
    at.directory = min64(little64(image + 56), sectors) * SECTOR;
    return at;
}

static u64 some_sector(const struct disk_layout *at) {
    switch (below(at, 10)) {
    case 0:
        return below(at, 4);
    case 1:
        return 1ull << below(at, 64);
    case 2:
        return 0 - below(at, 3);
    case 3:
        return at->length / SECTOR - below(at, 3);
    case 4:
    case 5:
        return below(at, at->length / SECTOR / at->grain + 1) * at->grain;
    default:
        return below(at, at->length / SECTOR);
    }
}

static void change_header(const struct disk_layout *at) {
    static const u8 wide[] = {12, 12, 20, 28, 36, 48, 56, 64, 64};
    static const u8 narrow[] = {4, 8, 8, 44, 44, 72, 76};
    u64 value = some_sector(at);
    if (below(at, 3) == 0) {
        u8 *place = at->image + narrow[below(at, sizeof(narrow))];
        put_little32(place, below(at, 2) == 0 ? little32(place) ^ 1u << below(at, 20) : (u32)value);
        return;
    }
    u8 *place = at->image + wide[below(at, sizeof(wide))];
    value = below(at, 3) == 0 ? little64(place) + below(at, 5) - 2 : value;
    memcpy(place, &value, sizeof(value));
}

static u64 some_directory(const struct disk_layout *at) { return below(at, 3) == 0 ? at->redundant : at->directory; }

/* Where an entry of a grain table stands. */
static u64 some_entry(const struct disk_layout *at) {
    u64 table = read32(at, some_directory(at) + 4 * below(at, at->tables)) * SECTOR;
    return table + 4 * below(at, below(at, 3) == 0 ? at->entries : min64(at->entries, 16));
}

static void change_text(const struct disk_layout *at) {
    static const char characters[] = "\n\r =\"09fFgRW/.\\\t";
    u8 *text = at->image + DESCRIPTOR_OFFSET;
    u64 room = min64(at->length - DESCRIPTOR_OFFSET, DESCRIPTOR_MAX);
    u64 length = 0;
    while (length < room && text[length] != 0) {
        length++;
    }
    u64 from = below(at, length + 1);
    u64 part = below(at, 40);
    switch (below(at, 4)) {
    case 0:
        text[min64(from, room - 1)] = (u8)characters[below(at, sizeof(characters))];
        break;
    case 1: /* a part is gone */
        part = min64(part, room - from);
        memmove(text + from, text + from + part, room - from - part);
        break;
    case 2: /* a part is there twice */
        part = min64(part, (room - from) / 2);
        memmove(text + from + part, text + from, room - from - part);
        break;
    default:
        text[min64(from, room - 1)] ^= (u8)(1u << below(at, 8));
    }
}

static void copy_tables(const struct disk_layout *at) {
    for (u64 i = 0; i < at->tables; i++) {
        u64 from = read32(at, at->directory + 4 * i) * SECTOR;
        u64 to = read32(at, at->redundant + 4 * i) * SECTOR;
        if (from != 0 && to != 0 && has(at, from, 4 * at->entries) && has(at, to, 4 * at->entries)) {
            memmove(at->image + to, at->image + from, 4 * at->entries);
        }
    }
}

static void change_one(const struct disk_layout *at) {
    switch (below(at, 10)) {
    case 0:
        change_header(at);
        break;
    case 1:
        write32(at, some_directory(at) + 4 * below(at, at->tables), (u32)some_sector(at));
        break;
    case 2:
        change_text(at);
        break;
    case 3: /* what another entry says */
        write32(at, some_entry(at), read32(at, some_entry(at)));
        break;
    case 4:
        write32(at, some_entry(at), (u32)below(at, 2));
        break;
    default:
        write32(at, some_entry(at), (u32)some_sector(at));
    }
}

u64 mutate_vmdk(u8 *image, u64 length, u64 room, u64 *random) {
    if (length < 2 * DESCRIPTOR_OFFSET) {
        return length;
    }
    struct disk_layout at = find(image, length, random);
    if (below(&at, 16) == 0) {
        u64 wanted = min64(room, below(&at, 2) == 0 ? below(&at, length) + SECTOR : length + below(&at, 16) * SECTOR);
        memset(image + length, 0, wanted > length ? wanted - length : 0);
        return wanted;
    }
    change_one(&at);
    if (below(&at, 2) == 0) {
        at = find(image, length, random);
        copy_tables(&at);
    }
    return length;
}

u8 *vmdk_content_id(u8 *image, u64 length, const char *key) {
    const u64 key_length = strlen(key);
    u64 end = min64(length, DESCRIPTOR_OFFSET + DESCRIPTOR_MAX);
    for (u64 at = DESCRIPTOR_OFFSET; at + key_length + 8 <= end; at++) {
        if (memcmp(image + at, key, key_length) == 0) {
            return image + at + key_length;
        }
    }
    return NULL;
}
