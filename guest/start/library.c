/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the linked libraries want of a C library. Who calls them gives the memory back to a mark.
 */
#include "start/guest.h"

void *malloc(size_t size);
void *calloc(size_t count, size_t size);
void free(void *memory);
_Noreturn void __stack_chk_fail(void);

void *malloc(size_t size) { return heap_take(size); }

void *calloc(size_t count, size_t size) { return heap_take_zeroed(count * size); }

void free(void *memory) { (void)memory; }

_Noreturn void __stack_chk_fail(void) { __builtin_trap(); }
