/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Stands in for guest/start/start.c: what a guest gets from the host, done by this process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "start/guest.h"
#include "start/heap.h"
#include "qcow2/preparation.h"

#include "host.h"
#include "entry.h"

static struct host host;
static struct doorbell bell;
static u8 *heap;
static jmp_buf ended;
static const u8 *stack_start;

#define HEAP_ROOM (3072 * MIB) /* more than any guest gets */

static void *reserve_memory(size_t size) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return memory;
}

struct host *host_open(void) {
    if (host.disks[0].bytes == NULL) {
        host.capacity = 1ull << 43;
        host.disks[0].bytes = reserve_memory(host.capacity);
        heap = reserve_memory(HEAP_ROOM);
    }
    host_clear();
    return &host;
}

void host_clear(void) {
    u8 *disk = host.disks[0].bytes;
    u64 length = host.disks[0].length;
    u64 capacity = host.capacity;
    if (length > 64 * MIB) {
        madvise(disk, length, MADV_DONTNEED);
    } else {
        memset(disk, 0, length);
    }
    memset(&host, 0, offsetof(struct host, log));
    host.disks[0] = (struct host_disk){.bytes = disk, .limit = capacity, .writable = 1};
    host.capacity = capacity;
    host.fail_at = UINT64_MAX;
    host.requests_max = 1u << 20;
    host.memory = MEMORY_SIZE;
}

void host_rest(void) {
    madvise(host.disks[0].bytes, host.capacity, MADV_DONTNEED);
    madvise(heap, HEAP_ROOM, MADV_DONTNEED);
    host.disks[0].length = 0;
    host_clear();
}

void host_load(const u8 *bytes, u64 offset, u64 length) { memcpy(host.disks[0].bytes + offset, bytes, length); }

const void *call_memory(void) { return host.call; }

void *result_memory(void) { return host.result; }

struct doorbell *doorbell_memory(void) {
    return &bell;
}

static _Noreturn void end(enum host_end how) { longjmp(ended, (int)how + 1); }

_Noreturn void finish(const void *payload, u64 length) {
    host.payload = payload;
    host.payload_length = length;
    end(HOST_FINISHED);
}

static bool is_there(u32 index) { return index < HOST_DISKS && host.disks[index].bytes != NULL; }

static void check(const struct doorbell_request *request) {
    if (host.server != NULL) {
        return;
    }
    u64 limit = INT64_MAX;
    bool known = request->operation >= DOORBELL_READ && request->operation <= DOORBELL_PROGRESS;
    bool writes = request->operation != DOORBELL_READ && request->operation != DOORBELL_PROGRESS;
    if (!known || !is_there(request->disk) || !is_there(request->source_disk) || request->offset > limit ||
        request->length > limit - request->offset || (writes && host.disks[request->disk].writable == 0)) {
        end(HOST_BROKEN);
    }
}

/* Bytes of a request that are there. */
static u64 there(const struct host_disk *disk, u64 offset, u64 length) {
    return offset < disk->length ? min64(length, disk->length - offset) : 0;
}

static int64_t read_disk(const struct doorbell_request *request) {
    const struct host_disk *disk = &host.disks[request->disk];
    u64 length = there(disk, request->offset, request->length);
    if (length > 0) {
        memcpy((void *)(uintptr_t)request->memory, disk->bytes + request->offset, length);
    }
    host.moved += length;
    return (int64_t)length;
}

static int64_t write_disk(const struct doorbell_request *request) {
    struct host_disk *disk = &host.disks[request->disk];
    u64 length = request->length;
    if (request->offset + length > disk->limit) {
        return -EFBIG;
    }
    disk->changes++;
    u8 *to = disk->bytes + request->offset;
    if (request->operation == DOORBELL_ZERO) {
        memset(to, 0, length);
    } else if (request->operation == DOORBELL_WRITE) {
        memcpy(to, (const void *)(uintptr_t)request->memory, length);
        host.moved += length;
    } else {
        const struct host_disk *source = &host.disks[request->source_disk];
        length = there(source, request->source_offset, length);
        if (length > 0) {
            memmove(to, source->bytes + request->source_offset, length);
        }
    }
    if (length > 0) {
        disk->length = max64(disk->length, request->offset + length);
    }
    return request->operation == DOORBELL_ZERO ? 0 : (int64_t)length;
}

