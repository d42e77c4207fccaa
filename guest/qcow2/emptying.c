/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/emptying.h"

#include "qcow2/bitmaps.h"
#include "qcow2/discarding.h"
#include "qcow2/header.h"

static u64 clusters_left(const struct qcow2 *image) {
    return CLUSTERS_IN_FRONT + clusters_of(image, 8ull * image->l1_entries);
}

/* Nothing but the disk itself keeps clusters, and one refcount block counts what stays. */
static bool can_start_anew(const struct qcow2 *image, const struct refcounts *refcounts) {
    return image->version >= 3 && image->snapshot_count == 0 && !bitmaps_present(image) && image->encryption == 0 &&
           !has_data_file(image) && clusters_left(image) <= 1ull << refcounts->cache.block_bits;
}

static bool meets(u64 offset, u64 length, u64 start, u64 end) { return offset < end && start < offset + length; }

/* Do the tables of now lie where the new ones are to be written? */
static bool tables_in_the_way(const struct qcow2 *image, const struct refcounts *refcounts) {
    const u64 cluster = image->cluster_size;
    const u64 end = clusters_left(image) * cluster;
    bool found = meets(image->refcount_table_offset, image->refcount_table_clusters * cluster, cluster, end) ||
                 meets(image->l1_offset, 8ull * image->l1_entries, cluster, end);
    for (u32 i = 0; i < refcounts->cache.table_entries; i++) {
        found |= refcounts->cache.table[i] != 0 && meets(refcounts->cache.table[i], cluster, cluster, end);
    }
    return found;
}

static bool is_in_place(const struct qcow2 *image, const struct refcounts *refcounts) {
    const u64 cluster = image->cluster_size;
    return image->refcount_table_offset == cluster && image->refcount_table_clusters == 1 &&
           refcounts->cache.table[0] == 2 * cluster && image->l1_offset == CLUSTERS_IN_FRONT * cluster;
}

/* First those blocks go that are not the first, then what that one need not count. */
void empty_tables_write(struct qcow2 *image, u64 l1_bytes) {
    const u64 cluster = image->cluster_size;
    disk_write(&image->disk, CLUSTERS_IN_FRONT * cluster, heap_take_zeroed(l1_bytes), l1_bytes);
    u8 *block = heap_take_zeroed(cluster);
    for (u64 i = 0; i < clusters_left(image); i++) {
        block_set(block, image->refcount_order, i, 1);
    }
    u8 *table = heap_take_zeroed(cluster);
    store64(table, 2 * cluster);
    disk_write(&image->disk, cluster, table, cluster);
    disk_flush(&image->disk);
    disk_write(&image->disk, 2 * cluster, block, cluster);
    disk_flush(&image->disk);
}

static void start_anew(struct qcow2 *image, const struct refcounts *refcounts) {
    const u64 cluster = image->cluster_size;
    const bool in_place = is_in_place(image, refcounts);
    const bool tears = !in_place && tables_in_the_way(image, refcounts);
    u64 l1_bytes = 8ull * image->l1_entries;
    disk_write(&image->disk, image->l1_offset, heap_take_zeroed(l1_bytes), l1_bytes);
    disk_flush(&image->disk);
    if (tears) {
        image->incompatible |= INCOMPATIBLE_DIRTY;
        header_write_features(image);
    }
    empty_tables_write(image, (clusters_left(image) - CLUSTERS_IN_FRONT) * cluster);
    image->l1_offset = CLUSTERS_IN_FRONT * cluster;
    image->refcount_table_offset = cluster;
    image->refcount_table_clusters = 1;
    if (!in_place) {
        header_write_tables(image);
    }
    image->incompatible &= ~INCOMPATIBLE_DIRTY;
    header_rewrite(image);
    disk_resize(&image->disk, clusters_left(image) * cluster);
    disk_flush(&image->disk);
}

void image_empty(struct qcow2 *image, struct refcounts *refcounts, struct disk *data) {
    if (can_start_anew(image, refcounts)) {
        start_anew(image, refcounts);
    } else {
        discard_disk(image, refcounts, data);
    }
}
