/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/pending_frees.h"

#define PENDING_ROOM 4096

void pending_open(struct pending_frees *pending, void (*relieve)(void *context), void *context) {
    *pending = (struct pending_frees){
        .frees = heap_take(PENDING_ROOM * sizeof(*pending->frees)), .relieve = relieve, .context = context};
}

void pending_close(struct pending_frees *pending) { *pending = (struct pending_frees){0}; }

void pending_add(struct pending_frees *pending, u64 cluster) {
    if (pending->frees == NULL) {
        return;
    }
    if (pending->count == PENDING_ROOM) {
        pending->relieve(pending->context);
    }
    pending->frees[pending->count++].cluster = cluster;
}

void pending_settle(const struct pending_frees *pending, u64 first, u64 count) {
    for (u32 i = 0; i < pending->count; i++) {
        if (pending->frees[i].cluster - first < count) {
            pending->relieve(pending->context);
            return;
        }
    }
}

void pending_forget(struct pending_frees *pending) { pending->count = 0; }
