/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "bitmaps/plan.h"

#include "qcow2/header.h"

#define GRANULARITY_DEFAULT_MIN 12 /* bdrv_get_default_bitmap_granularity(): log2 of bytes */
#define GRANULARITY_DEFAULT_MAX 16

static _Noreturn void refuse_target(const struct bitmap_plan *plan, enum refusal code, u64 a, u64 b, u32 action) {
    refuse(code, .text = plan->name, .length = plan->name_length, .a = a, .b = b, .f = action);
}

static const struct bitmap *original(const struct bitmap_plan *plan) {
    return &plan->image->bitmaps.bitmaps[plan->original];
}

static bool is_inconsistent(const struct bitmap *bitmap) { return (bitmap->flags & BITMAP_FLAG_IN_USE) != 0; }

/* The directory's bytes without the bitmap, if it is removed, and with the new entry. */
static u64 directory_size_with_new(const struct bitmap_plan *plan) {
    u64 own = bitmap_entry_size(plan->name_length);
    return plan->image->bitmaps.directory_size - plan->named * own + own;
}

/* qmp_block_dirty_bitmap_add(), qcow2_co_can_store_new_dirty_bitmap() */
static void add(struct bitmap_plan *plan, u32 granularity, u32 action) {
    const struct qcow2 *image = plan->image;
    if (plan->name_length == 0) {
        refuse_target(plan, REFUSAL_BITMAP_NAME_EMPTY, 0, 0, action);
    }
    if (granularity != 0 &&
        (granularity < 1u << BITMAP_GRANULARITY_BITS_MIN || (granularity & (granularity - 1)) != 0)) {
        refuse_target(plan, REFUSAL_BITMAP_GRANULARITY, granularity, 0, action);
    }
    if (plan->exists) {
        refuse_target(plan, REFUSAL_BITMAP_EXISTS, 0, 0, action);
    }
    if (image->version < 3) {
        refuse_target(plan, REFUSAL_BITMAP_VERSION_2, 0, 0, action);
    }
    u32 usual = (u32)min64(max64(image->cluster_bits, GRANULARITY_DEFAULT_MIN), GRANULARITY_DEFAULT_MAX);
    u32 bits = granularity != 0 ? (u32)__builtin_ctz(granularity) : usual;
    u64 bytes = divide_up(bitmap_bits(image->virtual_size, bits), 8);
    if (bytes > BITMAP_PAYLOAD_MAX) {
        refuse_target(plan, REFUSAL_BITMAP_TOO_LARGE, 1ull << bits, bytes, action);
    }
    if (plan->name_length > BITMAP_NAME_MAX) {
        refuse_target(plan, REFUSAL_BITMAP_NAME_LONG, plan->name_length, 0, action);
    }
    if (image->bitmaps.count - plan->named + 1 > BITMAPS_MAX) {
        refuse_target(plan, REFUSAL_TOO_MANY_BITMAPS, 0, 0, action);
    }
    if (directory_size_with_new(plan) > BITMAP_DIRECTORY_BYTES_MAX) {
        refuse_target(plan, REFUSAL_BITMAP_DIRECTORY_FULL, directory_size_with_new(plan), 0, action);
    }
    if (image->virtual_size == 0) {
        refuse_target(plan, REFUSAL_BITMAP_EMPTY_DISK, 0, 0, action);
    }
    plan->exists = true;
    plan->fresh = true;
    plan->keeps = false;
    plan->recording = true;
    plan->granularity_bits = bits;
    plan->source_count = 0;
}

static void need_existing(const struct bitmap_plan *plan, u32 action) {
    if (!plan->exists) {
        refuse_target(plan, REFUSAL_BITMAP_NOT_FOUND, 0, 0, action);
    }
    if (!plan->fresh && plan->named > 1) {
        refuse_target(plan, REFUSAL_BITMAP_AMBIGUOUS, plan->named, 0, action);
    }
}

static void need_usable(const struct bitmap_plan *plan, u32 action) {
    need_existing(plan, action);
    if (!plan->fresh && is_inconsistent(original(plan))) {
        refuse_target(plan, REFUSAL_BITMAP_INCONSISTENT, 0, 0, action);
    }
}

static void drop(struct bitmap_plan *plan, u32 action) {
    u32 unused;
    if (!plan->exists && bitmaps_find(&plan->image->stale, plan->name, plan->name_length, &unused) > 0 &&
        !plan->drops_stale) {
        plan->drops_stale = true;
        return;
    }
    if (!plan->exists) {
        refuse_target(plan, REFUSAL_BITMAP_NOT_FOUND, 0, 0, action);
    }
    plan->exists = false;
    plan->fresh = false;
    plan->keeps = false;
    plan->source_count = 0;
}

static void clear(struct bitmap_plan *plan, u32 action) {
    need_usable(plan, action);
    plan->keeps = false;
    plan->source_count = 0;
}

