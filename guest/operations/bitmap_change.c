/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A list of actions on one bitmap, all of them or none. qemu stores every bitmap of an image anew; here only
 * what changes is written, beside what there is, and one write of one sector makes it valid: of the bitmap's
 * entry where the directory stays as it is but for that, else of the header. The write groups, each flushed before
 * the next begins:
 * 1. in free clusters, the bitmap's new bits and table, and the new directory, if there is to be one; their refcounts;
 * 2. the commit point: that sector;
 * 3. the refcounts of what nothing refers to any more, which is punched after that.
 */
#include "bitmaps/content.h"
#include "bitmaps/records.h"
#include "operations/operations.h"
#include "qcow2/extension.h"
#include "qcow2/preparation.h"

#define ENTRY_CHANGES 16 /* bytes of a directory entry: table, its size, flags */

struct change {
    const struct call_bitmap_change *call;
    struct qcow2 image;
    struct refcounts refcounts;
    struct verification verification;
    struct bitmap_plan plan;
    struct bitmap_content content;
    struct bitmap_set old; /* count, and the place of the directory */
    struct bitmap_set stale;
    struct bitmap old_bitmap; /* the plan's */
    bool stores;              /* the bitmap gets a new table */
    u64 freed;
};

static void open_change(struct change *c) {
    const struct call_bitmap_change *call = c->call;
    struct qcow2 *image = &c->image;
    if (call->action_count > BITMAP_ACTIONS_MAX || call->name_length > sizeof(call->name)) {
        refuse(REFUSAL_BAD_CALL);
    }
    qcow2_open(image, 0, true);
    bitmaps_read_with_room(image, bitmap_entry_size(call->name_length));
    bitmaps_read_stale(image);
    bitmap_plan_make(&c->plan, image, call);
    c->old = image->bitmaps;
    c->stale = image->stale;
    if (c->plan.original != NO_BITMAP) {
        c->old_bitmap = image->bitmaps.bitmaps[c->plan.original];
    }
}

static u32 count_afterwards(const struct change *c) {
    bool gone = !c->plan.exists || c->plan.fresh;
    return c->image.bitmaps.count - (gone ? c->plan.named : 0) + (c->plan.exists && c->plan.fresh ? 1 : 0);
}

static void verify_before_writing(struct change *c) {
    const u64 bits = bitmap_plan_touches_bits(&c->plan) ? bitmap_content_work(&c->plan) : 0;
    /* Most bits are in no cluster, and take no time: a host that foresees the end shall not wait for them. */
    work_expect(&c->image.work, (struct work_kinds){0}, bits / 16);
    prepare(&c->image, &c->refcounts, &c->verification);
    work_change(&c->image.work, bits);
    refcounts_reserve(&c->refcounts);
    c->content.refcounts = &c->refcounts;
}

static void free_removed(struct change *c, const struct bitmap *bitmap) {
    bitmap_content_free(&c->image, &c->refcounts, bitmap, NULL, &c->freed);
}

/* The directory in memory becomes what it shall be. `removed`: room for the entries that go. */
static u32 edit_directory(struct change *c, struct bitmap *removed) {
    struct bitmap_set *set = &c->image.bitmaps;
    const struct bitmap_plan *plan = &c->plan;
    u32 count = 0;
    if (!plan->exists || plan->fresh) {
        count = bitmaps_remove(set, plan->name, plan->name_length, removed);
    }
    if (plan->exists && plan->fresh) {
        bitmaps_append(set, &(struct bitmap){.table_entries = c->content.table_entries,
                                             .flags = plan->recording ? BITMAP_FLAG_AUTO : 0,
                                             .granularity_bits = plan->granularity_bits,
                                             .name_stored = plan->name_length,
                                             .name = plan->name});
    } else if (plan->exists) {
        set->bitmaps[plan->original].flags = plan->recording ? BITMAP_FLAG_AUTO : 0;
    }
    return count;
}

/* The plan's bitmap in the directory as it is in memory. */
static u32 entry_of_plan(const struct change *c) {
    return c->plan.fresh ? c->image.bitmaps.count - 1 : c->plan.original;
}

static void write_table(struct change *c) {
    struct qcow2 *image = &c->image;
    struct bitmap *bitmap = &image->bitmaps.bitmaps[entry_of_plan(c)];
    u64 bytes = 8ull * c->content.table_entries;
    bitmap->table_offset = refcounts_allocate(&c->refcounts, bytes);
    disk_reserve(&image->disk, bitmap->table_offset, bytes);
    disk_write(&image->disk, bitmap->table_offset, c->content.table, bytes);
}

/* The bytes of the entry that change, when one sector holds all of them; 0 when not. */
static u64 patch_of_entry(const struct change *c, u64 at, u64 *from) {
    u64 place = c->image.bitmaps.directory_offset + at;
    u64 length = ENTRY_CHANGES;
    *from = 0;
    if (place / SECTOR != (place + length - 1) / SECTOR) {
        bool recording = bitmap_plan_changes_recording(&c->plan);
        *from = c->stores ? 0 : BITMAP_ENTRY_FLAGS;
        length = c->stores ? (recording ? 0 : 8) : 4;
    }
    return length;
}

