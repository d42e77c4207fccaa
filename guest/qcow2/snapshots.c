/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/snapshots.h"

#define ENTRY_FIXED 40
#define EXTRA_KNOWN 24
#define TABLE_CHUNK (1 * MIB)
#define RECORDS_CHUNK (64 * KIB)

/* The table is read as far as it is needed: its length is known only at its end. */
struct reader {
    struct qcow2 *image;
    u8 *start;
    u64 loaded;
};

static const u8 *need(struct reader *reader, u64 at, u64 length) {
    struct qcow2 *image = reader->image;
    if (at + length > SNAPSHOT_TABLE_BYTES_MAX + TABLE_CHUNK ||
        image->snapshots_offset + at + length > image->disk.size) {
        refuse(REFUSAL_TRUNCATED, .a = TABLE_SNAPSHOT_TABLE, .b = image->snapshots_offset, .c = image->disk.size);
    }
    while (at + length > reader->loaded) {
        u64 chunk = min64(TABLE_CHUNK, round_up(image->disk.size - image->snapshots_offset - reader->loaded, 64));
        u8 *memory = heap_extend(reader->start, reader->loaded, chunk);
        disk_read(&image->disk, image->snapshots_offset + reader->loaded, memory, chunk);
        reader->loaded += chunk;
    }
    return reader->start + at;
}

static u16 length_to_nul(const u8 *text, u16 length) {
    u16 i = 0;
    while (i < length && text[i] != 0) {
        i++;
    }
    return i;
}

static u64 read_extra(struct reader *reader, struct snapshot *snapshot, u64 at) {
    const u8 *extra = need(reader, at, snapshot->extra_size);
    if (snapshot->extra_size >= 8) {
        snapshot->vm_state_size = load64(extra);
    }
    snapshot->disk_size = snapshot->extra_size >= 16 ? load64(extra + 8) : reader->image->virtual_size;
    snapshot->icount = snapshot->extra_size >= EXTRA_KNOWN ? load64(extra + 16) : UINT64_MAX;
    snapshot->unknown_extra = extra + EXTRA_KNOWN;
    return at + snapshot->extra_size;
}

static u64 read_entry(struct reader *reader, u32 index, u64 at) {
    struct qcow2 *image = reader->image;
    struct snapshot *snapshot = &image->snapshots[index];
    const u8 *fixed = need(reader, at, ENTRY_FIXED);
    u16 id_length = load16(fixed + 12);
    u16 name_length = load16(fixed + 14);
    *snapshot = (struct snapshot){
        .l1_offset = load64(fixed),
        .l1_entries = load32(fixed + 8),
        .date_seconds = load32(fixed + 16),
        .date_nanoseconds = load32(fixed + 20),
        .vm_clock = load64(fixed + 24),
        .vm_state_size = load32(fixed + 32),
        .extra_size = load32(fixed + 36),
    };
    if (snapshot->extra_size > SNAPSHOT_EXTRA_MAX) {
        refuse(REFUSAL_SNAPSHOT_EXTRA, .a = index);
    }
    at = read_extra(reader, snapshot, at + ENTRY_FIXED);
    snapshot->id = need(reader, at, (u64)id_length + name_length);
    snapshot->name = snapshot->id + id_length;
    snapshot->id_length = length_to_nul(snapshot->id, id_length);
    snapshot->name_length = length_to_nul(snapshot->name, name_length);
    at += (u64)id_length + name_length;
    if (at > SNAPSHOT_TABLE_BYTES_MAX) {
        refuse(REFUSAL_SNAPSHOT_TABLE_BIG, .a = image->snapshot_count - index);
    }
    return at;
}

void snapshots_read(struct qcow2 *image) {
    if (image->snapshot_count == 0) {
        return;
    }
    if (image->snapshots_offset > image->disk.size ||
        (u64)image->snapshot_count * ENTRY_FIXED > image->disk.size - image->snapshots_offset) {
        refuse(REFUSAL_TRUNCATED, .a = TABLE_SNAPSHOT_TABLE, .b = image->snapshots_offset, .c = image->disk.size);
    }
    image->snapshots = heap_take((image->snapshot_count + 1ull) * sizeof(struct snapshot)); /* room for a new one */
    struct reader reader = {.image = image, .start = heap_take(0)};
    u64 at = 0;
    for (u32 i = 0; i < image->snapshot_count; i++) {
        at = read_entry(&reader, i, round_up(at, 8));
    }
    image->snapshots_size = at;
}

