/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/lookup.h"

#define SLICE_MIN (4 * KIB)

/* The file has room for so many tables. A mapping that refers to more has one of them twice, and may make a disk
 * without end of a small file. */
static void check_table_count(const struct lookup *lookup) {
    struct qcow2 *image = lookup->image;
    const u64 room = clusters_of(image, image->disk.size);
    u64 *entries = (u64 *)lookup->tables;
    u64 tables = 0;
    for (u64 at = 0, count; image->l1_entries > room && at < image->l1_entries; at += count) {
        count = min64(lookup->room * lookup->slice / 8, image->l1_entries - at);
        disk_read(&image->disk, image->l1_offset + 8 * at, entries, 8 * count);
        for (u64 i = 0; i < count; i++) {
            const u64 entry = swap64(entries[i]);
            tables += (entry & ENTRY_OFFSET) != 0;
            if (tables > room) {
                result_disk(image->disk.index);
                refuse(REFUSAL_OVERLAP, .a = TABLE_L1, .b = image->l1_offset, .c = at + i, .d = entry,
                       .e = entry & ENTRY_OFFSET, .f = TABLE_L2);
            }
        }
    }
}

void lookup_open(struct lookup *lookup, struct qcow2 *image, u32 data_disk, u64 bytes, bool whole) {
    u64 slice = image->cluster_size;
    while (!whole && slice > bytes && slice > SLICE_MIN) {
        slice /= 2;
    }
    u64 room = max64(min64(bytes / slice, DOORBELL_BATCH), 1);
    *lookup = (struct lookup){.image = image, .data_disk = data_disk, .slice = slice, .room = (u32)room};
    lookup->l1 = heap_take(8 * room);
    lookup->tables = heap_take(room * slice);
    check_table_count(lookup);
}

/* Of a table; with more than one the window has room for no second. */
static u64 slices(const struct lookup *lookup) { return lookup->image->cluster_size / lookup->slice; }

static u64 slice_entries(const struct lookup *lookup) { return lookup->slice / l2_entry_size(lookup->image); }

static _Noreturn void refuse_entry(const struct qcow2 *image, enum refusal code, enum table table, u64 at, u64 index,
                                   u64 entry) {
    result_disk(image->disk.index);
    refuse(code, .a = table, .b = at, .c = index, .d = entry, .e = entry & ENTRY_OFFSET);
}

static void load_window(struct lookup *lookup, u64 index) {
    struct qcow2 *image = lookup->image;
    const u64 table = index / slices(lookup);
    const u64 inside = index % slices(lookup) * lookup->slice;
    lookup->first = index;
    lookup->count = (u32)min64(lookup->room, image->l1_entries - table);
    disk_read(&image->disk, image->l1_offset + 8 * table, lookup->l1, 8ull * lookup->count);
    for (u32 i = 0; i < lookup->count; i++) {
        lookup->l1[i] = swap64(lookup->l1[i]);
        u64 offset = lookup->l1[i] & ENTRY_OFFSET;
        if ((lookup->l1[i] & L1_RESERVED) != 0 || offset_in_cluster(image, offset) != 0) {
            refuse_entry(image, REFUSAL_RESERVED_BITS, TABLE_L1, image->l1_offset, table + i, lookup->l1[i]);
        }
        if (offset != 0) {
            disk_queue_read(&image->disk, offset + inside, lookup->tables + i * lookup->slice, lookup->slice);
        }
    }
    disk_run();
}

void lookup_need(struct lookup *lookup, u64 index) {
    if (index - lookup->first < lookup->count) {
        return;
    }
    if (lookup->leave != NULL) {
        lookup->leave(lookup->leave_context);
    }
    load_window(lookup, index);
}

enum extent_kind entry_kind(const struct qcow2 *image, u64 entry, u64 bitmap, u32 index) {
    if ((entry & ENTRY_COMPRESSED) != 0) {
        return EXTENT_COMPRESSED;
    }
    if (has_extended_l2(image)) {
        bool zero = ((bitmap >> (32 + index)) & 1) != 0;
        bool allocated = ((bitmap >> index) & 1) != 0;
        return zero ? EXTENT_ZERO : allocated ? EXTENT_DATA : EXTENT_ABSENT;
    }
    bool anywhere = (entry & ENTRY_OFFSET) != 0 || (has_data_file(image) && (entry & ENTRY_COPIED) != 0);
    return (entry & ENTRY_ZERO) != 0 ? EXTENT_ZERO : anywhere ? EXTENT_DATA : EXTENT_ABSENT;
}

