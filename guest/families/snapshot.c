/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The guest that knows internal snapshots.
 */
#include "operations/operations.h"

_Noreturn void operation_run(u32 operation) {
    switch (operation) {
    case CALL_LIST:
        operation_list();
    case CALL_INFO:
        operation_info();
    case CALL_COMPARE:
        operation_compare();
    case CALL_CREATE:
        operation_create();
    case CALL_APPLY:
        operation_apply();
    case CALL_DELETE:
        operation_delete();
    default:
        refuse_plain(REFUSAL_BAD_CALL);
    }
}
