/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/preparation.h"

static void load_and_verify(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification,
                            bool keeps_counters) {
    qcow2_load_l1(image);
    refcounts_open(refcounts, image);
    verify(image, refcounts, verification, keeps_counters);
}

void prepare(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification) {
    load_and_verify(image, refcounts, verification, false);
}

void prepare_references(struct qcow2 *image, struct refcounts *refcounts, struct verification *verification) {
    load_and_verify(image, refcounts, verification, true);
}

void prepare_header(struct qcow2 *image) {
    if (header_needs_update(image)) {
        header_rewrite(image);
    }
}

void commit_snapshots(struct qcow2 *image, struct refcounts *refcounts, u32 count, u64 offset, u64 size) {
    u64 old_offset = image->snapshots_offset;
    u64 old_size = image->snapshots_size;
    image->snapshot_count = count;
    image->snapshots_offset = offset;
    image->snapshots_size = size;
    header_write_snapshots(image);
    disk_flush(&image->disk);
    refcounts_free(refcounts, old_offset, old_size, true);
}
