/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Going back to a snapshot, as qcow2_snapshot_goto() does. The bytes left are the same; the way there
 * is safer. qemu resizes the disk and then writes the active L1 table in place, which may tear. Here,
 * where that is more than the write of one sector, the header is first switched to a copy of the new
 * table in a free place, size and all. The write groups, each flushed before the next begins:
 * 1. in a free place, that copy; the refcounts of it, and one reference more for all that the snapshot reaches;
 * 2. the snapshot's mapping loses the COPIED flags that are not true any more;
 * 3. the commit point: the header names the copy;
 * 4. the active L1 table is changed in place;
 * 5. the header names it again, and the copy is gone;
 * 6. one reference less for all that the old mapping reached, which is punched, and flags say COPIED again.
 * Without a copy 4 is the commit point.
 */
#include "operations/operations.h"
#include "qcow2/bitmaps.h"
#include "qcow2/preparation.h"
#include "qcow2/references_work.h"
#include "qcow2/resize.h"

#define COPY_DISTANCE_MAX (8 * KIB * MIB) /* hosts bound what a run may add to a file */

struct application {
    struct qcow2 image;
    struct refcounts refcounts;
    struct verification verification;
    const struct snapshot *snapshot;
    struct mapping old;
    struct mapping wanted; /* the snapshot's */
    u32 entries;           /* of the active L1 table afterwards */
    bool resizes;
    bool shrinks;
    u64 copy_offset; /* of the copy of the new L1 table; 0: there is none */
    void *hole;      /* what the copy has overwritten; NULL: it is all behind the end of the file */
    u64 file_size;   /* without the copy */
};

static _Noreturn void refuse_bitmaps(struct qcow2 *image) {
    bitmaps_read(image);
    const struct bitmap *first = &image->bitmaps.bitmaps[0];
    refuse(REFUSAL_HAS_BITMAPS, .text = first->name, .length = first->name_length, .a = image->bitmaps.count);
}

static void check_resize(const struct qcow2 *image, const struct snapshot *snapshot, bool allowed) {
    if (snapshot->disk_size == image->virtual_size) {
        return;
    }
    if (image->version < 3) {
        refuse(REFUSAL_RESIZE_V2, .a = image->virtual_size, .b = snapshot->disk_size);
    }
    if (!allowed) {
        refuse(REFUSAL_RESIZE_NOT_ALLOWED, .a = image->virtual_size, .b = snapshot->disk_size);
    }
    if (snapshot->disk_size % 512 != 0 || snapshot->disk_size > INT64_MAX) {
        refuse(REFUSAL_VIRTUAL_SIZE, .a = snapshot->disk_size);
    }
    if (max64(l1_entries_for(image, snapshot->disk_size), snapshot->l1_entries) > L1_BYTES_MAX / 8) {
        refuse(REFUSAL_SNAPSHOT_L1_LARGE);
    }
}

static void open_application(struct application *a, const struct call_snapshot_apply *call) {
    struct qcow2 *image = &a->image;
    qcow2_open(image, 0, true);
    if (has_data_file(image)) {
        refuse(REFUSAL_DATA_FILE);
    }
    if (bitmaps_present(image)) {
        refuse_bitmaps(image);
    }
    int64_t index = snapshots_find(image, &call->snapshot);
    if (index < 0) {
        refuse(REFUSAL_SNAPSHOT_NOT_FOUND);
    }
    a->snapshot = &image->snapshots[index];
    snapshot_check_l1(image, a->snapshot);
    check_resize(image, a->snapshot, call->resize_allowed != 0);
    work_expect(&image->work, (struct work_kinds){.others = 3}, 0);
    prepare_references(image, &a->refcounts, &a->verification);
    mapping_read(image, &a->wanted, a->snapshot->l1_offset, a->snapshot->l1_entries, a->snapshot->l1_entries);
    references_check_unique(image, &a->refcounts, &a->verification, &a->wanted);
    references_check_room(image, &a->refcounts, &a->verification, &a->wanted);
    a->old = (struct mapping){image->l1, image->l1_entries, image->l1_offset};
    u64 entries = max64(a->snapshot->l1_entries, l1_entries_for(image, a->snapshot->disk_size));
    a->entries = (u32)max64(image->l1_entries, entries);
    a->resizes = a->snapshot->disk_size != image->virtual_size;
    a->shrinks = a->snapshot->disk_size < image->virtual_size;
}