static bool same_text(const u8 *a, u64 a_length, const u8 *b, u64 b_length) {
    return a_length == b_length && memcmp(a, b, a_length) == 0;
}

static int64_t find(const struct qcow2 *image, const struct selector *selector, bool by_id, bool by_name) {
    for (u32 i = 0; i < image->snapshot_count; i++) {
        const struct snapshot *snapshot = &image->snapshots[i];
        if ((!by_id || same_text(snapshot->id, snapshot->id_length, selector->id, selector->id_length)) &&
            (!by_name || same_text(snapshot->name, snapshot->name_length, selector->name, selector->name_length))) {
            return i;
        }
    }
    return -1;
}

/* bdrv_snapshot_find() works on the list that qemu-img shows: ids and names cut to their limits. */
static int64_t find_listed_name(const struct qcow2 *image, const struct selector *selector) {
    for (u32 i = 0; i < image->snapshot_count; i++) {
        const struct snapshot *snapshot = &image->snapshots[i];
        if (same_text(snapshot->name, min64(snapshot->name_length, SNAPSHOT_NAME_MAX), selector->name,
                      selector->name_length)) {
            if (snapshot->name_length > SNAPSHOT_NAME_MAX || snapshot->id_length > SNAPSHOT_ID_MAX) {
                refuse(REFUSAL_NAME_NOT_DELETABLE);
            }
            return i;
        }
    }
    return -1;
}

int64_t snapshots_find(const struct qcow2 *image, const struct selector *selector) {
    if (selector->id_length > sizeof(selector->id) || selector->name_length > sizeof(selector->name)) {
        refuse(REFUSAL_BAD_CALL);
    }
    switch (selector->kind) {
    case SELECT_BY_NAME:
        return find_listed_name(image, selector);
    case SELECT_BY_ID:
        return find(image, selector, true, selector->name_length > 0);
    case SELECT_BY_ID_OR_NAME: {
        struct selector by_id = *selector;
        by_id.id_length = (u16)min64(selector->name_length, sizeof(by_id.id));
        memcpy(by_id.id, selector->name, by_id.id_length);
        int64_t found = selector->name_length <= sizeof(by_id.id) ? find(image, &by_id, true, false) : -1;
        return found >= 0 ? found : find(image, selector, false, true);
    }
    default:
        refuse(REFUSAL_BAD_CALL);
    }
}

/* strtoul(): leading blanks, a sign, digits; saturates. */
static u64 leading_number(const u8 *text, u64 length) {
    u64 i = 0;
    while (i < length && (text[i] == ' ' || (text[i] >= '\t' && text[i] <= '\r'))) {
        i++;
    }
    bool negative = i < length && text[i] == '-';
    if (i < length && (text[i] == '-' || text[i] == '+')) {
        i++;
    }
    u64 value = 0;
    for (; i < length && text[i] >= '0' && text[i] <= '9'; i++) {
        u64 digit = text[i] - '0';
        if (value > (UINT64_MAX - digit) / 10) {
            return UINT64_MAX;
        }
        value = value * 10 + digit;
    }
    return negative ? 0 - value : value;
}

u32 snapshots_next_id(const struct qcow2 *image, u8 id[SNAPSHOT_ID_MAX]) {
    u64 largest = 0;
    for (u32 i = 0; i < image->snapshot_count; i++) {
        largest = max64(largest, leading_number(image->snapshots[i].id, image->snapshots[i].id_length));
    }
    u64 next = largest + 1;
    u8 digits[20];
    u32 count = 0;
    do {
        digits[count++] = (u8)('0' + next % 10);
        next /= 10;
    } while (next != 0);
    for (u32 i = 0; i < count; i++) {
        id[i] = digits[count - 1 - i];
    }
    return count;
}

static u64 entry_size(const struct snapshot *snapshot) {
    return ENTRY_FIXED + max64(EXTRA_KNOWN, snapshot->extra_size) + snapshot->id_length + snapshot->name_length;
}

u64 snapshots_table_size(const struct snapshot *snapshots, u32 count) {
    u64 size = 0;
    for (u32 i = 0; i < count; i++) {
        size = round_up(size, 8) + entry_size(&snapshots[i]);
    }
    return size;
}

