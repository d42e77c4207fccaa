/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the linked libraries want of a C library. Callers release the memory with heap_release().
 */
#include "start/guest.h"

void *malloc(size_t size);
void *calloc(size_t count, size_t size);
void free(void *memory);
_Noreturn void __stack_chk_fail(void); // NOLINT(bugprone-reserved-identifier): the compiler's name

void *malloc(size_t size) { return heap_take(size); }

void *calloc(size_t count, size_t size) {
    size_t bytes;
    return heap_take_zeroed(__builtin_mul_overflow(count, size, &bytes) ? SIZE_MAX : bytes);
}

void free(void *memory) { (void)memory; }

_Noreturn void __stack_chk_fail(void) { // NOLINT(bugprone-reserved-identifier)
    __builtin_trap();
}
