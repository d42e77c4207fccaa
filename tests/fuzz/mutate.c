/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Changes to an image that keep most of it in order: one field or entry gets a value that means something, and half
 * of the time refcounts and flags are made to match it again, so that what follows gets past the verification.
 */
#include <string.h>

#include "mutate.h"
#include "qcow2/refcounts.h"

u64 random_below(u64 *random, u64 below) {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return below == 0 ? 0 : (*random >> 11) % below;
}

u64 number(const struct layout *at, u64 below) { return random_below(at->random, below); }

bool inside(const struct layout *at, u64 offset, u64 bytes) {
    return offset <= at->length && bytes <= at->length - offset;
}

u64 read64(const struct layout *at, u64 offset) { return inside(at, offset, 8) ? load64(at->image + offset) : 0; }

void write64(const struct layout *at, u64 offset, u64 value) {
    if (inside(at, offset, 8)) {
        store64(at->image + offset, value);
    }
}

static struct layout find_layout(u8 *image, u64 length, u64 *random) {
    struct layout at = {.image = image, .length = length, .random = random};
    bool v3 = load32(image + 4) == 3;
    at.bits = load32(image + 20);
    at.bits = at.bits < 9 || at.bits > 21 ? 9 : at.bits;
    at.size = 1ull << at.bits;
    at.order = v3 ? load32(image + 96) % 7 : 4;
    at.step = v3 && (load64(image + 72) & INCOMPATIBLE_EXTENDED_L2) != 0 ? 16 : 8;
    at.l1 = load64(image + 40);
    at.l1_entries = min64(load32(image + 36), length / 8);
    at.table = load64(image + 48);
    at.table_entries = min64(load32(image + 56) * at.size, length) / 8;
    at.snapshots = load64(image + 64);
    at.snapshot_count = min64(load32(image + 60), length / 40);
    return at;
}

/* The offset of a snapshot's table entry, or of the place behind the last one; length when it is not inside. */
static u64 snapshot_at(const struct layout *at, u64 index) {
    u64 offset = at->snapshots;
    for (u64 i = 0; i < index; i++) {
        offset = round_up(offset, 8);
        if (!inside(at, offset, 40)) {
            return at->length;
        }
        const u8 *entry = at->image + offset;
        offset += 40ull + load16(entry + 12) + load16(entry + 14) + load32(entry + 36);
    }
    return round_up(offset, 8);
}

static u64 clusters(const struct layout *at) { return divide_up(at->length, at->size); }

u64 some_offset(const struct layout *at) {
    switch (number(at, 12)) {
    case 0:
        return 0;
    case 1:
        return at->length & ~(at->size - 1);
    case 2:
        return 1ull << number(at, 64);
    case 3:
        return 0 - at->size;
    case 4:
        return number(at, at->length);
    default:
        return number(at, clusters(at)) << at->bits;
    }
}

u64 some_number(const struct layout *at) {
    static const u64 special[] = {0, 1, 2, 3, 7, 8, 9, 16, 24, 63, 64, 127, 255, 256, 1023, 1024, 4095, 65535, 65536};
    switch (number(at, 6)) {
    case 0:
        return (1ull << number(at, 64)) - number(at, 2);
    case 1:
        return ~number(at, 4);
    case 2:
        return number(at, 1 << 20);
    default:
        return special[number(at, sizeof(special) / sizeof(special[0]))];
    }
}

static u64 some_l1(const struct layout *at, u64 *entries) {
    *entries = at->l1_entries;
    if (at->snapshot_count == 0 || number(at, 2) == 0) {
        return at->l1;
    }
    u64 entry = snapshot_at(at, number(at, at->snapshot_count));
    if (!inside(at, entry, 40)) {
        return at->l1;
    }
    *entries = load32(at->image + entry + 8);
    return load64(at->image + entry);
}

static u64 some_l2(const struct layout *at) {
    u64 entries;
    u64 l1 = some_l1(at, &entries);
    return read64(at, l1 + 8 * number(at, entries)) & ENTRY_OFFSET;
}

static u64 some_entry(const struct layout *at) {
    u64 flags = number(at, 3) == 0 ? ENTRY_COPIED : 0;
    switch (number(at, 8)) {
    case 0:
        return some_number(at);
    case 1:
        return ENTRY_COMPRESSED | (number(at, 4) << (62 - (at->bits - 8))) | number(at, at->length);
    case 2:
        return some_offset(at) | flags | ENTRY_ZERO;
    case 3:
    case 4: /* what another entry says */
        return read64(at, some_l2(at) + number(at, at->size / at->step) * at->step);
    default:
        return some_offset(at) | flags;
    }
}

