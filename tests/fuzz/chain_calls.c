/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "chain_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    MORE_MAX = 2 << 11,
    GROWTH = 16 << 20,
    SPARE = PARTS
};

struct chain_state chain;

static u8 *memory[CHAIN_DISKS];

bool has_flag(u32 flag) { return (chain.input.flags & flag) != 0; }

/* Reserves what the disks take; once. The first one is the host's. */
static void reserve(void) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    for (u32 i = 1; i < CHAIN_DISKS && memory[i] == NULL; i++) {
        void *map = mmap(NULL, DISK_MAX, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (map == MAP_FAILED) {
            perror("mmap");
            exit(2);
        }
        memory[i] = map;
    }
}

static void open_disk(u32 index, const u8 *bytes, u64 size) {
    struct host_disk *disk = &chain.host->disks[index];
    disk->bytes = index == 0 ? disk->bytes : memory[index];
    disk->length = size;
    if (size > 0) {
        memcpy(disk->bytes, bytes, size);
    }
    if (chain.input.grown % PARTS == index) {
        disk->length += 512ull * (chain.input.more % MORE_MAX);
    }
    disk->limit = disk->length + GROWTH;
}

/* Disks from the parts of the input, and layers from the disks. */
static void open_parts(const u8 *data, u64 size) {
    bool spare = false;
    open_disk(SPARE, NULL, 0);
    for (u32 i = 0; i < PARTS; i++) {
        const struct chain_part *part = &chain.input.parts[i];
        u64 length = min64(part->length, size);
        u32 format = part->format % PART_FORMATS;
        open_disk(i, data, length);
        data += length;
        size -= length;
        if (format == PART_DATA || (length == 0 && format != LAYER_RAW)) {
            continue;
        }
        struct chain_layer *layer = &chain.layers[chain.count++];
        *layer = (struct chain_layer){.format = format, .disk = i};
        bool has_data = format == LAYER_QCOW2 && (chain.host->disks[i].bytes[79] & 4) != 0;
        bool has_part = i + 1 < PARTS && part[1].format % PART_FORMATS == PART_DATA;
        if (has_data && (has_part || !spare)) {
            layer->data_disk = has_part ? i + 1 : SPARE;
            spare |= !has_part;
        }
    }
}

bool calls_open(const u8 *data, u64 size) {
    chain = (struct chain_state){.host = host_open()};
    reserve();
    if (size < sizeof(chain.input) || size > INPUT_MAX) {
        return false;
    }
    memcpy(&chain.input, data, sizeof(chain.input));
    struct chain_input *input = &chain.input;
    open_parts(data + sizeof(*input), size - sizeof(*input));
    input->operation %= CHAIN_OPERATIONS;
    u32 all = chain.count;
    switch (input->operation) {
    case CHAIN_COMMIT:
        chain.base = all > 1 ? 1 + input->base % (all - 1) : 0;
        break;
    case CHAIN_REBASE:
    case CHAIN_COMPRESS:
        chain.count = all > 0 ? 1 + input->old_count % all : 0;
        chain.new_count = all - chain.count;
        input->shared = chain.count > 0 ? input->shared % chain.count : 0;
        if (input->shared > 0) {
            chain.new_count = chain.count - input->shared;
            memcpy(chain.layers + chain.count, chain.layers + input->shared, chain.new_count * sizeof(*chain.layers));
        }
        break;
    default:
        break;
    }
    bool is_image = chain.layers[0].format == LAYER_QCOW2 || input->operation != CHAIN_RELINK;
    return all > 0 && chain.layers[0].disk == 0 && is_image;
}

void calls_close(void) {
    for (u32 i = 1; i < CHAIN_DISKS; i++) {
        memset(memory[i], 0, chain.host->disks[i].length);
    }
}

static void allow(const struct chain_layer *layer) {
    chain.host->disks[layer->disk].writable = 1;
    chain.host->disks[layer->data_disk != 0 ? layer->data_disk : layer->disk].writable = 1;
}

