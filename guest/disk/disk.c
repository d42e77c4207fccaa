/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "disk/disk.h"

#define ENOSPC 28
#define EDQUOT 122
#define EIO 5
#define REQUEST_MAX (16 * MIB) /* so that progress, time limits and undo logs come in steps */
#define COPY_MAX (64 * MIB)    /* of a request in which nothing passes through here */

static struct disk *owners[DOORBELL_BATCH];     /* of the requests that are queued */
static struct doorbell_request latest_progress; /* goes with the next of them; its operation is 0: there is none */

static _Noreturn void give_up(struct disk *disk, const struct doorbell_request *request, u64 error) {
    result_disk(request->disk);
    if (request->operation == DOORBELL_READ) {
        refuse(REFUSAL_READ_FAILED, .a = error, .b = request->offset, .c = request->length);
    }
    if (request->operation == DOORBELL_RESERVE && (error == ENOSPC || error == EDQUOT)) {
        const struct doorbell_request failed = *request;
        disk_resize(disk, disk->size); /* lets go of blocks reserved behind the end */
        refuse(REFUSAL_NO_SPACE, .a = error, .b = failed.offset, .c = failed.length);
    }
    refuse(REFUSAL_WRITE_FAILED, .a = error, .b = request->offset, .c = request->length);
}

static bool modifies(const struct doorbell_request *request, const struct disk *disk) {
    switch (request->operation) {
    case DOORBELL_WRITE:
    case DOORBELL_COPY:
    case DOORBELL_ZERO:
    case DOORBELL_DISCARD:
        return true;
    case DOORBELL_RESIZE:
        return request->length != disk->size;
    default:
        return false;
    }
}

/* Short reads are filled up with zeros: qemu reads behind the end so. Of a short copy the rest is returned. */
static u64 finish_one(struct disk *disk, const struct doorbell_request *request) {
    u64 done = (u64)request->status;
    if (request->status < 0) {
        give_up(disk, request, (u64)-request->status);
    }
    bool moves = request->operation == DOORBELL_READ || request->operation == DOORBELL_COPY;
    if (moves && done > request->length) {
        give_up(disk, request, EIO);
    }
    if (request->operation == DOORBELL_READ) {
        memset((u8 *)(uintptr_t)request->memory + done, 0, request->length - done);
    } else if (request->operation == DOORBELL_WRITE || request->operation == DOORBELL_COPY ||
               request->operation == DOORBELL_ZERO) {
        disk->size = max64(disk->size, request->offset + request->length);
    }
    return request->operation == DOORBELL_COPY ? request->length - done : 0;
}

static bool has_progress(void) { return latest_progress.operation != 0; }

static void queue_progress(struct doorbell *bell) {
    owners[bell->count] = NULL;
    bell->requests[bell->count++] = latest_progress;
    latest_progress.operation = 0;
}

void disk_run(void) {
    struct doorbell *bell = doorbell_memory();
    static struct {
        u64 offset;
        u64 length;
    } rests[DOORBELL_BATCH];
    static struct disk *rest_owners[DOORBELL_BATCH];
    u32 rest_count = 0;
    if (bell->count == 0) {
        return;
    }
    if (has_progress() && bell->count < DOORBELL_BATCH) {
        queue_progress(bell);
    }
    const u32 count = bell->count;
    for (u32 i = 0; i < count; i++) {
        if (modifies(&bell->requests[i], owners[i])) {
            result_modified();
        }
    }
    doorbell_ring();
    bell->count = 0;
    for (u32 i = 0; i < count; i++) {
        u64 rest = finish_one(owners[i], &bell->requests[i]);
        if (rest > 0) {
            rests[rest_count].offset = bell->requests[i].offset + bell->requests[i].length - rest;
            rests[rest_count].length = rest;
            rest_owners[rest_count++] = owners[i];
        }
    }
    for (u32 i = 0; i < rest_count; i++) {
        disk_queue_zero(rest_owners[i], rests[i].offset, rests[i].length);
    }
    if (rest_count > 0) {
        disk_run();
    }
}

