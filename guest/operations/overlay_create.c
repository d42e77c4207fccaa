/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A new image that holds nothing: what qcow2_co_create() leaves, with 16-bit refcounts. The write groups, each flushed
 * before the next begins:
 * 1. the L1 table and the refcount table;
 * 2. the refcount block;
 * 3. the commit point: the header. What a crash before that leaves is no image.
 */
#include "operations/operations.h"
#include "qcow2/emptying.h"
#include "qcow2/header.h"

_Noreturn void operation_overlay_create(void) {
    const struct call_overlay_create *call = call_memory();
    struct result_overlay_create *result = result_memory();
    struct qcow2 image;
    if (call->cluster_bits < 9 || call->cluster_bits > 21 || call->virtual_size % 512 != 0 ||
        call->backing_length > BACKING_NAME_MAX || call->format_length > BACKING_FORMAT_MAX) {
        refuse(REFUSAL_BAD_CALL);
    }
    header_begin(&image, 0, call->cluster_bits);
    if (image.disk.size != 0) {
        refuse(REFUSAL_FILE_NOT_EMPTY, .a = image.disk.size);
    }
    u64 entries = l1_entries_for(&image, call->virtual_size);
    u64 clusters = CLUSTERS_IN_FRONT + clusters_of(&image, 8 * entries);
    if (call->virtual_size > INT64_MAX || entries > L1_BYTES_MAX / 8 || clusters > image.cluster_size / 2) {
        refuse(REFUSAL_VIRTUAL_SIZE, .a = call->virtual_size);
    }
    image.virtual_size = call->virtual_size;
    image.l1_entries = (u32)entries;
    image.l1_offset = entries > 0 ? CLUSTERS_IN_FRONT * image.cluster_size : 0;
    image.refcount_table_offset = image.cluster_size;
    image.refcount_table_clusters = 1;
    image.backing_offset = call->backing_length; /* where it stands is decided when it is written */
    image.backing_length = call->backing_length;
    image.backing_name = call->backing_name;
    image.backing_format = call->format_length > 0 ? call->backing_format : NULL;
    image.backing_format_length = call->format_length;
    header_check_room(&image, REFUSAL_BACKING_NAME_ROOM);
    empty_tables_write(&image, 8 * entries);
    header_rewrite(&image);
    result->file_size = image.disk.size;
    finish(NULL, 0);
}
