/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A guest that touches all memory that it has, and asks for all that there is, again and again; where it is to create a
 * snapshot, it has written by then, and says that it has not.
 */
#include "start/guest.h"

_Noreturn void guest_main(u64 memory_size) {
    const struct call_header *call = call_memory();
    struct result_header *result = result_memory();
    for (u64 address = HEAP_ADDRESS; address < memory_size; address += 4096) {
        *(volatile u8 *)address = 1;
    }
    if (call->operation == CALL_SNAPSHOT_CREATE) {
        struct doorbell *bell = doorbell_memory();
        bell->requests[0] = (struct doorbell_request){.operation = DOORBELL_WRITE, .length = 1, .memory = HEAP_ADDRESS};
        bell->count = 1;
        doorbell_ring();
    }
    result->abi_version = ABI_VERSION;
    result->code = REFUSAL_NO_MEMORY;
    result->memory_wanted = UINT64_MAX;
    finish(result, 0);
}
