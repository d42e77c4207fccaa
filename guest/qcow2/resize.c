/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/resize.h"

#include "qcow2/discarding.h"
#include "qcow2/header.h"
#include "qcow2/mapping.h"

void resize_l1(struct qcow2 *image, struct refcounts *refcounts, u64 entries) {
    if (entries <= image->l1_entries) {
        return;
    }
    if (entries > L1_BYTES_MAX / 8) {
        refuse(REFUSAL_SNAPSHOT_L1_LARGE);
    }
    u64 *l1 = heap_take_zeroed(8 * entries);
    memcpy(l1, image->l1, 8ull * image->l1_entries);
    u64 old_offset = image->l1_offset;
    u64 old_bytes = 8ull * image->l1_entries;
    image->l1_offset = refcounts_allocate(refcounts, 8 * entries);
    disk_reserve(&image->disk, image->l1_offset, 8 * entries);
    mapping_write(image, &(struct mapping){l1, (u32)entries, image->l1_offset});
    refcounts_write_back(refcounts);
    disk_flush(&image->disk);
    image->l1 = l1;
    image->l1_entries = (u32)entries;
    if (!image->detached) {
        header_write_l1(image);
        disk_flush(&image->disk);
    }
    refcounts_free(refcounts, old_offset, old_bytes, false);
}

static void write_back_and_discard(struct qcow2 *image, struct refcounts *refcounts) {
    disk_flush(&image->disk);
    refcounts_write_back(refcounts);
    disk_flush(&image->disk);
    refcounts_discard(refcounts);
}

/* Cuts the file behind the last cluster in use. */
static void cut_file(struct qcow2 *image, struct refcounts *refcounts) {
    u64 size = round_up(image->disk.size, 512);
    u64 clusters = min64(clusters_of(image, size), refcounts_end(refcounts));
    while (clusters > 0 && refcounts_get(refcounts, clusters - 1) == 0) {
        clusters--;
    }
    if (clusters << image->cluster_bits < size) {
        disk_resize(&image->disk, clusters << image->cluster_bits);
    }
}

static void shrink_mapping(struct qcow2 *image, struct refcounts *refcounts, u64 old_size) {
    u64 per_table = l2_entries(image);
    u64 entries = l1_entries_for(image, image->virtual_size);
    u8 *table = heap_take(2 * image->cluster_size);
    if (entries < image->l1_entries) {
        l1_clear(image, entries, image->l1_entries); /* from here on nothing names the tables behind the end any more */
    }
    u64 end = clusters_of(image, old_size);
    for (u64 first = clusters_of(image, image->virtual_size); first < end;) {
        u64 next = min64((first / per_table + 1) * per_table, end);
        discard_clusters(image, refcounts, NULL, first, next, table);
        first = next;
    }
    for (u64 i = image->l1_entries; i-- > entries;) {
        u64 offset = image->l1[i] & ENTRY_OFFSET;
        if (offset != 0) {
            refcounts_free(refcounts, offset, image->cluster_size, true);
            image->l1[i] = 0;
        }
    }
    write_back_and_discard(image, refcounts);
}

void resize_file(struct qcow2 *image, struct refcounts *refcounts) {
    refcounts_shrink(refcounts);
    write_back_and_discard(image, refcounts);
    cut_file(image, refcounts);
}

void resize_mapping(struct qcow2 *image, struct refcounts *refcounts, u64 size) {
    u64 old_size = image->virtual_size;
    bool grows = size > old_size;
    if (grows) {
        resize_l1(image, refcounts, l1_entries_for(image, size));
        refcounts_write_back(refcounts);
    }
    image->virtual_size = size;
    if (!image->detached) {
        header_write_size(image);
        disk_flush(&image->disk);
    }
    if (!grows) {
        shrink_mapping(image, refcounts, old_size);
    }
}
