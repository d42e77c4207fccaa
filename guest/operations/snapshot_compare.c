/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Does the active mapping equal a snapshot's, cluster by cluster? Reads only the tables.
 */
#include "operations/operations.h"
#include "qcow2/header.h"
#include "qcow2/mapping.h"
#include "qcow2/snapshots.h"

_Noreturn void operation_snapshot_compare(void) {
    const struct call_snapshot_compare *call = call_memory();
    struct result_snapshot_compare *result = result_memory();
    struct qcow2 image;
    qcow2_open(&image, 0, false);
    if (has_data_file(&image)) {
        refuse(REFUSAL_DATA_FILE);
    }
    int64_t index = snapshots_find(&image, &call->snapshot);
    if (index < 0) {
        refuse(REFUSAL_SNAPSHOT_NOT_FOUND);
    }
    const struct snapshot *snapshot = &image.snapshots[index];
    snapshot_check_l1(&image, snapshot);
    struct mapping active;
    struct mapping wanted;
    mapping_read(&image, &active, image.l1_offset, image.l1_entries, image.l1_entries);
    mapping_read(&image, &wanted, snapshot->l1_offset, snapshot->l1_entries, snapshot->l1_entries);
    result->disk_size = snapshot->disk_size;
    result->same_size = snapshot->disk_size == image.virtual_size;
    result->differing_clusters = mapping_differences(&image, &active, &wanted);
    result->equal = result->same_size && result->differing_clusters == 0;
    finish(NULL, 0);
}
