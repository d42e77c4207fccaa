/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The snapshots, as the table has them. Reads only.
 */
#include "operations/operations.h"
#include "qcow2/header.h"
#include "qcow2/snapshots.h"

_Noreturn void operation_snapshot_list(void) {
    struct qcow2 image;
    qcow2_open(&image, 0, false);
    struct result_snapshot_list *result = result_memory();
    result->snapshot_count = image.snapshot_count;
    result->virtual_size = image.virtual_size;
    finish_with_snapshots(&image);
}