static void change_header(const struct layout *at) {
    static const struct {
        u8 offset;
        u8 bytes;
        bool is_offset;
    } fields[] = {
        {4, 4, false},  {8, 8, true},   {16, 4, false}, {20, 4, false}, {24, 8, false},  {32, 4, false},
        {36, 4, false}, {40, 8, true},  {48, 8, true},  {56, 4, false}, {60, 4, false},  {64, 8, true},
        {72, 8, false}, {80, 8, false}, {88, 8, false}, {96, 4, false}, {100, 4, false}, {104, 4, false},
    };
    u64 which = number(at, sizeof(fields) / sizeof(fields[0]));
    u64 old = read64(at, fields[which].offset);
    u64 value = fields[which].is_offset ? some_offset(at) : some_number(at);
    if (number(at, 3) == 0) {
        value = (fields[which].bytes == 8 ? old : old >> 32) + number(at, 5) - 2;
    }
    if (fields[which].bytes == 8) {
        store64(at->image + fields[which].offset, value);
    } else {
        store32(at->image + fields[which].offset, (u32)value);
    }
}

static void change_snapshot(const struct layout *at) {
    static const u8 fields[] = {0, 0, 8, 8, 12, 14, 16, 24, 32, 36, 40, 48, 48, 56};
    u64 entry = snapshot_at(at, number(at, at->snapshot_count));
    u64 field = fields[number(at, sizeof(fields))];
    if (!inside(at, entry, 64)) {
        return;
    }
    u8 *place = at->image + entry + field;
    if (field == 0) {
        store64(place, some_offset(at));
    } else if (field == 12 || field == 14) {
        store16(place, (u16)some_number(at));
    } else if (field == 8 || field == 36) {
        store32(place, (u32)some_number(at));
    } else {
        store64(place, number(at, 2) == 0 ? some_number(at) : number(at, 4096) * 512);
    }
}

static void change_refcount(const struct layout *at) {
    u64 block = read64(at, at->table + 8 * number(at, at->table_entries)) & ENTRY_OFFSET;
    u64 index = number(at, min64(at->size * 8 >> at->order, clusters(at)));
    if (block != 0 && inside(at, block, at->size)) {
        u64 old = block_get(at->image + block, at->order, index);
        block_set(at->image + block, at->order, index, number(at, 4) == 0 ? some_number(at) : old + number(at, 5) - 2);
    }
}

static void change_extension(const struct layout *at) {
    u64 start = 72 + number(at, at->size - 72);
    for (u64 count = 1 + number(at, 8); count > 0 && inside(at, start, 1); count--, start++) {
        at->image[start] = (u8)(number(at, 3) == 0 ? number(at, 256) : 0);
    }
}

/* Copies a piece of the image over another one: tables end up on top of each other, or twice. */
static void copy_piece(const struct layout *at) {
    u64 bytes = number(at, 4) == 0 ? at->size : 8;
    u64 from = number(at, at->length / bytes) * bytes;
    u64 to = number(at, at->length / bytes) * bytes;
    if (inside(at, from, bytes) && inside(at, to, bytes)) {
        memmove(at->image + to, at->image + from, bytes);
    }
}

/* References counted by somebody who trusts everything, and sets the refcounts to them. */
static u16 counts[INPUT_MAX / 512 + 1];

void count_range(const struct layout *at, u64 offset, u64 bytes) {
    if (bytes == 0 || !inside(at, offset & ~(at->size - 1), 1)) {
        return;
    }
    u64 last = min64(offset + bytes - 1, at->length - 1) >> at->bits;
    for (u64 i = offset >> at->bits; i <= last; i++) {
        counts[i]++;
    }
}

