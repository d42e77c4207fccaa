/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A backing chain: images of any format, each of which shows what those under it have where it has nothing.
 */
#ifndef AIRLOCK_CHAIN_CHAIN_H
#define AIRLOCK_CHAIN_CHAIN_H

#include "qcow2/lookup.h"
#include "vmdk/grains.h"

struct layer {
    enum layer_format format;
    struct disk disk;
    u64 size; /* of the disk that it shows, bytes */
    struct qcow2 *image;
    struct lookup lookup;
    struct vmdk *vmdk;
    struct grains grains;
};

static inline bool is_qcow2(const struct layer *layer) { return layer->format == LAYER_QCOW2; }
static inline bool is_vmdk(const struct layer *layer) { return layer->format == LAYER_VMDK; }

struct chain {
    struct layer *layers; /* the top first */
    u32 count;
    bool past_end; /* the first layer asked shows what its clusters hold behind the end of its disk, too */
    u8 *inflated;  /* the last compressed cluster that was read: of */
    u32 inflated_layer;
    u64 inflated_entry;
    u8 *deflated;
};

/* Opens what the call says there is. writable: a bit for each layer that will be written to; dirty or corrupt ones
 * are refused then. */
void chain_open(struct chain *chain, const struct chain_layer *layers, u32 count, u64 writable);

/* What the layers from `first` up to `end`, which is not one of them, show at `offset`: the extent of the first one
 * that has anything there, and in *layer which one that is (end: none). */
struct extent chain_at(struct chain *chain, u32 first, u32 end, u64 offset, u64 length, u32 *layer);

/* Queues copies of what the layers from `first` on show to a place on another disk. */
void chain_copy(struct chain *chain, u32 first, u64 offset, u64 length, struct disk *to, u64 host);

/* Reads it into memory. */
void chain_read(struct chain *chain, u32 first, u64 offset, u64 length, u8 *to);

#endif
