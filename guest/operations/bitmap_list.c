/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The bitmaps that are sound, how much is dirty in them, and the dirty ranges of one. Reads only: what is wrong with
 * the others is told, and refuses nothing.
 */
#include "bitmaps/plan.h"
#include "bitmaps/records.h"
#include "operations/operations.h"
#include "qcow2/bits.h"
#include "qcow2/header.h"

struct telling {
    const struct call_bitmap_list *call;
    struct payload payload;
    u64 disk_size;
    u64 clusters_left;
    struct dirty_extent *extents; /* room for call->extents_limit of them */
    u32 count;
    u64 end; /* bytes: all that begins before is told */
};

static const struct bitmap *find(const struct qcow2 *image, const struct call_bitmap_list *call) {
    u32 index = 0;
    u32 count = bitmaps_find(&image->bitmaps, call->name, call->name_length, &index);
    if (count != 1) {
        refuse(count == 0 ? REFUSAL_BITMAP_NOT_FOUND : REFUSAL_BITMAP_AMBIGUOUS, .text = call->name,
               .length = call->name_length, .a = count);
    }
    const struct bitmap *found = &image->bitmaps.bitmaps[index];
    if ((found->flags & BITMAP_FLAG_IN_USE) != 0) {
        refuse(REFUSAL_BITMAP_INCONSISTENT, .text = call->name, .length = call->name_length);
    }
    return found;
}

/* A range, joined to the one before where that touches it; false: there is no more room. */
static bool tell(struct telling *t, u64 offset, u64 end) {
    if (end <= t->call->extents_start) {
        return true;
    }
    offset = max64(offset, t->call->extents_start);
    if (t->count > 0) {
        struct dirty_extent *last = &t->extents[t->count - 1];
        if (last->offset + last->length == offset) {
            last->length = end - last->offset;
            return true;
        }
    }
    if (t->count == t->call->extents_limit) {
        t->end = offset;
        return false;
    }
    t->extents[t->count++] = (struct dirty_extent){offset, end - offset};
    return true;
}

static bool tell_window(struct telling *t, const u64 *words, u64 first, u64 count) {
    const u32 shift = t->payload.granularity_bits;
    for (u64 at = bits_next_set(words, 0, count); at < count;) {
        u64 end = bits_next_clear(words, at, count);
        if (!tell(t, (first + at) << shift, min64((first + end) << shift, t->disk_size))) {
            return false;
        }
        at = bits_next_set(words, end, count);
    }
    return true;
}

static void tell_extents(struct telling *t) {
    u64 *words = heap_take(PAYLOAD_WINDOW);
    const u64 window = PAYLOAD_WINDOW * 8;
    u64 first = (t->call->extents_start >> t->payload.granularity_bits) / window * window;
    t->end = t->disk_size;
    for (; first < t->payload.bits; first += window) {
        u64 count = min64(t->payload.bits - first, window);
        bool any = payload_read(&t->payload, first / 8, divide_up(count, 64) * 8, words);
        if (t->payload.clusters_read > t->clusters_left) {
            refuse(REFUSAL_BITMAPS_OVERLAP, .a = t->payload.clusters_read, .b = t->clusters_left);
        }
        if (any && !tell_window(t, words, first, count)) {
            return;
        }
    }
}

_Noreturn void operation_bitmap_list(void) {
    const struct call_bitmap_list *call = call_memory();
    struct result_bitmap_list *result = result_memory();
    struct qcow2 image;
    struct bitmap_records records = {0};
    struct bitmaps_damage damage;
    if (call->extents_limit > EXTENTS_MAX || call->name_length > sizeof(call->name)) {
        refuse(REFUSAL_BAD_CALL);
    }
    qcow2_open(&image, 0, false);
    bitmaps_read_sound(&image, &damage);
    bitmaps_read_stale(&image);
    records_add(&records, &image.bitmaps, 0);
    records_add(&records, &image.stale, BITMAP_STALE);
    u64 length = records.length;
    if (call->extents_limit > 0) {
        struct telling telling = {
            .call = call,
            .payload = payload_of(&image, find(&image, call)),
            .disk_size = image.virtual_size,
            .clusters_left = clusters_of(&image, image.disk.size),
            .extents = heap_extend(records.start, records.length, call->extents_limit * sizeof(struct dirty_extent))};
        tell_extents(&telling);
        result->extent_count = telling.count;
        result->extents_end = telling.end;
        length += telling.count * sizeof(struct dirty_extent);
    }
    if (call->counts != 0) {
        records_count(&image, &records, NO_BITMAP);
    }
    result->bitmap_count = records.count;
    result->virtual_size = image.virtual_size;
    result->fault = damage.fault;
    result->fault_value = damage.value;
    result->fault_name_length = damage.name_length;
    memcpy(result->fault_name, damage.name, damage.name_length);
    finish(records.start, length);
}
