/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "operations/operations.h"

#include "start/heap.h"

_Noreturn void guest_main(u64 memory_size) {
    const struct call_header *call = call_memory();
    struct result_header *result = result_memory();
    result->abi_version = ABI_VERSION;
    heap_open((void *)HEAP_ADDRESS, memory_size - HEAP_ADDRESS);
    if (call->abi_version != ABI_VERSION || call->disk_count == 0 || call->disk_count > DISKS_MAX) {
        refuse(REFUSAL_BAD_CALL);
    }
    operation_run(call->operation);
}