static u64 entry_at(const struct mapping *mapping, u32 index) {
    return index < mapping->entries ? mapping->l1[index] : 0;
}

/* Would the change of the active L1 table be more than one sector, which is written whole or not? */
static bool may_tear(const struct application *a) {
    u32 sectors = 0;
    for (u32 first = 0; first < a->entries; first += SECTOR / 8) {
        u64 differences = 0;
        for (u32 i = first; i < min64(first + SECTOR / 8, a->entries); i++) {
            differences |= entry_at(&a->old, i) ^ (entry_at(&a->wanted, i) & ~ENTRY_COPIED);
        }
        sectors += differences != 0;
    }
    return sectors > 1 || a->resizes;
}

/* Clusters that a resize allocates at most: for L1 tables, and for L2 tables in which it cuts. */
static u64 resize_allocates(const struct application *a, u64 l1_clusters) {
    const struct qcow2 *image = &a->image;
    u64 cut = a->shrinks ? l1_entries_for(image, image->virtual_size) -
                               a->snapshot->disk_size / (image->cluster_size * l2_entries(image))
                         : 0;
    return cut + (a->entries > image->l1_entries ? 2 * l1_clusters + 2 : 0);
}

/* Takes the last free run that refcount blocks count, behind the end of the file or a hole in it. */
static bool take_last_run(struct application *a, u64 count) {
    struct qcow2 *image = &a->image;
    u64 first = min64((image->disk.size + COPY_DISTANCE_MAX) >> image->cluster_bits, refcounts_end(&a->refcounts));
    u64 run = 0;
    while (run < count && first > 0) {
        run = refcounts_get(&a->refcounts, --first) == 0 ? run + 1 : 0;
    }
    if (run < count || !refcounts_take(&a->refcounts, first, count)) {
        return false;
    }
    a->copy_offset = first << image->cluster_bits;
    return true;
}

/* Room for the copy where it is in nobody's way: behind all that a resize may allocate, else as far
 * away as can be. It must be counted by an existing refcount block; without any, things are done in
 * qemu's order. */
static void place_copy(struct application *a) {
    struct qcow2 *image = &a->image;
    u64 count = clusters_of(image, 8ull * a->entries);
    bool shrinks_and_grows = a->shrinks && a->entries > image->l1_entries; /* no other snapshot is like that */
    a->file_size = image->disk.size;
    if (count == 0 || shrinks_and_grows || !may_tear(a)) {
        return;
    }
    u64 first = clusters_of(image, image->disk.size) + (a->resizes ? resize_allocates(a, count) : 0);
    u64 growth = ((first + count) << image->cluster_bits) - image->disk.size;
    if (growth <= COPY_DISTANCE_MAX && refcounts_take(&a->refcounts, first, count)) {
        a->copy_offset = first << image->cluster_bits;
    } else if (!take_last_run(a, count)) {
        return;
    }
    if (a->copy_offset < image->disk.size) {
        a->hole = heap_take(8ull * a->entries);
        disk_read(&image->disk, a->copy_offset, a->hole, 8ull * a->entries);
    }
}

/* A resize may change the old mapping in between, so then nothing is left out as common to both. */
static const struct mapping *if_same_size(const struct application *a, const struct mapping *unlike) {
    return a->resizes ? NULL : unlike;
}

