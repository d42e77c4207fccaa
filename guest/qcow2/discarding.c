/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/discarding.h"

#include "qcow2/clusters.h"
#include "qcow2/mapping.h"

#define DISCARD_WINDOW (1 * MIB)

/* get_cluster_table(): an L2 table that is shared, or missing, is replaced by one of the disk's own. */
static void own_l2(struct qcow2 *image, struct refcounts *refcounts, u64 index, u8 *table) {
    u64 old = image->l1[index] & ENTRY_OFFSET;
    memset(table, 0, image->cluster_size);
    if (old != 0) {
        disk_read(&image->disk, old, table, image->cluster_size);
    }
    if ((image->l1[index] & ENTRY_COPIED) != 0) {
        return;
    }
    u64 offset = refcounts_allocate(refcounts, image->cluster_size);
    disk_write(&image->disk, offset, table, image->cluster_size);
    image->l1[index] = offset | ENTRY_COPIED;
    if (index < l1_entries_for(image, image->virtual_size)) { /* stays in use: it must be named first */
        refcounts_write_back(refcounts);
        disk_flush(&image->disk);
        l1_write(image, index, index + 1);
    }
    if (old != 0) {
        refcounts_free(refcounts, old, image->cluster_size, false);
    }
}

void discard_clusters(struct qcow2 *image, struct refcounts *refcounts, struct disk *data, u64 first, u64 end,
                      u8 *table) {
    u64 per_table = l2_entries(image);
    u64 index = first / per_table;
    u32 step = l2_entry_size(image);
    u8 *entries = table + image->cluster_size; /* a copy of those that go */
    own_l2(image, refcounts, index, table);
    u8 *at = table + (first % per_table) * step;
    memcpy(entries, at, (end - first) * step);
    memset(at, 0, (end - first) * step);
    if (index < l1_entries_for(image, image->virtual_size)) {
        disk_write(&image->disk, image->l1[index] & ENTRY_OFFSET, table, image->cluster_size);
        disk_flush(&image->disk);
    }
    for (u64 i = 0; i < end - first; i++) {
        clusters_free(refcounts, data, load64(entries + i * step), true);
    }
}

/* One table, which nothing on the disk names now: in memory at `table`, and queued to be written. */
static void empty_table(struct qcow2 *image, struct refcounts *refcounts, struct disk *data, u64 index, u8 *table) {
    const u64 old = image->l1[index] & ENTRY_OFFSET;
    if ((image->l1[index] & ENTRY_COPIED) == 0) {
        image->l1[index] = refcounts_allocate(refcounts, image->cluster_size) | ENTRY_COPIED;
        if (old != 0) {
            refcounts_free(refcounts, old, image->cluster_size, false);
        }
    }
    for (u64 i = 0; i < l2_entries(image); i++) {
        u64 entry = load64(table + i * l2_entry_size(image));
        if (entry != 0) {
            clusters_free(refcounts, data, entry, true);
        }
    }
    memset(table, 0, image->cluster_size);
    disk_queue_write(&image->disk, image->l1[index] & ENTRY_OFFSET, table, image->cluster_size);
}

/* The tables from 0 to `end`, many at a time: those behind are in clusters that are counted still, so that nothing
 * is written there meanwhile. */
static void empty_tables(struct qcow2 *image, struct refcounts *refcounts, struct disk *data, u64 end) {
    const u64 room = min64(max64(DISCARD_WINDOW / image->cluster_size, 1), DOORBELL_BATCH);
    u8 *tables = heap_take(room * image->cluster_size);
    for (u64 first = 0; first < end; first += room) {
        const u64 count = min64(room, end - first);
        disk_run();
        memset(tables, 0, count * image->cluster_size);
        for (u64 i = 0; i < count; i++) {
            if ((image->l1[first + i] & ENTRY_OFFSET) != 0) {
                disk_queue_read(&image->disk, image->l1[first + i] & ENTRY_OFFSET, tables + i * image->cluster_size,
                                image->cluster_size);
            }
        }
        disk_run();
        for (u64 i = 0; i < count; i++) {
            empty_table(image, refcounts, data, first + i, tables + i * image->cluster_size);
        }
    }
    disk_run();
}

/* While the L1 table on the disk names none of the tables, they can be changed in any order, and clusters that were
 * theirs used anew. The last one may have clusters behind the end of the disk, which stay. */
void discard_disk(struct qcow2 *image, struct refcounts *refcounts, struct disk *data) {
    const u64 per_table = l2_entries(image);
    const u64 end = clusters_of(image, image->virtual_size);
    const u64 whole = end / per_table;
    if (whole > 0) {
        l1_clear(image, 0, whole);
        empty_tables(image, refcounts, data, whole);
    }
    if (whole * per_table < end) {
        discard_clusters(image, refcounts, data, whole * per_table, end, heap_take(2 * image->cluster_size));
    }
    refcounts_write_back(refcounts);
    disk_flush(&image->disk);
    if (whole > 0) {
        l1_write(image, 0, whole);
    }
    refcounts_discard(refcounts);
}
