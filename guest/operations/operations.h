/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The verbs. Each reads its call, works, and ends the run.
 */
#ifndef AIRLOCK_OPERATIONS_OPERATIONS_H
#define AIRLOCK_OPERATIONS_OPERATIONS_H

#include "start/guest.h"

_Noreturn void operation_list(void);
_Noreturn void operation_info(void);
_Noreturn void operation_compare(void);
_Noreturn void operation_create(void);
_Noreturn void operation_apply(void);
_Noreturn void operation_delete(void);

#endif
