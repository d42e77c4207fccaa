/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Reading (and writing back) many L2 tables or refcount blocks: they are fetched in windows of
 * megabytes, visited one by one, and those that a visit changed are written in one go.
 */
#ifndef AIRLOCK_QCOW2_TABLES_H
#define AIRLOCK_QCOW2_TABLES_H

#include "qcow2/format.h"

struct table_item {
    u64 offset; /* of the table in the file */
    u64 index;  /* of the entry that names it */
    u32 weight; /* for the visitor: how many references the table stands for */
    u32 owner;  /* for the visitor */
};

/* Returns true when it changed the table. */
typedef bool table_visit(void *context, const struct table_item *item, u8 *table);

struct table_batch {
    struct qcow2 *image;
    table_visit *visit;
    void *context;
    u8 *memory;
    u32 room;
    u32 count;
    struct table_item items[DOORBELL_BATCH];
};

void tables_open(struct table_batch *batch, struct qcow2 *image, table_visit *visit, void *context);
void tables_add(struct table_batch *batch, const struct table_item *item);
void tables_run(struct table_batch *batch);

#endif
