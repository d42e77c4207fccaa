/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "chain_images.h"

#include <string.h>

#include "chain/chain.h"
#include "entry.h"
#include "qcow2/preparation.h"
#include "vmdk/header.h"
#include "vmdk/verify.h"

enum {
    READ_AT_ONCE = 1 << 20
};

struct reading {
    const struct chain_layer *layers;
    u32 count;
    struct shown *shown;
};

static void read_shown(void *argument) {
    const struct reading *reading = argument;
    struct shown *shown = reading->shown;
    struct chain chain;
    chain_open(&chain, reading->layers, reading->count, 0);
    shown->length = min64(chain.layers[0].size, SHOWN_MAX);
    for (u64 at = 0; at < shown->length; at += READ_AT_ONCE) {
        chain_read(&chain, 0, at, min64(shown->length - at, READ_AT_ONCE), shown->bytes + at);
    }
    shown->size = chain.layers[0].size;
}

static void prepare_host(struct host *host) {
    struct call_header *call = (struct call_header *)host->call;
    memset(host->call, 0, sizeof(host->call));
    *call = (struct call_header){.abi_version = ABI_VERSION, .disk_count = HOST_DISKS};
    host->requests = host->logged = 0;
    host->fail_at = UINT64_MAX;
}

void look(struct host *host, const struct chain_layer *layers, u32 count, struct shown *shown) {
    struct reading reading = {layers, count, shown};
    prepare_host(host);
    shown->size = UINT64_MAX;
    enter(read_shown, &reading);
}

struct verifying {
    const struct chain_layer *layer;
    bool grows;
    bool alike;
};

/* Two arrays of directory entries, and the tables that they name. */
static bool are_alike(struct vmdk *image) {
    u64 size = table_bytes(image);
    u8 *tables = heap_take(2 * size);
    bool alike = true;
    for (u64 i = 0; i < image->tables && alike; i++) {
        u32 entries[2];
        directory_read(image, image->directory_offset, i, 1, &entries[0]);
        directory_read(image, image->redundant_offset, i, 1, &entries[1]);
        disk_read(&image->disk, entries[0] * SECTOR, tables, size);
        disk_read(&image->disk, entries[1] * SECTOR, tables + size, size);
        alike = memcmp(tables, tables + size, size) == 0;
    }
    return alike;
}

static void verify_one(void *argument) {
    struct verifying *verifying = argument;
    const struct chain_layer *layer = verifying->layer;
    if (layer->format == LAYER_VMDK) {
        struct vmdk image;
        vmdk_open(&image, layer->disk, true);
        vmdk_verify(&image, verifying->grows);
        verifying->alike = image.redundant_offset != 0 && are_alike(&image);
    } else if (layer->format == LAYER_QCOW2) {
        struct qcow2 image;
        struct refcounts refcounts;
        struct verification verification;
        qcow2_open(&image, layer->disk, true);
        prepare(&image, &refcounts, &verification);
    }
}

enum refusal verify_layer(struct host *host, const struct chain_layer *layer, bool grows, u64 *leaked, bool *alike) {
    const struct result_header *result = (const struct result_header *)host->result;
    struct verifying verifying = {layer, grows, false};
    prepare_host(host);
    enter(verify_one, &verifying);
    *leaked = result->leaked_clusters;
    *alike = verifying.alike;
    return result->code;
}
