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
#include "operations/preparation.h"

#include "host.h"
#include "entry.h"

static struct host host;
static struct doorbell bell;
static u8 *heap;
static jmp_buf ended;
static const u8 *stack_start;

enum {
    HEAP_BYTES = MEMORY_SIZE - HEAP_ADDRESS
};

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
    if (host.disk == NULL) {
        host.capacity = 1ull << 43;
        host.disk = reserve_memory(host.capacity);
        heap = reserve_memory(HEAP_BYTES);
    }
    host_clear();
    return &host;
}

void host_clear(void) {
    u8 *disk = host.disk;
    u64 capacity = host.capacity;
    if (host.length > 64 * MIB) {
        madvise(disk, host.length, MADV_DONTNEED);
    } else {
        memset(disk, 0, host.length);
    }
    memset(&host, 0, offsetof(struct host, log));
    host.disk = disk;
    host.capacity = host.limit = capacity;
    host.fail_at = UINT64_MAX;
    host.requests_max = 1u << 20;
    host.writable = 1;
}

void host_rest(void) {
    madvise(host.disk, host.capacity, MADV_DONTNEED);
    madvise(heap, HEAP_BYTES, MADV_DONTNEED);
    host.length = 0;
    host_clear();
}

void host_load(const u8 *bytes, u64 offset, u64 length) { memcpy(host.disk + offset, bytes, length); }

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

static void check(const struct doorbell_request *request) {
    u64 limit = INT64_MAX;
    bool changes = request->operation != DOORBELL_READ;
    bool known = request->operation >= DOORBELL_READ && request->operation <= DOORBELL_PROGRESS;
    bool there = request->disk == 0 || (request->disk == 1 && host.other_length != 0 && !changes);
    there &= request->source_disk == 0 || (request->source_disk == 1 && host.other_length != 0);
    if (!known || !there || request->offset > limit || request->length > limit - request->offset ||
        (changes && !host.writable)) {
        end(HOST_BROKEN);
    }
}

static void cut_or_grow(u64 length) {
    if (length < host.length) {
        memset(host.disk + length, 0, host.length - length);
    }
    host.length = length;
}

static int64_t serve(const struct doorbell_request *request) {
    u64 end_of_request = request->offset + request->length;
    void *memory = (void *)(uintptr_t)request->memory;
    switch (request->operation) {
    case DOORBELL_READ: {
        const u8 *disk = request->disk == 0 ? host.disk : host.other;
        u64 end_of_disk = request->disk == 0 ? host.length : host.other_length;
        u64 left = request->offset < end_of_disk ? end_of_disk - request->offset : 0;
        u64 length = min64(request->length, left);
        if (length > 0) {
            memcpy(memory, disk + request->offset, length);
        }
        host.moved += length;
        return (int64_t)length;
    }
    case DOORBELL_WRITE:
        if (end_of_request > host.limit) {
            return -EFBIG;
        }
        memcpy(host.disk + request->offset, memory, request->length);
        host.length = max64(host.length, end_of_request);
        host.moved += request->length;
        host.changes++;
        return (int64_t)request->length;
    case DOORBELL_COPY: {
        const u8 *source = request->source_disk == 0 ? host.disk : host.other;
        u64 end_of_source = request->source_disk == 0 ? host.length : host.other_length;
        u64 left = request->source_offset < end_of_source ? end_of_source - request->source_offset : 0;
        u64 length = min64(request->length, left);
        if (end_of_request > host.limit) {
            return -EFBIG;
        }
        if (length > 0) {
            memmove(host.disk + request->offset, source + request->source_offset, length);
            host.length = max64(host.length, request->offset + length);
        }
        host.changes++;
        return (int64_t)length;
    }
    case DOORBELL_ZERO:
        if (end_of_request > host.limit) {
            return -EFBIG;
        }
        memset(host.disk + request->offset, 0, request->length);
        host.length = max64(host.length, end_of_request);
        host.changes++;
        return 0;
    case DOORBELL_DISCARD:
        host.changes++;
        if (request->offset < host.length) {
            memset(host.disk + request->offset, 0, min64(request->length, host.length - request->offset));
        }
        return 0;
    case DOORBELL_RESIZE:
        if (request->length > host.limit) {
            return -EFBIG;
        }
        host.changes += request->length != host.length;
        cut_or_grow(request->length);
        return 0;
    case DOORBELL_RESERVE:
        return end_of_request > host.limit ? -ENOSPC : 0;
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
    real_heap_open(heap, HEAP_BYTES);
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
    ((struct call_header *)host.call)->disk_size[0] = host.length;
    ((struct call_header *)host.call)->disk_size[1] = host.other_length;
    heap_open(NULL, 0);
    function(argument);
    return HOST_FINISHED;
}

static void run_operation(void *unused) {
    (void)unused;
    guest_main();
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
