/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Lists of ranges of a file, ascending or not, neighbours joined.
 */
#ifndef AIRLOCK_QCOW2_RANGES_H
#define AIRLOCK_QCOW2_RANGES_H

#include "start/guest.h"

struct range {
    u64 offset;
    u64 length;
};

struct range_list {
    struct range *ranges;
    u32 count;
    u32 room;
};

void ranges_open(struct range_list *list, u32 room);
bool ranges_full(const struct range_list *list);
void ranges_add(struct range_list *list, u64 offset, u64 length);

/* Cuts a range out of all that are there. */
void ranges_remove(struct range_list *list, u64 offset, u64 length);

#endif
