/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Deletes a snapshot, as qcow2_snapshot_delete() does. The write groups, each flushed before the next begins:
 * 1. in a free place, a snapshot table without the entry, and its refcounts;
 * 2. the commit point: the header names that table;
 * 3. one reference less for the old table, for the snapshot's L1 table and for all that it reached;
 * 4. the flags of what has one reference left say COPIED. What got free is punched.
 * A crash after 2 leaves leaked clusters.
 */
#include "operations/operations.h"
#include "qcow2/preparation.h"
#include "qcow2/references_work.h"

static void remove_entry(struct qcow2 *image, u64 index) {
    for (u64 i = index; i + 1 < image->snapshot_count; i++) {
        image->snapshots[i] = image->snapshots[i + 1];
    }
}

_Noreturn void operation_snapshot_delete(void) {
    const struct call_snapshot_delete *call = call_memory();
    struct result_snapshot_delete *result = result_memory();
    struct qcow2 image;
    struct refcounts refcounts;
    struct verification verification;
    qcow2_open(&image, 0, true);
    if (has_data_file(&image)) {
        refuse(REFUSAL_DATA_FILE);
    }
    int64_t index = snapshots_find(&image, &call->snapshot);
    if (index < 0) {
        refuse(REFUSAL_SNAPSHOT_NOT_FOUND);
    }
    const struct snapshot removed = image.snapshots[index];
    snapshot_check_l1(&image, &removed);
    work_expect(&image.work, (struct work_kinds){.tables = image.snapshot_count == 1 ? 1 : 2, .blocks = 1}, 0);
    prepare_references(&image, &refcounts, &verification);
    struct mapping gone;
    struct mapping active = {image.l1, image.l1_entries, image.l1_offset};
    mapping_read(&image, &gone, removed.l1_offset, removed.l1_entries, removed.l1_entries);
    work_change(&image.work, work_of_dropping(&refcounts, &verification, &gone, NULL, &active));
    mapping_reserve(&image, &gone, &active);
    mapping_reserve(&image, &active, NULL);
    refcounts_reserve(&refcounts);
    prepare_header(&image);

    remove_entry(&image, (u64)index);
    u32 count = image.snapshot_count - 1;
    u64 table_size = snapshots_table_size(image.snapshots, count);
    u64 table_offset = refcounts_allocate(&refcounts, table_size);
    disk_reserve(&image.disk, table_offset, table_size);
    snapshots_write(&image, table_offset, image.snapshots, count);
    refcounts_write_back(&refcounts);
    disk_flush(&image.disk);

    commit_snapshots(&image, &refcounts, count, table_offset, table_size);
    refcounts_free(&refcounts, removed.l1_offset, 8ull * removed.l1_entries, true);
    refcounts_write_back(&refcounts);
    if (references_drop_and_refresh(&image, &refcounts, &verification, &gone, &active, &result->freed_clusters)) {
        mapping_write(&image, &active);
    }
    work_end(&image.work);
    disk_flush(&image.disk);
    result->snapshot_count = image.snapshot_count;
    result->virtual_size = image.virtual_size;
    finish_with_snapshots(&image);
}
