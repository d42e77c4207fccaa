/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "chain/top.h"

#include "qcow2/emptying.h"
#include "qcow2/preparation.h"

u64 top_clusters(struct chain *chain) {
    const struct layer *top = &chain->layers[0];
    u64 count = 0;
    for (u64 at = 0; at < top->size;) {
        u32 layer;
        struct extent found = chain_at(chain, 0, 1, at, top->size - at, &layer);
        if (found.kind != EXTENT_ABSENT) {
            count += clusters_of(top->image, at + found.length) - at / top->image->cluster_size;
        }
        at += found.length;
    }
    return count;
}

void top_empty(struct chain *chain, struct refcounts *refcounts) {
    struct layer *top = &chain->layers[0];
    const struct call_header *call = call_memory();
    struct disk data = {.index = top->lookup.data_disk, .size = call->disk_size[top->lookup.data_disk]};
    prepare_header(top->image);
    image_empty(top->image, refcounts, has_data_file(top->image) ? &data : NULL);
}
