/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The bits of a bitmap, read through its table a window at a time.
 */
#ifndef AIRLOCK_QCOW2_PAYLOAD_H
#define AIRLOCK_QCOW2_PAYLOAD_H

#include "qcow2/bitmaps.h"

#ifndef PAYLOAD_WINDOW           /* tests make it small */
#define PAYLOAD_WINDOW (2 * MIB) /* bytes: the largest cluster */
#endif

struct payload {
    struct disk disk;
    u32 cluster_bits;
    u32 granularity_bits;
    u64 bits; /* as many as the disk needs; what is stored behind them does not count */
    u64 end;  /* bytes of the disk: the last bit may stand for less than its granularity */
    u64 clusters_read;
    const u64 *memory; /* the bits themselves; NULL: they are read through the table */
    struct bitmap bitmap;
};

struct dirty_count {
    u64 bits;
    u64 bytes; /* of the disk */
};

struct payload payload_of(const struct qcow2 *image, const struct bitmap *bitmap);
struct payload payload_in_memory(const u64 *words, u64 bits, u32 granularity_bits, u64 end);

/* Refuses a table with an entry that cannot be. */
void payload_check_table(struct payload *payload);

/* Queues the reads of all bits of a bitmap, divide_up(bits, 64) words, or makes them up; false: all of them are zero
 * for sure. table: as stored, the whole of it. After disk_run() payload_settle() has to follow. */
bool payload_queue(struct payload *payload, const u64 *table, u64 *words);
void payload_settle(const struct payload *payload, u64 *words);

/* Reads `length` bytes from byte `first` on, both multiples of 8; false: all of them are zero for sure. */
bool payload_read(struct payload *payload, u64 first, u64 length, u64 *words);

/* Adds to `words`, which are `count` bits of another bitmap from its bit `first` on, what `payload` says of the
 * same part of the disk (hbitmap_merge()): of a coarser granularity a bit gives many, of a finer one any of
 * many gives one. first: a multiple of 64. scratch: PAYLOAD_WINDOW bytes. False: nothing was added for sure. */
bool payload_merge(struct payload *payload, u32 granularity_bits, u64 first, u64 count, u64 *words, u64 *scratch);

/* Adds up the `count` bits in `words`, which begin at bit `first` of a bitmap with `total` bits. */
void dirty_add(struct dirty_count *dirty, const u64 *words, u64 first, u64 count, u64 total, u32 granularity_bits,
               u64 disk_size);

#endif