static bool continues(const struct doorbell_request *last, const struct doorbell_request *next) {
    bool has_memory = next->operation == DOORBELL_READ || next->operation == DOORBELL_WRITE;
    bool copies = next->operation == DOORBELL_COPY;
    return last->operation == next->operation && last->disk == next->disk &&
           last->offset + last->length == next->offset &&
           (!has_memory || last->memory + last->length == next->memory) &&
           (!copies ||
            (last->source_disk == next->source_disk && last->source_offset + last->length == next->source_offset)) &&
           last->length + next->length <= (copies ? COPY_MAX : REQUEST_MAX);
}

static void queue_one(struct disk *disk, const struct doorbell_request *request) {
    struct doorbell *bell = doorbell_memory();
    if (bell->count > 0 && continues(&bell->requests[bell->count - 1], request)) {
        bell->requests[bell->count - 1].length += request->length;
        return;
    }
    if (bell->count + has_progress() >= DOORBELL_BATCH) {
        disk_run();
    }
    if (bell->count == 0 && has_progress()) {
        queue_progress(bell); /* in front: the host shall know it before it writes */
    }
    owners[bell->count] = request->operation == DOORBELL_READ ? NULL : disk;
    bell->requests[bell->count++] = *request;
}

static void queue(struct disk *disk, u32 operation, u64 offset, u64 memory, u64 length) {
    while (length > 0) {
        u64 part = min64(length, REQUEST_MAX);
        queue_one(disk,
                  &(struct doorbell_request){
                      .operation = operation, .disk = disk->index, .offset = offset, .length = part, .memory = memory});
        offset += part;
        memory += part;
        length -= part;
    }
}

void disk_queue_copy(struct disk *disk, u64 offset, u32 source, u64 source_offset, u64 length) {
    while (length > 0) {
        u64 part = min64(length, COPY_MAX);
        queue_one(disk, &(struct doorbell_request){.operation = DOORBELL_COPY,
                                                   .disk = disk->index,
                                                   .offset = offset,
                                                   .length = part,
                                                   .source_disk = source,
                                                   .source_offset = source_offset});
        offset += part;
        source_offset += part;
        length -= part;
    }
}

void disk_queue_zero(struct disk *disk, u64 offset, u64 length) { queue(disk, DOORBELL_ZERO, offset, 0, length); }

void disk_queue_read(struct disk *disk, u64 offset, void *memory, u64 length) {
    queue(disk, DOORBELL_READ, offset, (u64)(uintptr_t)memory, length);
}

void disk_queue_write(struct disk *disk, u64 offset, const void *memory, u64 length) {
    queue(disk, DOORBELL_WRITE, offset, (u64)(uintptr_t)memory, length);
}

void disk_queue_discard(struct disk *disk, u64 offset, u64 length) { queue(disk, DOORBELL_DISCARD, offset, 0, length); }

void disk_queue_reserve(struct disk *disk, u64 offset, u64 length) { queue(disk, DOORBELL_RESERVE, offset, 0, length); }

void disk_read(struct disk *disk, u64 offset, void *memory, u64 length) {
    disk_queue_read(disk, offset, memory, length);
    disk_run();
}

void disk_write(struct disk *disk, u64 offset, const void *memory, u64 length) {
    disk_queue_write(disk, offset, memory, length);
    disk_run();
}

void disk_reserve(struct disk *disk, u64 offset, u64 length) {
    disk_queue_reserve(disk, offset, length);
    disk_run();
}

void disk_resize(struct disk *disk, u64 length) {
    queue_one(disk, &(struct doorbell_request){.operation = DOORBELL_RESIZE, .disk = disk->index, .length = length});
    disk_run();
    disk->size = length;
}

void disk_flush(struct disk *disk) {
    queue_one(disk, &(struct doorbell_request){.operation = DOORBELL_FLUSH, .disk = disk->index});
    disk_run();
}

void disk_progress(u64 done, u64 total) {
    latest_progress = (struct doorbell_request){.operation = DOORBELL_PROGRESS, .offset = done, .length = total};
}
