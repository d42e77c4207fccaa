/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Stands in for guest/start/heap.c: the same stack of memory, but what is not taken is poisoned, and a poisoned zone
 * lies before each piece.
 */
#include <sanitizer/asan_interface.h>

#include "start/guest.h"
#include "start/heap.h"

#define ZONE 64

static u8 *heap_start;
static u8 *heap_end;
static u8 *heap_top;
static u8 *heap_highest;

void heap_open(void *start, u64 size) {
    if (heap_highest == NULL) {
        heap_highest = start;
    }
    heap_start = start;
    heap_end = heap_start + size;
    ASAN_POISON_MEMORY_REGION(heap_start, (u64)(heap_highest - heap_start));
    heap_top = heap_highest = heap_start;
}

u64 heap_left(void) { return (u64)(heap_end - heap_top); }

static void *take(u64 size) {
    u64 whole = round_up(min64(size, UINT64_MAX - ZONE), ZONE);
    if (whole > heap_left()) {
        refuse(REFUSAL_NO_MEMORY, .a = whole);
    }
    void *taken = heap_top;
    heap_top += whole;
    if (heap_top > heap_highest) {
        heap_highest = heap_top;
    }
    ASAN_POISON_MEMORY_REGION(taken, whole);
    ASAN_UNPOISON_MEMORY_REGION(taken, size);
    return taken;
}

void *heap_take(u64 size) {
    u8 *zone = take(ZONE);
    ASAN_POISON_MEMORY_REGION(zone, ZONE);
    return take(size);
}

void *heap_extend(void *piece, u64 size, u64 more) {
    u8 *at = (u8 *)piece + size;
    u64 spare = round_up(size, ZONE) - size;
    if (at + spare != heap_top) {
        __builtin_trap();
    }
    take(more - min64(more, spare));
    ASAN_UNPOISON_MEMORY_REGION(at, more);
    return at;
}

void *heap_take_zeroed(u64 size) { return memset(heap_take(size), 0, size); }

void *heap_keep(void *mark, const void *piece, u64 size) {
    ASAN_UNPOISON_MEMORY_REGION(mark, (u64)(heap_top - (u8 *)mark));
    memmove((u8 *)mark + ZONE, piece, size);
    heap_release(mark);
    return heap_take(size);
}

void *heap_mark(void) { return heap_top; }

void heap_release(void *mark) {
    ASAN_POISON_MEMORY_REGION(mark, (u64)(heap_top - (u8 *)mark));
    heap_top = mark;
}