static void check_entry(const struct qcow2 *image, u64 entry, u64 bitmap, u64 table, u64 index) {
    if ((entry & ENTRY_COMPRESSED) != 0) { /* inflate_entry() checks its range */
        if (has_data_file(image)) {
            refuse_entry(image, REFUSAL_RESERVED_BITS, TABLE_L2, table, index, entry);
        }
        return;
    }
    bool no_zero_flag = image->version < 3 || has_extended_l2(image);
    if ((entry & (L2_RESERVED | (no_zero_flag ? ENTRY_ZERO : 0))) != 0) {
        refuse_entry(image, REFUSAL_RESERVED_BITS, TABLE_L2, table, index, entry);
    }
    if (offset_in_cluster(image, entry & ENTRY_OFFSET) != 0) {
        refuse_entry(image, REFUSAL_UNALIGNED, TABLE_L2, table, index, entry);
    }
    bool no_cluster = (entry & (ENTRY_OFFSET | (has_data_file(image) ? ENTRY_COPIED : 0))) == 0;
    if ((bitmap & (bitmap >> 32) & 0xffffffffu) != 0 || (no_cluster && (bitmap & 0xffffffffu) != 0)) {
        refuse_entry(image, REFUSAL_SUBCLUSTERS, TABLE_L2, table, index, bitmap);
    }
}

/* The subcluster at `offset`, to its end. */
static struct extent one(const struct lookup *lookup, const u8 *slice, u64 table_offset, u64 offset) {
    const struct qcow2 *image = lookup->image;
    u64 index = (offset >> image->cluster_bits) % l2_entries(image);
    const u8 *at = slice + index % slice_entries(lookup) * l2_entry_size(image);
    u64 entry = load64(at);
    u64 bitmap = has_extended_l2(image) ? load64(at + 8) : 0;
    u64 inside = offset_in_cluster(image, offset);
    u64 size = subcluster_size(image);
    check_entry(image, entry, bitmap, table_offset, index);
    struct extent found = {.kind = entry_kind(image, entry, bitmap, (u32)(inside / size)),
                           .disk = lookup->data_disk,
                           .length = size - inside % size,
                           .entry = entry};
    found.host = has_data_file(image) ? offset : (entry & ENTRY_OFFSET) + inside;
    if (has_data_file(image) && (entry & ENTRY_OFFSET) != 0 && (entry & ENTRY_OFFSET) != offset - inside) {
        refuse_entry(image, REFUSAL_DATA_FILE_OFFSET, TABLE_L2, table_offset, index, entry);
    }
    if (found.kind == EXTENT_COMPRESSED) {
        found.length = image->cluster_size - inside;
    }
    return found;
}

struct extent lookup_at(struct lookup *lookup, u64 offset, u64 length) {
    struct qcow2 *image = lookup->image;
    const u64 covered = image->cluster_size * slice_entries(lookup);
    const u64 index = offset / covered;
    length = min64(length, (index + 1) * covered - offset);
    if (index / slices(lookup) >= image->l1_entries) {
        return (struct extent){.kind = EXTENT_ABSENT, .length = length};
    }
    lookup_need(lookup, index);
    u64 table_offset = lookup->l1[index - lookup->first] & ENTRY_OFFSET;
    if (table_offset == 0) {
        return (struct extent){.kind = EXTENT_ABSENT, .length = length};
    }
    const u8 *slice = lookup->tables + (index - lookup->first) * lookup->slice;
    struct extent found = one(lookup, slice, table_offset, offset);
    while (found.kind != EXTENT_COMPRESSED && found.length < length) {
        struct extent next = one(lookup, slice, table_offset, offset + found.length);
        bool placed = (found.entry & ENTRY_OFFSET) != 0; /* counts for zeros as well: qemu tells them apart */
        if (next.kind != found.kind || ((next.entry & ENTRY_OFFSET) != 0) != placed ||
            ((placed || found.kind == EXTENT_DATA) && next.host != found.host + found.length)) {
            break;
        }
        found.length += next.length;
    }
    found.length = min64(found.length, length);
    return found;
}
