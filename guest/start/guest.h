/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What every part of the guest may use: types, byte order, memory, and the one way to give up.
 */
#ifndef AIRLOCK_START_GUEST_H
#define AIRLOCK_START_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abi/calls.h"
#include "abi/doorbell.h"
#include "abi/refusals.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define KIB 1024ull
#define MIB (1024 * KIB)

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);

static inline u16 swap16(u16 value) { return __builtin_bswap16(value); }
static inline u32 swap32(u32 value) { return __builtin_bswap32(value); }
static inline u64 swap64(u64 value) { return __builtin_bswap64(value); }

/* Big-endian fields at any alignment: the order of everything in a qcow2 file. */
static inline u16 load16(const void *at) {
    u16 value;
    __builtin_memcpy(&value, at, sizeof(value));
    return swap16(value);
}

static inline u32 load32(const void *at) {
    u32 value;
    __builtin_memcpy(&value, at, sizeof(value));
    return swap32(value);
}

static inline u64 load64(const void *at) {
    u64 value;
    __builtin_memcpy(&value, at, sizeof(value));
    return swap64(value);
}

static inline void store16(void *at, u16 value) {
    value = swap16(value);
    __builtin_memcpy(at, &value, sizeof(value));
}

static inline void store32(void *at, u32 value) {
    value = swap32(value);
    __builtin_memcpy(at, &value, sizeof(value));
}

static inline void store64(void *at, u64 value) {
    value = swap64(value);
    __builtin_memcpy(at, &value, sizeof(value));
}

static inline u64 min64(u64 a, u64 b) { return a < b ? a : b; }
static inline u64 max64(u64 a, u64 b) { return a > b ? a : b; }
static inline u64 divide_up(u64 value, u64 by) { return value / by + (value % by != 0); }
static inline u64 round_up(u64 value, u64 to) { return divide_up(value, to) * to; }

/* The heap: memory is taken in a row and given back to a mark. What heap_take() gives is not cleared.
 * heap_take_zeroed() does not touch what was never handed out: it is zero, and takes no memory of the host until it is
 * used. */
void *heap_take(u64 size);
void *heap_take_zeroed(u64 size);

/* Makes a piece of `size` bytes larger in its place, and returns where the new bytes begin. It must be the last one on
 * the heap: the guest ends with a trap when something lies behind it. A piece that is to grow can begin with 0 bytes.
 */
void *heap_extend(void *piece, u64 size, u64 more);

/* Gives back all that was taken since the mark, but this piece of it, which moves there. Returns its place. */
void *heap_keep(void *mark, const void *piece, u64 size);

u64 heap_left(void);
void *heap_mark(void);
void heap_release(void *mark);

/* Where the call came in and where the result goes. */
const void *call_memory(void);
void *result_memory(void);
struct doorbell *doorbell_memory(void);

/* Rings the doorbell: the host runs the batch before this returns. */
void doorbell_ring(void);

/* Ends the run. */
_Noreturn void finish(const void *payload, u64 length);

/* What a message says besides its code: abi/refusals.h tells of each code what it has. */
struct refusal_arguments {
    u64 a;
    u64 b;
    u64 c;
    u64 d;
    u64 e;
    u64 f;
    const void *text; /* out of the image; what is over MESSAGE_TEXT_MAX is cut off */
    u64 length;       /* bytes of it */
};

/* Gives up: fills the result header and ends the run. What is not named is 0:
 * refuse(REFUSAL_HAS_BITMAPS, .a = count, .text = name, .length = name_length). */
#define refuse(code, ...) refuse_with(code, &(const struct refusal_arguments){__VA_ARGS__})
_Noreturn void refuse_with(enum refusal code, const struct refusal_arguments *arguments);

/* Says which disk a refusal from here on is about. */
void result_disk(u32 index);

/* Remembers in the result that the first write has gone out. */
void result_modified(void);

/* Where the host lets a guest begin: guest/operations/main.c. memory_size: where its memory ends, MEMORY_SIZE at least.
 */
_Noreturn void guest_main(u64 memory_size);

#endif
