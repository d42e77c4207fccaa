/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "chain/chain.h"

#include "qcow2/compression.h"
#include "qcow2/header.h"
#include "vmdk/header.h"

#define LOOKUP_BYTES (24 * MIB) /* for the L2 tables of all layers */
#define LOOKUP_BYTES_MAX (2 * MIB)
#define LOOKUP_BYTES_WRITABLE (8 * MIB) /* its tables go to the file together, and three flushes with them */

/* Of a layer that is only read, the header's cluster is not wanted any more when it has been understood: many layers
 * with large clusters would fill the memory. */
static void open_qcow2(struct qcow2 *image, u32 disk, bool writable) {
    void *mark = heap_mark();
    qcow2_open(image, disk, writable);
    if (!writable) {
        qcow2_forget_header(image);
        heap_release(mark);
    }
}

static void open_layer(struct layer *layer, const struct chain_layer *given, bool writable, u64 bytes) {
    const struct call_header *call = call_memory();
    if (given->disk >= call->disk_count || given->data_disk >= call->disk_count) {
        refuse(REFUSAL_BAD_CALL);
    }
    *layer = (struct layer){.format = given->format};
    switch (given->format) {
    case LAYER_QCOW2:
        layer->image = heap_take(sizeof(*layer->image));
        open_qcow2(layer->image, given->disk, writable);
        layer->disk = layer->image->disk;
        layer->size = layer->image->virtual_size;
        if (has_data_file(layer->image) != (given->data_disk != 0)) {
            refuse(REFUSAL_BAD_CALL);
        }
        if (layer->image->encryption != 0) {
            refuse(REFUSAL_ENCRYPTED);
        }
        lookup_open(&layer->lookup, layer->image, given->data_disk != 0 ? given->data_disk : given->disk, bytes,
                    writable);
        return;
    case LAYER_VMDK:
        layer->vmdk = heap_take(sizeof(*layer->vmdk));
        vmdk_open(layer->vmdk, given->disk, writable);
        layer->disk = layer->vmdk->disk;
        layer->size = layer->vmdk->virtual_size;
        grains_open(&layer->grains, layer->vmdk, bytes);
        return;
    case LAYER_RAW:
        layer->disk = (struct disk){.index = given->disk, .size = call->disk_size[given->disk]};
        layer->size = round_up(layer->disk.size, 512);
        return;
    default:
        refuse(REFUSAL_BAD_CALL);
    }
}

void chain_open(struct chain *chain, const struct chain_layer *layers, u32 count, u64 writable) {
    if (count == 0 || count > DISKS_MAX) {
        refuse(REFUSAL_BAD_CALL);
    }
    *chain = (struct chain){.count = count, .inflated_layer = UINT32_MAX};
    chain->layers = heap_take(count * sizeof(struct layer));
    for (u32 i = 0; i < count; i++) {
        const bool is_writable = ((writable >> i) & 1) != 0;
        u64 bytes = min64(LOOKUP_BYTES / count, LOOKUP_BYTES_MAX);
        open_layer(&chain->layers[i], &layers[i], is_writable, is_writable ? LOOKUP_BYTES_WRITABLE : bytes);
    }
    result_disk(layers[0].disk);
}

struct extent chain_at(struct chain *chain, u32 first, u32 end, u64 offset, u64 length, u32 *layer) {
    for (u32 i = first; i < end; i++) {
        struct layer *at = &chain->layers[i];
        *layer = i;
        if (i > first || !chain->past_end) {
            if (offset >= at->size) { /* a shorter layer hides what is under it: it reads as zeros there */
                return (struct extent){.kind = EXTENT_ZERO, .length = length};
            }
            length = min64(length, at->size - offset);
        }
        struct extent found = {EXTENT_DATA, at->disk.index, offset, length, 0};
        if (at->format == LAYER_QCOW2) {
            found = lookup_at(&at->lookup, offset, length);
        } else if (at->format == LAYER_VMDK) {
            found = grains_at(&at->grains, offset, length);
        }
        if (found.kind != EXTENT_ABSENT) {
            return found;
        }
        length = found.length;
    }
    *layer = end;
    return (struct extent){.kind = EXTENT_ABSENT, .length = length};
}

/* The bytes of a compressed cluster, kept until another one is wanted. */
static const u8 *inflate_cluster(struct chain *chain, u32 layer, const struct extent *extent) {
    struct qcow2 *image = chain->layers[layer].image;
    if (chain->inflated == NULL) {
        chain->inflated = heap_take(2 * MIB);
        chain->deflated = heap_take(COMPRESSED_MAX);
    }
    if (chain->inflated_layer != layer || chain->inflated_entry != extent->entry) {
        result_disk(image->disk.index);
        inflate_entry(image, extent->entry, chain->inflated, chain->deflated);
        result_disk(chain->layers[0].disk.index);
        chain->inflated_layer = layer;
        chain->inflated_entry = extent->entry;
    }
    return chain->inflated;
}

void chain_read(struct chain *chain, u32 first, u64 offset, u64 length, u8 *to) {
    while (length > 0) {
        u32 layer;
        struct extent found = chain_at(chain, first, chain->count, offset, length, &layer);
        if (found.kind == EXTENT_DATA) {
            disk_queue_read(&(struct disk){.index = found.disk}, found.host, to, found.length);
        } else if (found.kind == EXTENT_COMPRESSED) {
            disk_run();
            const u8 *cluster = inflate_cluster(chain, layer, &found);
            memcpy(to, cluster + offset_in_cluster(chain->layers[layer].image, offset), found.length);
        } else {
            memset(to, 0, found.length);
        }
        offset += found.length;
        to += found.length;
        length -= found.length;
    }
    disk_run();
}

void chain_copy(struct chain *chain, u32 first, u64 offset, u64 length, struct disk *to, u64 host) {
    while (length > 0) {
        u32 layer;
        struct extent found = chain_at(chain, first, chain->count, offset, length, &layer);
        if (found.kind == EXTENT_DATA) {
            if (found.disk != to->index || found.host != host) {
                disk_queue_copy(to, host, found.disk, found.host, found.length);
            }
        } else if (found.kind == EXTENT_COMPRESSED) {
            disk_run();
            const u8 *cluster = inflate_cluster(chain, layer, &found);
            disk_write(to, host, cluster + offset_in_cluster(chain->layers[layer].image, offset), found.length);
        } else {
            disk_queue_zero(to, host, found.length);
        }
        offset += found.length;
        host += found.length;
        length -= found.length;
    }
}
