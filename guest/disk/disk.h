/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Batched requests. A request is queued, joined to its neighbour where both sides continue, and run
 * with the others when the batch is full or disk_run() is called. A request that fails ends the
 * operation with a refusal; so nothing here returns an error.
 */
#ifndef AIRLOCK_DISK_DISK_H
#define AIRLOCK_DISK_DISK_H

#include "start/guest.h"

#define SECTOR 512ull /* bytes: what a disk writes as a whole */

struct disk {
    u32 index;
    u64 size; /* bytes: the file's length as it is now */
};

enum {
    DISK_QUEUE_MAX = DOORBELL_BATCH
}; /* that are run together; one more runs them first */

/* Queues. The memory must stay as it is until disk_run(), and the struct disk where it is: its size becomes what the
 * requests make of it only when they have been run. A read past the end gives zeros. */
void disk_queue_read(struct disk *disk, u64 offset, void *memory, u64 length);
void disk_queue_write(struct disk *disk, u64 offset, const void *memory, u64 length);
void disk_queue_discard(struct disk *disk, u64 offset, u64 length);
void disk_queue_zero(struct disk *disk, u64 offset, u64 length);
/* Past the end of the source: zeros. */
void disk_queue_copy(struct disk *disk, u64 offset, u32 source, u64 source_offset, u64 length);
void disk_queue_reserve(struct disk *disk, u64 offset, u64 length);
void disk_run(void);

/* At once. */
void disk_read(struct disk *disk, u64 offset, void *memory, u64 length);
void disk_write(struct disk *disk, u64 offset, const void *memory, u64 length);
void disk_reserve(struct disk *disk, u64 offset, u64 length);
void disk_resize(struct disk *disk, u64 length);
void disk_flush(struct disk *disk);

/* Tells how far the operation is, with the next requests. */
void disk_progress(u64 done, u64 total);

#endif
