/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The verbs. Each reads its call, works, and ends the run.
 */
#ifndef AIRLOCK_OPERATIONS_OPERATIONS_H
#define AIRLOCK_OPERATIONS_OPERATIONS_H

#include "qcow2/compressor.h"

/* Runs the verb that the call asks for; each family of verbs is a guest of its own, and has one: guest/families. */
_Noreturn void operation_run(u32 operation);

_Noreturn void operation_snapshot_list(void);
_Noreturn void operation_image_info(void);
_Noreturn void operation_snapshot_compare(void);
_Noreturn void operation_snapshot_create(void);
_Noreturn void operation_snapshot_apply(void);
_Noreturn void operation_snapshot_delete(void);
_Noreturn void operation_bitmap_list(void);
_Noreturn void operation_bitmap_change(void);
_Noreturn void operation_bitmap_remove_damaged(void);
_Noreturn void operation_commit(void);
_Noreturn void operation_empty(void);
/* open: of the compressor; NULL: this guest has none, and can only tell what would be compressed. */
_Noreturn void operation_rebase(compressor_opener *open);
_Noreturn void operation_overlay_create(void);
_Noreturn void operation_vmdk_info(void);

#endif
