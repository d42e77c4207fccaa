/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "disk/disk.h"

#define ENOSPC 28
#define EDQUOT 122
#define EIO 5
#define REQUEST_MAX (16 * MIB) /* so that progress, time limits and undo logs come in steps */

static _Noreturn void give_up(struct disk *disk, const struct doorbell_request *request, u64 error) {
    if (request->operation == DOORBELL_READ) {
        refuse(REFUSAL_READ_FAILED, error, request->offset, request->length, 0, 0, 0);
    }
    if (request->operation == DOORBELL_RESERVE && (error == ENOSPC || error == EDQUOT)) {
        const struct doorbell_request failed = *request;
        disk_resize(disk, disk->size); /* lets go of blocks reserved behind the end */
        refuse(REFUSAL_NO_SPACE, error, failed.offset, failed.length, 0, 0, 0);
    }
    refuse(REFUSAL_WRITE_FAILED, error, request->offset, request->length, 0, 0, 0);
}

/* Runs what is queued. Short reads are filled up with zeros: qemu reads behind the end so. */
void disk_run(struct disk *disk) {
    struct doorbell *bell = doorbell_memory();
    u32 count = bell->count;
    if (count == 0) {
        return;
    }
    for (u32 i = 0; i < count; i++) {
        const struct doorbell_request *request = &bell->requests[i];
        if (request->operation == DOORBELL_WRITE || request->operation == DOORBELL_DISCARD ||
            (request->operation == DOORBELL_RESIZE && request->length != disk->size)) {
            result_modified();
        }
    }
    doorbell_ring();
    bell->count = 0;
    for (u32 i = 0; i < count; i++) {
        struct doorbell_request *request = &bell->requests[i];
        if (request->status < 0) {
            give_up(disk, request, (u64)-request->status);
        }
        if (request->operation == DOORBELL_READ) {
            u64 got = (u64)request->status;
            if (got > request->length) {
                give_up(disk, request, EIO);
            }
            memset((u8 *)(uintptr_t)request->memory + got, 0, request->length - got);
        } else if (request->operation == DOORBELL_WRITE) {
            disk->size = max64(disk->size, request->offset + request->length);
        }
    }
}

static void queue_one(struct disk *disk, u32 operation, u64 offset, u64 memory, u64 length) {
    struct doorbell *bell = doorbell_memory();
    bool has_memory = operation == DOORBELL_READ || operation == DOORBELL_WRITE;
    if (bell->count > 0) {
        struct doorbell_request *last = &bell->requests[bell->count - 1];
        if (last->operation == operation && last->disk == disk->index && last->offset + last->length == offset &&
            (!has_memory || last->memory + last->length == memory) && last->length + length <= REQUEST_MAX) {
            last->length += length;
            return;
        }
    }
    if (bell->count == DOORBELL_BATCH) {
        disk_run(disk);
    }
    struct doorbell_request *request = &bell->requests[bell->count++];
    *request = (struct doorbell_request){
        .operation = operation, .disk = disk->index, .offset = offset, .length = length, .memory = memory};
}

static void queue(struct disk *disk, u32 operation, u64 offset, u64 memory, u64 length) {
    while (length > 0) {
        u64 part = min64(length, REQUEST_MAX);
        queue_one(disk, operation, offset, memory, part);
        offset += part;
        memory += part;
        length -= part;
    }
}

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
    disk_run(disk);
}

void disk_write(struct disk *disk, u64 offset, const void *memory, u64 length) {
    disk_queue_write(disk, offset, memory, length);
    disk_run(disk);
}

void disk_resize(struct disk *disk, u64 length) {
    queue_one(disk, DOORBELL_RESIZE, 0, 0, length);
    disk_run(disk);
    disk->size = length;
}

void disk_flush(struct disk *disk) {
    queue_one(disk, DOORBELL_FLUSH, 0, 0, 0);
    disk_run(disk);
}