static int64_t discard(const struct doorbell_request *request) {
    struct host_disk *disk = &host.disks[request->disk];
    disk->changes++;
    memset(disk->bytes + request->offset, 0, there(disk, request->offset, request->length));
    return 0;
}

static int64_t resize(const struct doorbell_request *request) {
    struct host_disk *disk = &host.disks[request->disk];
    if (request->length > disk->limit) {
        return -EFBIG;
    }
    disk->changes += request->length != disk->length;
    if (request->length < disk->length) {
        memset(disk->bytes + request->length, 0, disk->length - request->length);
    }
    disk->length = request->length;
    return 0;
}

static int64_t serve(const struct doorbell_request *request) {
    if (host.server != NULL) {
        return host.server(request);
    }
    switch (request->operation) {
    case DOORBELL_READ:
        return read_disk(request);
    case DOORBELL_WRITE:
    case DOORBELL_COPY:
    case DOORBELL_ZERO:
        return write_disk(request);
    case DOORBELL_DISCARD:
        return discard(request);
    case DOORBELL_RESIZE:
        return resize(request);
    case DOORBELL_RESERVE:
        return request->offset + request->length > host.disks[request->disk].limit ? -ENOSPC : 0;
    default:
        return 0;
    }
}

static int64_t answer(const struct doorbell_request *request) {
    bool counts = host.fail_for == 0 || host.fail_for == request->operation;
    if (host.requests++ >= host.requests_max) {
        end(HOST_ENDLESS);
    }
    if (host.logged < HOST_LOG) {
        host.log[host.logged++] =
            (struct host_request){request->operation, host.batches, request->offset, request->length};
    }
    if (counts && host.counted++ == host.fail_at) {
        return host.fail_with;
    }
    return serve(request);
}

void doorbell_ring(void) {
    u8 here;
    bool failed = false;
    host.lowest_stack = max64(host.lowest_stack, (u64)(stack_start - &here));
    if (bell.count == 0 || bell.count > DOORBELL_BATCH) {
        end(HOST_BROKEN);
    }
    for (u32 i = 0; i < bell.count; i++) {
        check(&bell.requests[i]);
    }
    for (u32 i = 0; i < bell.count; i++) {
        bell.requests[i].status = failed ? -ECANCELED : answer(&bell.requests[i]);
        failed |= bell.requests[i].status < 0;
    }
    host.batches++;
}

/* The linker sends calls of heap_open() here: the guest names an address that it has only in its own machine. */
void real_heap_open(void *start, u64 size) __asm__("__real_heap_open");
void own_heap_open(void *start, u64 size) __asm__("__wrap_heap_open");

void own_heap_open(void *start, u64 size) {
    (void)start;
    (void)size;
    real_heap_open(heap, host.memory - HEAP_ADDRESS);
}

int enter(entry *function, void *argument) {
    u8 here;
    int how = setjmp(ended);
    if (how != 0) {
        return how - 1;
    }
    stack_start = &here;
    bell.count = 0;
    host.payload_length = 0;
    memset(host.result, 0, sizeof(host.result));
    for (u32 i = 0; i < HOST_DISKS && host.server == NULL; i++) {
        ((struct call_header *)host.call)->disk_size[i] = host.disks[i].length;
    }
    heap_open(NULL, 0);
    function(argument);
    return HOST_FINISHED;
}

static void run_operation(void *unused) {
    (void)unused;
    guest_main(host.memory);
}

int host_run(void) { return enter(run_operation, NULL); }

static void verify_only(void *unused) {
    struct qcow2 image;
    struct refcounts refcounts;
    struct verification verification;
    (void)unused;
    qcow2_open(&image, 0, true);
    prepare(&image, &refcounts, &verification);
}

/* What every change is preceded by, and nothing else. */
int host_verify(void) { return enter(verify_only, NULL); }
