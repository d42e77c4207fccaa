/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Persistent dirty bitmaps (block/qcow2-bitmap.c): the header extension and the directory that it
 * names.
 */
#ifndef AIRLOCK_QCOW2_BITMAPS_H
#define AIRLOCK_QCOW2_BITMAPS_H

#include "qcow2/bitmap_tables.h"

#define BITMAPS_EXTENSION_BYTES 24
#define BITMAP_ENTRY_FIXED 24 /* bytes of a directory entry in front of the name */
#define BITMAP_ENTRY_FLAGS 12 /* where the flags stand in it */
#define BITMAP_TABLE_ENTRIES_MAX 0x8000000u
#define BITMAP_PAYLOAD_MAX 0x20000000ull /* bytes */

/* Reads the header extension; its data stands at `at` in the header. What is wrong with it is noted in
 * image->bitmaps_fault: who needs no bitmaps need not care. With the autoclear bit off it is stale: what it says is
 * noted in image->stale, unchecked. */
void bitmaps_read_extension(struct qcow2 *image, u64 at, u32 length);

/* Refuses an extension that has a fault. */
void bitmaps_refuse_fault(const struct qcow2 *image);

void bitmaps_store_extension(const struct bitmap_set *set, u8 extension[BITMAPS_EXTENSION_BYTES]);

bool bitmaps_present(const struct qcow2 *image);

/* Reads and checks the directory into image->bitmaps. `room`: of the next two, bytes behind the directory
 * and one place more in the table, so that an entry can be appended. */
void bitmaps_read(struct qcow2 *image);
void bitmaps_read_with_room(struct qcow2 *image, u64 room);

/* What is wrong with the bitmaps, as far as it shows without a verification: the first fault that there is. lost: there
 * is no way from entry to entry, so that none can be told. */
struct bitmaps_damage {
    enum bitmaps_fault fault;
    bool lost;
    u64 value;
    const u8 *name; /* of the bitmap that has it; NULL: none */
    u32 name_length;
};

/* Reads the directory as far as it makes sense: image->bitmaps becomes the sound ones. */
void bitmaps_read_sound(struct qcow2 *image, struct bitmaps_damage *damage);

/* Drops the entries from the directory in memory that are not to be kept. keeps: for each bitmap. */
void bitmaps_keep(struct bitmap_set *set, const bool *keeps);

/* Reads the stale directory as far as it makes sense into image->stale, whose count becomes that of the
 * bitmaps found. */
void bitmaps_read_stale(struct qcow2 *image);

/* Bits that a disk of `size` bytes needs, and the entries of the table that holds them. */
u64 bitmap_bits(u64 size, u32 granularity_bits);
u64 bitmap_table_entries(const struct qcow2 *image, u32 granularity_bits);

/* Bytes of a directory entry. */
u64 bitmap_entry_size(u64 name_length);

/* Can this be an entry of a bitmap's table? Not with reserved bits, and not inside a cluster. */
bool bitmap_entry_has_reserved_bits(u64 entry);
bool bitmap_entry_is_sound(u64 entry, u32 cluster_bits);

/* How many bitmaps have the name; *first: the index of the first of them, if there is one. */
u32 bitmaps_find(const struct bitmap_set *set, const u8 *name, u64 length, u32 *first);

/* Drops the entries of this name from the directory in memory; they go to `removed`, and how many is returned. */
u32 bitmaps_remove(struct bitmap_set *set, const u8 *name, u64 length, struct bitmap *removed);

/* Appends an entry. */
void bitmaps_append(struct bitmap_set *set, const struct bitmap *bitmap);

/* Brings the entry in the directory up to date with set->bitmaps[index]; where it stands in the directory. */
u64 bitmaps_store_entry(struct bitmap_set *set, u32 index);

_Noreturn void bitmaps_refuse(enum bitmaps_fault fault, const struct bitmap *bitmap, u64 value);

#endif