/* The bitmap that a merge takes from an image; refuses as bdrv_merge_dirty_bitmap() does, in its order. */
static struct payload find_source(struct bitmap_plan *plan, struct qcow2 *image, const u8 *name, u32 length,
                                  u32 action) {
    u32 index = 0;
    bitmaps_read(image);
    u32 found = bitmaps_find(&image->bitmaps, name, length, &index);
    if (found != 1) {
        refuse(found == 0 ? REFUSAL_BITMAP_NOT_FOUND : REFUSAL_BITMAP_AMBIGUOUS, .text = name, .length = length,
               .a = found, .f = action);
    }
    const struct bitmap *bitmap = &image->bitmaps.bitmaps[index];
    if (is_inconsistent(bitmap)) {
        refuse(REFUSAL_BITMAP_INCONSISTENT, .text = name, .length = length, .f = action);
    }
    if (image->virtual_size != plan->image->virtual_size) {
        refuse(REFUSAL_BITMAP_SIZES, .text = name, .length = length, .a = plan->image->virtual_size,
               .b = image->virtual_size, .f = action);
    }
    return payload_of(image, bitmap);
}

static void merge(struct bitmap_plan *plan, const struct call_bitmap_change *call, u32 action) {
    const struct bitmap_action *wanted = &call->actions[action];
    const u8 *name = call->text + wanted->source_at;
    need_existing(plan, action);
    if ((u32)wanted->source_at + wanted->source_length > sizeof(call->text) ||
        wanted->source_disk >= call->header.disk_count) {
        refuse(REFUSAL_BAD_CALL);
    }
    bool itself = wanted->source_disk == 0 && wanted->source_length == plan->name_length &&
                  memcmp(name, plan->name, plan->name_length) == 0;
    struct payload *source = &plan->sources[plan->source_count];
    if (itself) {
        need_usable(plan, action);
    } else if (wanted->source_disk == 0) {
        *source = find_source(plan, plan->image, name, wanted->source_length, action);
        plan->source_count++;
    } else {
        void *mark = heap_mark();
        struct qcow2 *other = heap_take(sizeof(*other));
        qcow2_open(other, wanted->source_disk, false);
        *source = find_source(plan, other, name, wanted->source_length, action);
        source->bitmap.name = name; /* the directory's copy goes */
        payload_check_table(source);
        plan->source_count++;
        heap_release(mark);
    }
    result_disk(0);
    need_usable(plan, action);
}

static void carry_out(struct bitmap_plan *plan, const struct call_bitmap_change *call, u32 action) {
    switch (call->actions[action].kind) {
    case BITMAP_ADD:
        add(plan, call->actions[action].granularity, action);
        return;
    case BITMAP_REMOVE:
        drop(plan, action);
        return;
    case BITMAP_CLEAR:
        clear(plan, action);
        return;
    case BITMAP_ENABLE:
    case BITMAP_DISABLE:
        need_usable(plan, action);
        plan->recording = call->actions[action].kind == BITMAP_ENABLE;
        return;
    case BITMAP_MERGE:
        merge(plan, call, action);
        return;
    default:
        refuse(REFUSAL_BAD_CALL);
    }
}

void bitmap_plan_make(struct bitmap_plan *plan, struct qcow2 *image, const struct call_bitmap_change *call) {
    *plan = (struct bitmap_plan){
        .image = image, .name = call->name, .name_length = call->name_length, .original = NO_BITMAP};
    plan->sources = heap_take((call->action_count + 1ull) * sizeof(struct payload));
    plan->named = bitmaps_find(&image->bitmaps, plan->name, plan->name_length, &plan->original);
    plan->exists = plan->named > 0;
    if (plan->exists) {
        plan->keeps = true;
        plan->recording = (original(plan)->flags & BITMAP_FLAG_AUTO) != 0;
        plan->granularity_bits = original(plan)->granularity_bits;
    }
    for (u32 i = 0; i < call->action_count; i++) {
        carry_out(plan, call, i);
    }
    bool same_place = plan->named == 1 && plan->original == image->bitmaps.count - 1;
    if (plan->exists && plan->fresh && same_place && !is_inconsistent(original(plan)) &&
        plan->granularity_bits == original(plan)->granularity_bits) {
        plan->fresh = false; /* removed and added: the same one, empty */
    }
}

bool bitmap_plan_changes_set(const struct bitmap_plan *plan) {
    return plan->drops_stale || (plan->exists ? plan->fresh : plan->named > 0);
}

bool bitmap_plan_touches_bits(const struct bitmap_plan *plan) {
    return plan->exists && (plan->fresh || !plan->keeps || plan->source_count > 0);
}

bool bitmap_plan_changes_recording(const struct bitmap_plan *plan) {
    return plan->exists && !plan->fresh && plan->recording != ((original(plan)->flags & BITMAP_FLAG_AUTO) != 0);
}
