/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "operations/operations.h"
#include "operations/preparation.h"
#include "qcow2/bitmaps.h"
#include "qcow2/resize.h"

static void refuse_bitmaps(struct qcow2 *image) {
    const struct bitmap *bitmaps = bitmaps_read(image);
    refuse_text(REFUSAL_HAS_BITMAPS, bitmaps[0].name, bitmaps[0].name_length, image->bitmap_count, 0);
}

static void check_resize(const struct qcow2 *image, const struct snapshot *snapshot, bool allowed) {
    if (snapshot->disk_size == image->virtual_size) {
        return;
    }
    if (image->version < 3) {
        refuse(REFUSAL_RESIZE_V2, image->virtual_size, snapshot->disk_size, 0, 0, 0, 0);
    }
    if (!allowed) {
        refuse(REFUSAL_RESIZE_NOT_ALLOWED, image->virtual_size, snapshot->disk_size, 0, 0, 0, 0);
    }
    if (snapshot->disk_size % 512 != 0 || snapshot->disk_size > INT64_MAX) {
        refuse(REFUSAL_VIRTUAL_SIZE, snapshot->disk_size, 0, 0, 0, 0, 0);
    }
    if (max64(l1_entries_for(image, snapshot->disk_size), snapshot->l1_entries) > L1_BYTES_MAX / 8) {
        refuse_plain(REFUSAL_SNAPSHOT_L1_LARGE);
    }
}

/* qcow2_snapshot_goto(). The write of the active L1 table is the commit point. It goes out without
 * COPIED flags: everything it names is the snapshot's as well. */
_Noreturn void operation_apply(void) {
    const struct call_apply *call = call_memory();
    struct result_apply *result = result_memory();
    struct qcow2 image;
    struct refcounts refcounts;
    struct verification verification;
    qcow2_open(&image, 0, true);
    if (has_data_file(&image)) {
        refuse_plain(REFUSAL_DATA_FILE);
    }
    if (bitmaps_present(&image)) {
        refuse_bitmaps(&image);
    }
    int64_t index = snapshots_find(&image, &call->snapshot);
    if (index < 0) {
        refuse_plain(REFUSAL_SNAPSHOT_NOT_FOUND);
    }
    const struct snapshot *snapshot = &image.snapshots[index];
    snapshot_check_l1(&image, snapshot);
    check_resize(&image, snapshot, call->resize_allowed != 0);
    prepare(&image, &refcounts, &verification);
    struct mapping wanted;
    mapping_read(&image, &wanted, snapshot->l1_offset, snapshot->l1_entries, snapshot->l1_entries);
    mapping_check_room(&image, &refcounts, &verification, &wanted);
    const struct mapping current = {image.l1, image.l1_entries, image.l1_offset};
    mapping_reserve(&image, &wanted, &current);
    mapping_reserve(&image, &current, &wanted);
    refcounts_reserve(&refcounts);
    prepare_header(&image);
    result->resized = snapshot->disk_size != image.virtual_size;
    if (result->resized) {
        resize_disk(&image, &refcounts, snapshot->disk_size);
    }
    resize_l1(&image, &refcounts, snapshot->l1_entries);
    refcounts_write_back(&refcounts);

    struct mapping old = {image.l1, image.l1_entries, image.l1_offset};
    mapping_add_references(&image, &refcounts, &verification, &wanted, &old);
    disk_flush(&image.disk);
    if (mapping_clear_copied(&image, &wanted, &old)) {
        mapping_write(&image, &wanted);
    }
    disk_flush(&image.disk);

    struct mapping active = {heap_take_zeroed(8ull * image.l1_entries), image.l1_entries, image.l1_offset};
    memcpy(active.l1, wanted.l1, 8ull * wanted.entries);
    mapping_write(&image, &active);
    disk_flush(&image.disk);

    u64 freed = 0;
    mapping_drop_references(&image, &refcounts, &verification, &old, &active, &freed);
    disk_flush(&image.disk);
    result->virtual_size = image.virtual_size;
    finish(NULL, 0);
}
