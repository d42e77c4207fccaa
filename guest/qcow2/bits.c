/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/bits.h"

#define WORD_BITS 64

/* The first bit from `from` on whose value differs from that of `idle`, all zeros or all ones. */
static u64 next(const u64 *words, u64 from, u64 end, u64 idle) {
    if (from >= end) {
        return end;
    }
    u64 at = from / WORD_BITS;
    u64 last = (end - 1) / WORD_BITS;
    u64 found = (words[at] ^ idle) & (UINT64_MAX << (from % WORD_BITS));
    while (found == 0 && at < last) {
        found = words[++at] ^ idle;
    }
    return found != 0 ? min64(at * WORD_BITS + (u64)__builtin_ctzll(found), end) : end;
}

u64 bits_next_set(const u64 *words, u64 from, u64 end) { return next(words, from, end, 0); }

u64 bits_next_clear(const u64 *words, u64 from, u64 end) { return next(words, from, end, UINT64_MAX); }

/* The bits of word `at` that lie between `from` and `end`. */
static u64 mask(u64 at, u64 from, u64 end) {
    u64 bits = UINT64_MAX;
    if (at == from / WORD_BITS) {
        bits &= UINT64_MAX << (from % WORD_BITS);
    }
    if (at == (end - 1) / WORD_BITS) {
        bits &= UINT64_MAX >> (WORD_BITS - 1 - (end - 1) % WORD_BITS);
    }
    return bits;
}

void bits_set(u64 *words, u64 from, u64 end) {
    for (u64 at = from / WORD_BITS; from < end && at <= (end - 1) / WORD_BITS; at++) {
        words[at] |= mask(at, from, end);
    }
}

void bits_clear(u64 *words, u64 from, u64 end) {
    for (u64 at = from / WORD_BITS; from < end && at <= (end - 1) / WORD_BITS; at++) {
        words[at] &= ~mask(at, from, end);
    }
}

void bits_merge(u64 *words, const u64 *more, u64 bytes) {
    for (u64 i = 0; i < bytes / sizeof(*words); i++) {
        words[i] |= more[i];
    }
}

/* Pairs, nibbles, then bytes of a word hold the counts of their own bits. */
u64 bits_count(const u64 *words, u64 bytes) {
    const u64 pairs = 0x5555555555555555u;
    const u64 nibbles = 0x3333333333333333u;
    const u64 halves = 0x0f0f0f0f0f0f0f0fu;
    const u64 ones = 0x0101010101010101u;
    u64 total = 0;
    for (u64 i = 0; i < bytes / sizeof(*words); i++) {
        u64 value = words[i];
        if (value == 0 || value == UINT64_MAX) {
            total += value & WORD_BITS;
            continue;
        }
        value -= (value >> 1) & pairs;
        value = (value & nibbles) + ((value >> 2) & nibbles);
        value = (value + (value >> 4)) & halves;
        total += (value * ones) >> (WORD_BITS - 8);
    }
    return total;
}

bool bits_all_clear(const u64 *words, u64 bytes) { return bits_next_set(words, 0, bytes * 8) == bytes * 8; }
