/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * One stack of memory. An operation runs once and ends, so nothing more is needed.
 */
#include "start/guest.h"
#include "start/heap.h"

#define PIECE 64 /* bytes: each begins at a multiple */

static u8 *heap_start;
static u8 *heap_end;
static u8 *heap_top;
static u8 *heap_used; /* up to here memory was handed out at some time; behind, all is zero */

void heap_open(void *start, u64 size) {
    heap_start = heap_top = start;
    heap_end = heap_start + size;
    if (heap_used < heap_start || heap_used > heap_end) {
        heap_used = heap_start;
    }
}

u64 heap_left(void) { return (u64)(heap_end - heap_top); }

void *heap_take(u64 size) {
    size = round_up(min64(size, UINT64_MAX - PIECE), PIECE);
    if (size > heap_left()) {
        refuse(REFUSAL_NO_MEMORY, .a = size);
    }
    void *taken = heap_top;
    heap_top += size;
    if (heap_top > heap_used) {
        heap_used = heap_top;
    }
    return taken;
}

void *heap_extend(void *piece, u64 size, u64 more) {
    u8 *at = (u8 *)piece + size;
    u64 spare = round_up(size, PIECE) - size;
    if (at + spare != heap_top) {
        __builtin_trap();
    }
    heap_take(more - min64(more, spare));
    return at;
}

void *heap_take_zeroed(u64 size) {
    const u8 *used = heap_used;
    u8 *taken = heap_take(size);
    return used > taken ? memset(taken, 0, min64(size, (u64)(used - taken))) : taken;
}

void *heap_keep(void *mark, const void *piece, u64 size) {
    if (piece != mark) {
        memmove(mark, piece, size);
    }
    heap_top = mark;
    return heap_take(size);
}

void *heap_mark(void) { return heap_top; }

void heap_release(void *mark) { heap_top = mark; }