static void commit_in_place(struct change *c, u64 at, u64 from, u64 length) {
    struct qcow2 *image = &c->image;
    refcounts_write_back(&c->refcounts);
    disk_flush(&image->disk);
    disk_write(&image->disk, image->bitmaps.directory_offset + at + from, image->bitmaps.directory + at + from, length);
    disk_flush(&image->disk);
}

static void commit_new_directory(struct change *c) {
    struct qcow2 *image = &c->image;
    struct bitmap_set *set = &image->bitmaps;
    set->directory_offset = refcounts_allocate(&c->refcounts, set->directory_size);
    disk_reserve(&image->disk, set->directory_offset, set->directory_size);
    disk_write(&image->disk, set->directory_offset, set->directory, set->directory_size);
    refcounts_write_back(&c->refcounts);
    disk_flush(&image->disk);
    extension_write(image);
    refcounts_free(&c->refcounts, c->old.directory_offset, c->old.directory_size, false);
    c->freed += clusters_of(image, c->old.directory_size);
}

static void commit(struct change *c) {
    struct bitmap_set *set = &c->image.bitmaps;
    u64 at = c->plan.exists ? bitmaps_store_entry(set, entry_of_plan(c)) : 0;
    u64 from = 0;
    u64 length = bitmap_plan_changes_set(&c->plan) ? 0 : patch_of_entry(c, at, &from);
    if (length > 0) {
        commit_in_place(c, at, from, length);
    } else {
        commit_new_directory(c);
    }
}

/* What the stale bitmaps held, where it is known to be theirs still. */
static void free_stale(struct change *c) {
    if (!c->verification.stale_are_whole) {
        return;
    }
    for (u32 i = 0; i < c->stale.count; i++) {
        free_removed(c, &c->stale.bitmaps[i]);
    }
    refcounts_free(&c->refcounts, c->stale.directory_offset, c->stale.directory_size, false);
    c->freed += clusters_of(&c->image, c->stale.directory_size);
}

static void carry_out(struct change *c) {
    struct qcow2 *image = &c->image;
    struct bitmap *removed = heap_take((c->plan.named + 1ull) * sizeof(*removed));
    extension_clear_unknown(image);
    u32 removed_count = edit_directory(c, removed);
    if (c->stores) {
        write_table(c);
    }
    commit(c);
    for (u32 i = 0; i < removed_count; i++) {
        free_removed(c, &removed[i]);
    }
    if (c->stores && !c->plan.fresh) {
        bitmap_content_free(image, &c->refcounts, &c->old_bitmap, c->content.table, &c->freed);
    }
    free_stale(c);
    refcounts_write_back(&c->refcounts);
    work_end(&image->work);
    disk_flush(&image->disk);
    refcounts_discard(&c->refcounts);
}

static _Noreturn void answer(struct change *c, bool changed) {
    struct result_bitmap_change *result = result_memory();
    struct bitmap_records records = {0};
    records_add(&records, &c->image.bitmaps, 0);
    if (!changed) {
        records_add(&records, &c->image.stale, BITMAP_STALE);
    }
    u32 known = NO_BITMAP;
    if (c->content.counts && c->content.table != NULL && c->plan.exists) {
        known = entry_of_plan(c);
        struct bitmap_record *record = (struct bitmap_record *)records.start;
        for (u32 i = 0; i < known; i++) {
            record = record_after(record);
        }
        record_set_count(record, &c->content.dirty);
    }
    if (c->call->counts != 0) {
        records_count(&c->image, &records, known);
    }
    result->bitmap_count = records.count;
    result->changed = changed;
    result->virtual_size = c->image.virtual_size;
    result->freed_clusters = c->freed;
    finish(records.start, records.length);
}

_Noreturn void operation_bitmap_change(void) {
    struct change *c = heap_take_zeroed(sizeof(*c));
    c->call = call_memory();
    if (c->call->action_count == 1 && c->call->actions[0].kind == BITMAP_REMOVE_DAMAGED) {
        operation_bitmap_remove_damaged();
    }
    const bool writes = c->call->dry_run == 0;
    open_change(c);
    const bool touches = bitmap_plan_touches_bits(&c->plan);
    bool changed = bitmap_plan_changes_set(&c->plan) || bitmap_plan_changes_recording(&c->plan);
    if (bitmap_plan_changes_set(&c->plan)) {
        extension_check_room(&c->image, count_afterwards(c));
    }
    if (writes && (changed || touches)) {
        verify_before_writing(c);
    }
    c->content.plan = &c->plan;
    c->content.counts = c->call->counts != 0;
    if (touches) {
        bitmap_content_make(&c->content);
        c->stores = c->plan.fresh || c->content.changed;
        changed |= c->stores;
    }
    if (changed && writes) {
        carry_out(c);
    } else if (changed) {
        edit_directory(c, heap_take((c->plan.named + 1ull) * sizeof(struct bitmap)));
    }
    answer(c, changed);
}
