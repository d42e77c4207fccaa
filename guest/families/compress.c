/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The guest that compresses.
 */
#include "operations/operations.h"

_Noreturn void operation_run(u32 operation) {
    switch (operation) {
    case CALL_REBASE:
        operation_rebase(compressor_open);
    default:
        refuse(REFUSAL_BAD_CALL);
    }
}
