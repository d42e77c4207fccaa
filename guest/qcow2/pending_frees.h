/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Clusters that lost a reference in memory, while a table on the disk may still have it: tables are changed in memory
 * here, and the changes are written later. Until then the disk counts such a cluster once more than memory does, and
 * nothing takes it anew: a crash leaves it leaked at worst, and never in use twice.
 */
#ifndef AIRLOCK_QCOW2_PENDING_FREES_H
#define AIRLOCK_QCOW2_PENDING_FREES_H

#include "start/guest.h"

struct pending_free {
    u64 cluster;
    u64 refcount; /* in memory, while the disk is told another one */
};

/* From pending_open() to pending_close(): the time in which tables are changed in memory. */
struct pending_frees {
    struct pending_free *frees; /* NULL: not open, and what is freed is free at once */
    u32 count;
    void (*relieve)(void *context); /* writes the tables, so that the disk refers to none of them any more */
    void *context;
};

void pending_open(struct pending_frees *pending, void (*relieve)(void *context), void *context);
void pending_close(struct pending_frees *pending);

/* A reference to the cluster is gone in memory. */
void pending_add(struct pending_frees *pending, u64 cluster);

/* Before clusters are taken: sees to it that they are free on the disk as well. */
void pending_settle(const struct pending_frees *pending, u64 first, u64 count);

/* The tables are on the disk: nothing is pending any more. */
void pending_forget(struct pending_frees *pending);

#endif