static void store_entry(u8 *at, const struct snapshot *snapshot) {
    u64 extra_size = max64(EXTRA_KNOWN, snapshot->extra_size);
    store64(at, snapshot->l1_offset);
    store32(at + 8, snapshot->l1_entries);
    store16(at + 12, snapshot->id_length);
    store16(at + 14, snapshot->name_length);
    store32(at + 16, snapshot->date_seconds);
    store32(at + 20, snapshot->date_nanoseconds);
    store64(at + 24, snapshot->vm_clock);
    store32(at + 32, snapshot->vm_state_size <= UINT32_MAX ? (u32)snapshot->vm_state_size : 0);
    store32(at + 36, (u32)extra_size);
    store64(at + 40, snapshot->vm_state_size);
    store64(at + 48, snapshot->disk_size);
    store64(at + 56, snapshot->icount);
    at += ENTRY_FIXED + EXTRA_KNOWN;
    memcpy(at, snapshot->unknown_extra, extra_size - EXTRA_KNOWN);
    at += extra_size - EXTRA_KNOWN;
    memcpy(at, snapshot->id, snapshot->id_length);
    memcpy(at + snapshot->id_length, snapshot->name, snapshot->name_length);
}

void snapshots_write(struct qcow2 *image, u64 offset, const struct snapshot *snapshots, u32 count) {
    void *mark = heap_mark();
    u8 *piece = heap_take(TABLE_CHUNK);
    u64 at = 0; /* in the table, where the piece begins */
    for (u32 i = 0; i < count;) {
        u32 first = i;
        u64 length = entry_size(&snapshots[i++]);
        while (i < count && round_up(length, 8) + entry_size(&snapshots[i]) <= TABLE_CHUNK) {
            length = round_up(length, 8) + entry_size(&snapshots[i++]);
        }
        disk_read(&image->disk, offset + at, piece, length);
        u64 in_piece = 0;
        for (u32 k = first; k < i; k++) {
            in_piece = round_up(in_piece, 8);
            store_entry(piece + in_piece, &snapshots[k]);
            in_piece += entry_size(&snapshots[k]);
        }
        disk_write(&image->disk, offset + at, piece, length);
        at = round_up(at + length, 8);
    }
    heap_release(mark);
}

void snapshot_check_l1(const struct qcow2 *image, const struct snapshot *snapshot) {
    u64 bytes = 8ull * snapshot->l1_entries;
    if (bytes > L1_BYTES_MAX) {
        refuse(REFUSAL_SNAPSHOT_L1_LARGE);
    }
    if (snapshot->l1_offset > INT64_MAX - bytes || offset_in_cluster(image, snapshot->l1_offset) != 0) {
        refuse(REFUSAL_SNAPSHOT_L1_OFFSET);
    }
}

_Noreturn void finish_with_snapshots(const struct qcow2 *image) {
    u8 *start = heap_take(0);
    u64 room = 0;
    u64 length = 0;
    for (u32 i = 0; i < image->snapshot_count; i++) {
        const struct snapshot *snapshot = &image->snapshots[i];
        u16 id_length = (u16)min64(snapshot->id_length, SNAPSHOT_ID_MAX);
        u16 name_length = (u16)min64(snapshot->name_length, SNAPSHOT_NAME_MAX);
        u64 size = round_up(sizeof(struct snapshot_record) + id_length + name_length, 8);
        if (length + size > room) {
            heap_extend(start, room, RECORDS_CHUNK);
            room += RECORDS_CHUNK;
        }
        u8 *at = start + length;
        struct snapshot_record *record = (struct snapshot_record *)at;
        memset(at, 0, size);
        *record = (struct snapshot_record){.vm_state_size = snapshot->vm_state_size,
                                           .vm_clock = snapshot->vm_clock,
                                           .icount = snapshot->icount,
                                           .disk_size = snapshot->disk_size,
                                           .date_seconds = snapshot->date_seconds,
                                           .date_nanoseconds = snapshot->date_nanoseconds,
                                           .id_length = id_length,
                                           .name_length = name_length};
        memcpy(at + sizeof(*record), snapshot->id, id_length);
        memcpy(at + sizeof(*record) + id_length, snapshot->name, name_length);
        length += size;
    }
    finish(start, length);
}
