/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A guest that behaves: it runs the requests that lie behind its call and finishes with their statuses.
 */
#include "start/guest.h"

struct worker_call {
    u64 count;    /* at most DOORBELL_BATCH */
    u64 fill;     /* what the heap's first MiB is filled with: byte + index of its page */
    u64 payload;  /* bytes from HEAP_ADDRESS on that the payload repeats after the statuses */
    u64 reserved; /* the requests follow */
};

static int64_t statuses[DOORBELL_BATCH];

_Noreturn void guest_main(u64 memory_size) {
    const struct worker_call *call = call_memory();
    struct doorbell *bell = doorbell_memory();
    u8 *heap = (u8 *)HEAP_ADDRESS;
    u8 *payload = heap + 64 * MIB;
    (void)memory_size;

    for (u64 page = 0; page < 256; page++) {
        memset(heap + page * 4096, (int)(call->fill + page), 4096);
    }
    memcpy(bell->requests, call + 1, call->count * sizeof(bell->requests[0]));
    bell->count = (u32)call->count;
    doorbell_ring();
    for (u64 i = 0; i < call->count; i++) {
        statuses[i] = bell->requests[i].status;
    }
    memcpy(payload, statuses, call->count * sizeof(statuses[0]));
    memcpy(payload + call->count * sizeof(statuses[0]), heap, call->payload);
    finish(payload, call->count * sizeof(statuses[0]) + call->payload);
}
