/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The second half of a verification: what was counted is held against the refcount blocks, which stream by.
 */
#ifndef AIRLOCK_QCOW2_COMPARISON_H
#define AIRLOCK_QCOW2_COMPARISON_H

#include "qcow2/tally.h"

/* Counts all references to clusters of the window. In verify.c; here it is needed once more to name the reference that
 * a refcount is too low for. */
void count_references(struct verifier *v);

/* All blocks that count a cluster of the window; in the last window those behind the file as well. */
void compare(struct verifier *v);

#endif
