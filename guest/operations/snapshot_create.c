/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Takes a snapshot, as qcow2_snapshot_create() does. The write groups, each flushed before the next begins:
 * 1. in free clusters, a copy of the active L1 table and a snapshot table with the new entry; the refcounts of both,
 *    and one reference more for all that the active mapping reaches;
 * 2. the active mapping loses the COPIED flags that are not true any more;
 * 3. the commit point: the header names the new table;
 * 4. the old table is freed, and punched after that.
 * A crash before 3 leaves refcounts that are too high, and flags that say less than they could.
 */
#include "operations/operations.h"
#include "qcow2/preparation.h"
#include "qcow2/references_work.h"

/* The entry of the new snapshot, behind those that there are; its L1 table has no place yet. */
static struct snapshot *new_entry(struct qcow2 *image, const struct call_snapshot_create *call,
                                  struct result_snapshot_create *result) {
    if (image->snapshots == NULL) {
        image->snapshots = heap_take(sizeof(struct snapshot));
    }
    result->id_length = snapshots_next_id(image, result->id);
    struct snapshot *created = &image->snapshots[image->snapshot_count];
    *created = (struct snapshot){.l1_entries = image->l1_entries,
                                 .disk_size = image->virtual_size,
                                 .date_seconds = call->date_seconds,
                                 .date_nanoseconds = call->date_nanoseconds,
                                 .extra_size = 24,
                                 .id = result->id,
                                 .id_length = (u16)result->id_length,
                                 .name = call->name,
                                 .name_length = (u16)call->name_length};
    return created;
}

_Noreturn void operation_snapshot_create(void) {
    const struct call_snapshot_create *call = call_memory();
    struct result_snapshot_create *result = result_memory();
    struct qcow2 image;
    struct refcounts refcounts;
    struct verification verification;
    qcow2_open(&image, 0, true);
    if (image.snapshot_count >= SNAPSHOTS_MAX) {
        refuse(REFUSAL_TOO_MANY_SNAPSHOTS);
    }
    if (has_data_file(&image)) {
        refuse(REFUSAL_DATA_FILE);
    }
    if (call->name_length > SNAPSHOT_NAME_MAX) {
        refuse(REFUSAL_BAD_CALL);
    }
    struct snapshot *created = new_entry(&image, call, result);
    u64 table_size = snapshots_table_size(image.snapshots, image.snapshot_count + 1);
    if (table_size > SNAPSHOT_TABLE_BYTES_MAX) {
        refuse(REFUSAL_SNAPSHOT_TABLE_FULL);
    }
    work_expect(&image.work, (struct work_kinds){.tables = image.snapshot_count < BYTE_COUNT ? 1 : 2, .blocks = 1}, 0);
    prepare_references(&image, &refcounts, &verification);
    struct mapping active = {image.l1, image.l1_entries, image.l1_offset};
    references_check_room(&image, &refcounts, &verification, &active);
    work_change(&image.work,
                work_of_adding(&refcounts, &verification, &active, NULL) + work_of_visiting(&image, &active, NULL));
    mapping_reserve(&image, &active, NULL);
    refcounts_reserve(&refcounts);
    prepare_header(&image);

    u64 copy_size = 8ull * image.l1_entries;
    created->l1_offset = refcounts_allocate(&refcounts, copy_size);
    u64 table_offset = refcounts_allocate(&refcounts, table_size);
    disk_queue_reserve(&image.disk, created->l1_offset, copy_size);
    disk_queue_reserve(&image.disk, table_offset, table_size);
    disk_run();

    mapping_write(&image, &(struct mapping){active.l1, active.entries, created->l1_offset});
    snapshots_write(&image, table_offset, image.snapshots, image.snapshot_count + 1);
    refcounts_write_back(&refcounts);
    references_add(&image, &refcounts, &verification, &active, NULL);
    disk_flush(&image.disk);
    if (mapping_clear_copied(&image, &active, NULL)) {
        mapping_write(&image, &active);
    }
    disk_flush(&image.disk);

    commit_snapshots(&image, &refcounts, image.snapshot_count + 1, table_offset, table_size);
    refcounts_write_back(&refcounts);
    work_end(&image.work);
    disk_flush(&image.disk);
    refcounts_discard(&refcounts);
    result->snapshot_count = image.snapshot_count;
    result->virtual_size = image.virtual_size;
    finish_with_snapshots(&image);
}
