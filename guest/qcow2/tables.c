/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/tables.h"

#define TABLES_WINDOW (4 * MIB)

void tables_open(struct table_batch *batch, struct qcow2 *image, table_visit *visit, void *context) {
    batch->image = image;
    batch->visit = visit;
    batch->context = context;
    batch->count = 0;
    batch->room = (u32)min64(TABLES_WINDOW / image->cluster_size, DOORBELL_BATCH - 1); /* one: for the progress */
    batch->memory = heap_take(batch->room * image->cluster_size);
}

void tables_add(struct table_batch *batch, const struct table_item *item) {
    if (batch->count == batch->room) {
        tables_run(batch);
    }
    batch->items[batch->count++] = *item;
}

void tables_run(struct table_batch *batch) {
    struct qcow2 *image = batch->image;
    bool changed[DOORBELL_BATCH];
    for (u32 i = 0; i < batch->count; i++) {
        u8 *table = batch->memory + i * image->cluster_size;
        disk_queue_read(&image->disk, batch->items[i].offset, table, image->cluster_size);
    }
    disk_run();
    for (u32 i = 0; i < batch->count; i++) {
        changed[i] = batch->visit(batch->context, &batch->items[i], batch->memory + i * image->cluster_size);
    }
    work_done(&image->work, batch->count * image->cluster_size);
    for (u32 i = 0; i < batch->count; i++) {
        if (changed[i]) {
            u8 *table = batch->memory + i * image->cluster_size;
            disk_queue_write(&image->disk, batch->items[i].offset, table, image->cluster_size);
        }
    }
    disk_run();
    batch->count = 0;
}
