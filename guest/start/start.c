/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The first instruction, the doorbell, and where things lie in memory. The only file that knows that
 * it runs on a bare virtual processor.
 */
#include "start/guest.h"

/* The host has set the stack pointer, and in rdi, where a C function has its first argument, where memory ends; user
 * mode, no interrupts, nothing to set up. */
__asm__(".section .start, \"ax\"\n"
        ".globl _start\n"
        "_start:\n"
        "    xor %ebp, %ebp\n"
        "    and $-16, %rsp\n"
        "    call guest_main\n"
        "    ud2\n"
        ".previous\n");

const void *call_memory(void) { return (const void *)CALL_ADDRESS; }

void *result_memory(void) { return (void *)RESULT_ADDRESS; }

struct doorbell *doorbell_memory(void) {
    return (struct doorbell *)DOORBELL_ADDRESS;
}

void doorbell_ring(void) { __asm__ volatile("outb %%al, %0" : : "N"(DOORBELL_PORT), "a"(0) : "memory"); }

_Noreturn void finish(const void *payload, u64 length) {
    struct doorbell *bell = doorbell_memory();
    memset(&bell->requests[0], 0, sizeof(bell->requests[0]));
    bell->requests[0].operation = DOORBELL_FINISH;
    bell->requests[0].memory = (u64)payload;
    bell->requests[0].length = length;
    bell->count = 1;
    doorbell_ring();
    __builtin_trap(); /* the host does not come back from FINISH */
}
