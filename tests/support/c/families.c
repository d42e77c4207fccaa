/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * All families of operations in one library.
 */
#define operation_run run_snapshots
#include "families/snapshot.c"
#undef operation_run
#define operation_run run_bitmaps
#include "families/bitmap.c"
#undef operation_run
#define operation_run run_chains
#include "families/chain.c"
#undef operation_run
#define operation_run run_compressing
#include "families/compress.c"
#undef operation_run

_Noreturn void operation_run(u32 operation) {
    if (operation == CALL_BITMAP_LIST || operation == CALL_BITMAP_CHANGE) {
        run_bitmaps(operation);
    }
    if (operation == CALL_REBASE) {
        run_compressing(operation);
    }
    if (operation >= CALL_COMMIT && operation <= CALL_VMDK_INFO) {
        run_chains(operation);
    }
    run_snapshots(operation);
}