static void tell_work(struct application *a) {
    const struct mapping *old = if_same_size(a, &a->old);
    const struct mapping *wanted = if_same_size(a, &a->wanted);
    u64 work = work_of_adding(&a->refcounts, &a->verification, &a->wanted, old);
    work += work_of_visiting(&a->image, &a->wanted, old);
    work += work_of_dropping(&a->refcounts, &a->verification, &a->old, wanted, NULL);
    work_change(&a->image.work, work);
}

static void reserve(struct application *a) {
    struct qcow2 *image = &a->image;
    mapping_reserve(image, &a->wanted, &a->old);
    mapping_reserve(image, &a->old, &a->wanted);
    refcounts_reserve(&a->refcounts);
    if (a->copy_offset != 0) {
        disk_reserve(&image->disk, a->copy_offset, 8ull * a->entries);
    }
}

/* One reference more for what becomes active. Nothing of this shows before the commit point. */
static void add_references(struct application *a) {
    struct qcow2 *image = &a->image;
    const struct mapping *unlike = if_same_size(a, &a->old);
    references_add(image, &a->refcounts, &a->verification, &a->wanted, unlike);
    disk_flush(&image->disk);
    if (mapping_clear_copied(image, &a->wanted, unlike)) {
        mapping_write(image, &a->wanted);
    }
    disk_flush(&image->disk);
}

static void commit_to_copy(struct application *a) {
    struct qcow2 *image = &a->image;
    refcounts_write_back(&a->refcounts);
    mapping_write_shared(image, &a->wanted, a->copy_offset, a->entries);
    image->disk.size = a->file_size;
    add_references(a);
    header_switch_mapping(image, a->snapshot->disk_size, a->entries, a->copy_offset);
    image->detached = true;
}

static void leave_copy(struct application *a) {
    struct qcow2 *image = &a->image;
    image->detached = false;
    header_write_l1(image);
    disk_flush(&image->disk);
    const u64 size = image->disk.size;
    if (a->hole != NULL) {
        disk_write(&image->disk, a->copy_offset, a->hole, 8ull * a->entries);
        image->disk.size = size;
    }
    refcounts_free(&a->refcounts, a->copy_offset, 8ull * a->entries, false);
    refcounts_write_back(&a->refcounts);
    disk_flush(&image->disk);
    disk_resize(&image->disk, size);
}

_Noreturn void operation_snapshot_apply(void) {
    struct result_snapshot_apply *result = result_memory();
    struct application a = {0};
    struct qcow2 *image = &a.image;
    open_application(&a, call_memory());
    result->resized = a.resizes;
    place_copy(&a);
    tell_work(&a);
    reserve(&a);
    prepare_header(image);
    if (a.copy_offset != 0) {
        commit_to_copy(&a);
    }
    if (a.resizes) {
        resize_mapping(image, &a.refcounts, a.snapshot->disk_size);
        if (a.shrinks && a.copy_offset == 0) {
            resize_file(image, &a.refcounts);
        }
    }
    resize_l1(image, &a.refcounts, a.snapshot->l1_entries);
    refcounts_write_back(&a.refcounts);
    a.old = (struct mapping){image->l1, image->l1_entries, image->l1_offset};
    if (a.copy_offset == 0) {
        add_references(&a);
    }
    mapping_write_shared(image, &a.wanted, image->l1_offset, a.entries); /* the commit point, unless the copy was */
    disk_flush(&image->disk);
    if (a.copy_offset != 0) {
        leave_copy(&a);
        if (a.shrinks) {
            resize_file(image, &a.refcounts);
            refcounts_write_back(&a.refcounts);
        }
    }
    u64 freed = 0;
    references_drop(image, &a.refcounts, &a.verification, &a.old, if_same_size(&a, &a.wanted), &freed);
    work_end(&image->work);
    disk_flush(&image->disk);
    result->snapshot_count = image->snapshot_count;
    result->virtual_size = image->virtual_size;
    finish_with_snapshots(image);
}
