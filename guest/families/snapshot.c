/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The guest that knows internal snapshots.
 */
#include "operations/operations.h"

_Noreturn void operation_run(u32 operation) {
    switch (operation) {
    case CALL_SNAPSHOT_LIST:
        operation_snapshot_list();
    case CALL_IMAGE_INFO:
        operation_image_info();
    case CALL_SNAPSHOT_COMPARE:
        operation_snapshot_compare();
    case CALL_SNAPSHOT_CREATE:
        operation_snapshot_create();
    case CALL_SNAPSHOT_APPLY:
        operation_snapshot_apply();
    case CALL_SNAPSHOT_DELETE:
        operation_snapshot_delete();
    default:
        refuse(REFUSAL_BAD_CALL);
    }
}
