/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#ifndef AIRLOCK_TEST_ENTRY_H
#define AIRLOCK_TEST_ENTRY_H

typedef void entry(void *argument);

/* Calls into the guest's code, on a fresh heap; returns when that does, or when it gives up. */
int enter(entry *function, void *argument);

#endif