static void count_mapping(const struct layout *at, u64 l1, u64 entries) {
    const struct qcow2 image = {.cluster_bits = at->bits};
    count_range(at, l1, 8 * entries);
    for (u64 i = 0; i < entries && inside(at, l1 + 8 * i, 8); i++) {
        u64 table = read64(at, l1 + 8 * i) & ENTRY_OFFSET;
        if (table == 0 || !inside(at, table, at->size)) {
            continue;
        }
        count_range(at, table, at->size);
        for (u64 k = 0; k < at->size; k += at->step) {
            u64 entry = read64(at, table + k);
            u64 offset = entry & ENTRY_OFFSET;
            u64 bytes = offset != 0 ? at->size : 0;
            if ((entry & ENTRY_COMPRESSED) != 0) {
                compressed_range(&image, entry, &offset, &bytes);
            }
            count_range(at, offset, bytes);
        }
    }
}

static void set_flag(const struct layout *at, u64 place) {
    u64 entry = read64(at, place);
    u64 cluster = (entry & ENTRY_OFFSET) >> at->bits;
    if ((entry & (ENTRY_OFFSET | ENTRY_COMPRESSED)) != 0 && cluster < clusters(at)) {
        bool only = (entry & ENTRY_COMPRESSED) == 0 && counts[cluster] == 1;
        write64(at, place, (entry & ~ENTRY_COPIED) | (only ? ENTRY_COPIED : 0));
    }
}

static void set_refcounts(const struct layout *at) {
    for (u64 i = 0; i < clusters(at); i++) {
        u64 index = i >> (at->bits + 3 - at->order);
        u64 block = read64(at, at->table + 8 * index);
        u64 max = at->order >= 4 ? UINT16_MAX : (1u << (1u << at->order)) - 1;
        if (counts[i] != 0 && index < at->table_entries && block != 0 && inside(at, block, at->size)) {
            u64 within = i & ((1ull << (at->bits + 3 - at->order)) - 1);
            block_set(at->image + block, at->order, within, min64(counts[i], max));
        }
    }
}

static void settle(const struct layout *at) {
    memset(counts, 0, sizeof(counts));
    count_range(at, 0, 1);
    count_range(at, at->table, at->table_entries * 8);
    for (u64 i = 0; i < at->table_entries; i++) {
        u64 block = read64(at, at->table + 8 * i);
        count_range(at, block, block != 0 ? at->size : 0);
    }
    count_mapping(at, at->l1, at->l1_entries);
    u64 end = snapshot_at(at, at->snapshot_count);
    count_range(at, at->snapshots, end > at->snapshots ? end - at->snapshots : 0);
    for (u64 i = 0; i < at->snapshot_count; i++) {
        u64 entry = snapshot_at(at, i);
        if (inside(at, entry, 40)) {
            count_mapping(at, load64(at->image + entry), load32(at->image + entry + 8));
        }
    }
    count_bitmaps(at);
    set_refcounts(at);
    for (u64 i = 0; i < at->l1_entries && inside(at, at->l1 + 8 * i, 8); i++) {
        u64 table = read64(at, at->l1 + 8 * i) & ENTRY_OFFSET;
        set_flag(at, at->l1 + 8 * i);
        for (u64 k = 0; table != 0 && k < at->size; k += at->step) {
            set_flag(at, table + k);
        }
    }
}

static void change_one(const struct layout *at) {
    u64 entries;
    u64 l1 = some_l1(at, &entries);
    switch (number(at, 13)) {
    case 0:
        change_header(at);
        break;
    case 1:
        write64(at, l1 + 8 * number(at, entries), number(at, 3) == 0 ? some_entry(at) : some_l2(at));
        break;
    case 2:
    case 3:
    case 4:
        write64(at, some_l2(at) + number(at, at->size / at->step) * at->step, some_entry(at));
        break;
    case 5:
        write64(at, at->table + 8 * number(at, at->table_entries), some_offset(at));
        break;
    case 6:
        change_refcount(at);
        break;
    case 7:
        change_snapshot(at);
        break;
    case 8:
        change_extension(at);
        break;
    case 9:
        copy_piece(at);
        break;
    default:
        change_bitmaps(at);
    }
}

u64 mutate_image(u8 *image, u64 length, u64 room, u64 *random) {
    if (length < 1024) {
        return length;
    }
    struct layout at = find_layout(image, length, random);
    if (number(&at, 12) == 0) {
        u64 wanted = min64(room, number(&at, 2) == 0 ? number(&at, length) + 512 : length + number(&at, 16) * 512);
        memset(image + length, 0, wanted > length ? wanted - length : 0);
        return wanted;
    }
    change_one(&at);
    if (number(&at, 2) == 0) {
        at = find_layout(image, length, random);
        settle(&at);
    }
    return length;
}
