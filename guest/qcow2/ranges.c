/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/ranges.h"

void ranges_open(struct range_list *list, u32 room) {
    list->ranges = heap_take(room * sizeof(struct range));
    list->count = 0;
    list->room = room;
}

bool ranges_full(const struct range_list *list) { return list->count == list->room; }

void ranges_add(struct range_list *list, u64 offset, u64 length) {
    if (list->count > 0) {
        struct range *last = &list->ranges[list->count - 1];
        if (last->offset + last->length == offset) {
            last->length += length;
            return;
        }
        if (offset + length == last->offset) {
            last->offset = offset;
            last->length += length;
            return;
        }
    }
    list->ranges[list->count++] = (struct range){offset, length};
}

void ranges_remove(struct range_list *list, u64 offset, u64 length) {
    for (u32 i = 0; i < list->count; i++) {
        struct range *range = &list->ranges[i];
        u64 start = max64(offset, range->offset);
        u64 end = min64(offset + length, range->offset + range->length);
        if (start >= end) {
            continue;
        }
        u64 tail = range->offset + range->length - end;
        range->length = start - range->offset;
        if (tail > 0 && list->count < list->room) {
            list->ranges[list->count++] = (struct range){end, tail};
        }
    }
}
