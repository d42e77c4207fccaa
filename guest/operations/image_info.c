/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the header says, and the snapshots. Reads only.
 */
#include "operations/operations.h"
#include "qcow2/header.h"
#include "qcow2/snapshots.h"

static u32 copy_text(void *to, const void *from, u64 length, u64 room) {
    length = min64(length, room);
    memcpy(to, from, length);
    return (u32)length;
}

_Noreturn void operation_image_info(void) {
    struct qcow2 image;
    qcow2_open(&image, 0, false);
    struct result_image_info *result = result_memory();
    result->snapshot_count = image.snapshot_count;
    result->version = image.version;
    result->cluster_bits = image.cluster_bits;
    result->refcount_order = image.refcount_order;
    result->encryption = image.encryption;
    result->compression_type = image.compression_type;
    result->virtual_size = image.virtual_size;
    result->incompatible_features = image.incompatible;
    result->compatible_features = image.compatible;
    result->autoclear_features = image.autoclear;
    result->l1_entries = image.l1_entries;
    result->bitmap_count = image.bitmaps.count;
    result->bitmaps_fault = image.bitmaps_fault;
    result->file_size = image.disk.size;
    result->backing_name_length =
        copy_text(result->backing_name, image.backing_name, image.backing_length, sizeof(result->backing_name));
    result->backing_format_length = copy_text(result->backing_format, image.backing_format, image.backing_format_length,
                                              sizeof(result->backing_format));
    result->data_file_length =
        copy_text(result->data_file, image.data_file, image.data_file_length, sizeof(result->data_file));
    finish_with_snapshots(&image);
}
