/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Strings of bits in memory, least significant bit of a byte first, as the format stores bitmaps. Their
 * memory is a whole number of 64-bit words.
 */
#ifndef AIRLOCK_QCOW2_BITS_H
#define AIRLOCK_QCOW2_BITS_H

#include "start/guest.h"

/* The first bit from `from` on that is set (clear); `end` when there is none before it. */
u64 bits_next_set(const u64 *words, u64 from, u64 end);
u64 bits_next_clear(const u64 *words, u64 from, u64 end);

/* Sets (clears) the bits from `from` to `end`, which is not one of them. */
void bits_set(u64 *words, u64 from, u64 end);
void bits_clear(u64 *words, u64 from, u64 end);

/* Adds the bits of `more`; `bytes` is a multiple of 8. */
void bits_merge(u64 *words, const u64 *more, u64 bytes);

/* How many are set. */
u64 bits_count(const u64 *words, u64 bytes);

bool bits_all_clear(const u64 *words, u64 bytes);

#endif
