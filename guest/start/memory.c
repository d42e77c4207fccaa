/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The four functions that the compiler may call on its own.
 */
#include "start/guest.h"

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(size) : : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t size) {
    if ((uintptr_t)to - (uintptr_t)from >= size) {
        return memcpy(to, from, size);
    }
    u8 *end_to = (u8 *)to + size;
    const u8 *end_from = (const u8 *)from + size;
    while (size-- > 0) {
        *--end_to = *--end_from;
    }
    return to;
}

void *memset(void *to, int value, size_t size) {
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(value) : "memory");
    return to;
}

int memcmp(const void *a, const void *b, size_t size) {
    const u8 *x = a;
    const u8 *y = b;
    size_t same = 0;
    while (same + sizeof(u64) <= size && load64(x + same) == load64(y + same)) {
        same += sizeof(u64);
    }
    for (size_t i = same; i < size; i++) {
        if (x[i] != y[i]) {
            return x[i] < y[i] ? -1 : 1;
        }
    }
    return 0;
}
