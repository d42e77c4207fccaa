/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Single parts of the guest, for tests of one room. Read by cffi as well. Where int comes back it is enum host_end:
 * whether there was a refusal stands in the result header.
 */
#ifndef AIRLOCK_TEST_PROBES_H
#define AIRLOCK_TEST_PROBES_H

#include <stdint.h>

uint64_t probe_block_get(const uint8_t *block, uint32_t order, uint64_t index);
void probe_block_set(uint8_t *block, uint32_t order, uint64_t index, uint64_t value);

/* Strings of bits: the next that is set, or clear; set or clear some; add those of another, and count. */
uint64_t probe_bits_next(const uint64_t *words, uint64_t from, uint64_t end, uint32_t set);
void probe_bits_change(uint64_t *words, uint64_t from, uint64_t end, uint32_t set);
uint64_t probe_bits_merge(uint64_t *words, const uint64_t *more, uint64_t bytes);
uint32_t probe_bits_all_clear(const uint64_t *words, uint64_t bytes);

struct probe_io {
    uint32_t operation; /* enum doorbell_operation: is queued; 0: disk_run() */
    uint32_t place;     /* in the memory given */
    uint64_t offset;
    uint64_t length;
};

/* What disk.h offers, in this order; the size that the guest believes in afterwards. */
int probe_disk(const struct probe_io *script, uint32_t count, uint8_t *memory, uint64_t *size);

struct probe_change {
    uint32_t kind; /* 1 allocates `bytes`, 2 frees and 3 frees and punches `bytes` at `offset`, 4 writes back; 5
                      allocates `bytes` of a compressed cluster */
    uint32_t reserved;
    uint64_t offset; /* OUT for 1 and 5 */
    uint64_t bytes;
};

/* Changes of refcounts on the image, which is not verified; the search for free clusters starts at `cursor`. */
int probe_refcounts(struct probe_change *script, uint32_t count, uint64_t cursor);

/* Opens the image for writing and rewrites the header if that is due. */
int probe_header(uint32_t *rewritten);

/* The index of the snapshot meant, or -1; what a new one would be called. */
int probe_find(const struct selector *selector, int64_t *index);
int probe_next_id(uint8_t *id, uint32_t *length);

/* Writes the snapshot table anew at `offset`; its size in bytes. */
int probe_snapshots(uint64_t offset, uint64_t *size);

/* Counters: their room for so many clusters; value, set and got again, of one in the window that begins at `first`. */
int probe_counters(uint64_t clusters, uint32_t width, uint64_t first, uint64_t cluster, uint32_t *value, uint64_t *room,
                   uint32_t *overflowed);

/* A piece of `size` bytes of the heap, then, unless that is 0, one of `between`; the first becomes `more` bytes larger,
 * and has all of them written to. distance: from its beginning to the new bytes. */
int probe_heap(uint64_t size, uint64_t between, uint64_t more, uint64_t *distance);

#endif
