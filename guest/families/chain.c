/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The guest that knows backing chains.
 */
#include "operations/operations.h"

_Noreturn void operation_run(u32 operation) {
    switch (operation) {
    case CALL_COMMIT:
        operation_commit();
    case CALL_EMPTY:
        operation_empty();
    case CALL_REBASE:
        operation_rebase(NULL);
    case CALL_OVERLAY_CREATE:
        operation_overlay_create();
    case CALL_VMDK_INFO:
        operation_vmdk_info();
    default:
        refuse(REFUSAL_BAD_CALL);
    }
}