static bool empties(void) { return has_flag(CHAIN_EMPTIES) && chain.base == 1; }

static void write_commit(bool dry) {
    struct call_commit *call = (struct call_commit *)chain.host->call;
    call->header.operation = CALL_COMMIT;
    call->layer_count = chain.count;
    call->base = chain.base;
    call->resize_allowed = has_flag(CHAIN_MAY_RESIZE);
    call->empties = empties();
    call->records_id = chain.base > 0 && has_flag(CHAIN_RECORDS_ID);
    call->dry_run = dry;
    memcpy(call->layers, chain.layers, chain.count * sizeof(*chain.layers));
    if (!dry) {
        allow(&chain.layers[chain.base]);
        if (call->empties != 0) {
            allow(&chain.layers[0]);
        }
        if (call->records_id != 0) {
            allow(&chain.layers[chain.base - 1]);
        }
    }
}

u32 name_length(void) {
    return chain.input.operation == CHAIN_RELINK || chain.new_count > 0 ? 1u + 4 * chain.input.name_length : 0;
}

static void write_rebase(bool dry) {
    struct call_rebase *call = (struct call_rebase *)chain.host->call;
    call->header.operation = CALL_REBASE;
    call->relinks = chain.input.operation == CHAIN_RELINK;
    call->compresses = chain.input.operation == CHAIN_COMPRESS;
    call->layer_count = call->relinks != 0 ? 1 : chain.count;
    call->new_layer_count = call->relinks != 0 ? 0 : chain.new_count;
    call->shared = call->relinks != 0 ? 0 : chain.input.shared;
    call->dry_run = dry;
    call->backing_length = (u16)name_length();
    call->format_length = has_flag(CHAIN_NO_FORMAT) || call->backing_length == 0 ? 0 : 5;
    memset(call->backing_name, 'n', call->backing_length);
    memcpy(call->backing_format, "qcow2", 5);
    memcpy(call->layers, chain.layers, chain.count * sizeof(*chain.layers));
    memcpy(call->new_layers, chain.layers + chain.count, chain.new_count * sizeof(*chain.layers));
    if (!dry) {
        allow(&chain.layers[0]);
    }
}

static void write_overlay(void) {
    struct call_overlay_create *call = (struct call_overlay_create *)chain.host->call;
    call->header.operation = CALL_OVERLAY_CREATE;
    call->virtual_size = chain.input.size;
    call->cluster_bits = chain.input.cluster_bits;
    call->backing_length = has_flag(CHAIN_BACKED) ? (u16)(1 + 4 * chain.input.name_length) : 0;
    call->format_length = has_flag(CHAIN_BACKED | CHAIN_NO_FORMAT) && call->backing_length != 0 ? 5 : 0;
    memset(call->backing_name, 'n', call->backing_length);
    memcpy(call->backing_format, "qcow2", 5);
    chain.host->disks[0].writable = 1;
}

void calls_write(bool dry) {
    memset(chain.host->call, 0, sizeof(chain.host->call));
    *(struct call_header *)chain.host->call =
        (struct call_header){.abi_version = ABI_VERSION, .disk_count = HOST_DISKS};
    for (u32 i = 0; i < CHAIN_DISKS; i++) {
        chain.host->disks[i].writable = 0;
    }
    switch (chain.input.operation) {
    case CHAIN_COMMIT:
        write_commit(dry);
        break;
    case CHAIN_EMPTY:
        ((struct call_header *)chain.host->call)->operation = CALL_EMPTY;
        ((struct call_empty *)chain.host->call)->layer = chain.layers[0];
        allow(&chain.layers[0]);
        break;
    case CHAIN_OVERLAY:
        write_overlay();
        break;
    case CHAIN_FACTS:
        ((struct call_header *)chain.host->call)->operation =
            chain.layers[0].format == LAYER_VMDK ? CALL_VMDK_INFO : CALL_IMAGE_INFO;
        break;
    default:
        write_rebase(dry);
    }
}
