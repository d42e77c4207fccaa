/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Bitmaps that cannot be go; disk, snapshots and the sound ones stay. The image is verified as if it had no bitmaps:
 * what is counted once then, and referred to by nothing, is all that bitmaps can rightly have. A bitmap that has
 * anything else is damaged. What none of the sound ones has is given back. The write groups, each flushed before the
 * next begins:
 * 1. in a free place, the directory of the sound ones, and its refcounts; nothing where none is sound;
 * 2. the commit point: the header's extension names that directory, or goes;
 * 3. the refcounts of what is given back, which is punched after that.
 */
#include "bitmaps/plan.h"
#include "bitmaps/records.h"
#include "operations/operations.h"
#include "qcow2/extension.h"
#include "qcow2/preparation.h"

struct removal {
    struct qcow2 image;
    struct refcounts refcounts;
    struct verification verification;
    struct bitmap_set old; /* count, and the place of the directory */
    u64 clusters;          /* of the file */
    u64 *claimed;          /* a bit for each cluster that a bitmap has */
    u64 *contested;        /* that two of them have */
    bool *keeps;           /* for each bitmap that can be read */
    struct bitmap_tables tables;
    u32 kept;
    u64 rightful; /* clusters that sound bitmaps have: to the verification they were leaked */
    u64 freed;
};

static bool is_set(const u64 *bits, u64 cluster) { return (bits[cluster / 64] >> (cluster % 64) & 1) != 0; }
static void set(u64 *bits, u64 cluster) { bits[cluster / 64] |= 1ull << (cluster % 64); }

typedef bool use_cluster(struct removal *r, u64 cluster);

static bool claim(struct removal *r, u64 cluster) {
    set(is_set(r->claimed, cluster) ? r->contested : r->claimed, cluster);
    return true;
}

static bool owns(struct removal *r, u64 cluster) {
    return is_set(r->image.orphans, cluster) && !is_set(r->contested, cluster);
}

static bool release(struct removal *r, u64 cluster) {
    r->rightful++;
    r->image.orphans[cluster / 64] &= ~(1ull << (cluster % 64));
    return true;
}

struct going { /* through a bitmap's table */
    struct removal *r;
    use_cluster *use;
    bool more;
};

static bool use_run(struct removal *r, u64 offset, u64 bytes, use_cluster *use) {
    u64 first = offset >> r->image.cluster_bits;
    for (u64 i = 0; i < clusters_of(&r->image, bytes); i++) {
        if (!use(r, first + i)) {
            return false;
        }
    }
    return true;
}

static bool use_entry(void *context, u64 index, u64 entry) {
    struct going *going = context;
    (void)index;
    if ((entry & ENTRY_OFFSET) != 0) {
        going->more = use_run(going->r, entry & ENTRY_OFFSET, 1, going->use);
    }
    return going->more;
}

/* All clusters of a bitmap, which are in the file, as long as `use` says so. */
static bool use_bitmap(struct removal *r, u32 index, use_cluster *use) {
    const struct bitmap *bitmap = &r->image.bitmaps.bitmaps[index];
    struct going going = {r, use, use_run(r, bitmap->table_offset, 8ull * bitmap->table_entries, use)};
    if (going.more) {
        bitmap_tables_visit(&r->tables, index, use_entry, &going);
    }
    return going.more;
}

/* Which bitmaps have nothing but what is theirs alone? A directory that is not its own is not to be believed. */
static void judge(struct removal *r) {
    const struct bitmap_set *bitmaps = &r->image.bitmaps;
    use_run(r, r->old.directory_offset, r->old.directory_size, claim);
    for (u32 i = 0; i < bitmaps->count; i++) {
        use_bitmap(r, i, claim);
    }
    bool believed = use_run(r, r->old.directory_offset, r->old.directory_size, owns);
    for (u32 i = 0; i < bitmaps->count; i++) {
        r->keeps[i] = believed && use_bitmap(r, i, owns);
        r->kept += r->keeps[i];
    }
}

/* Verified without any bitmaps. */
static void verify_the_rest(struct removal *r) {
    struct qcow2 *image = &r->image;
    const struct bitmap_set bitmaps = image->bitmaps;
    const enum bitmaps_fault fault = image->bitmaps_fault;
    image->bitmaps = (struct bitmap_set){0};
    image->bitmaps_fault = BITMAPS_SOUND;
    image->orphans = heap_take_zeroed(8 * divide_up(r->clusters, 64));
    work_expect(&image->work, (struct work_kinds){0}, 0);
    prepare(image, &r->refcounts, &r->verification);
    image->bitmaps = bitmaps;
    image->bitmaps_fault = fault;
}

static void write_directory(struct removal *r) {
    struct qcow2 *image = &r->image;
    struct bitmap_set *bitmaps = &image->bitmaps;
    if (bitmaps->count > 0) {
        bitmaps->directory_offset = refcounts_allocate(&r->refcounts, bitmaps->directory_size);
        disk_reserve(&image->disk, bitmaps->directory_offset, bitmaps->directory_size);
        disk_write(&image->disk, bitmaps->directory_offset, bitmaps->directory, bitmaps->directory_size);
        refcounts_write_back(&r->refcounts);
        disk_flush(&image->disk);
    }
    extension_write(image);
    image->bitmaps_fault = BITMAPS_SOUND;
}

/* What nothing refers to any more. An extension that nobody here knows may: then it stays, and is leaked. */
static void free_orphans(struct removal *r, bool writes) {
    for (u64 cluster = 0; cluster < r->clusters && r->image.unknown_extension_count == 0; cluster++) {
        if (is_set(r->image.orphans, cluster) && writes) {
            refcounts_free(&r->refcounts, cluster << r->image.cluster_bits, r->image.cluster_size, false);
        }
        r->freed += is_set(r->image.orphans, cluster);
    }
}

/* From here on the orphans are what no sound bitmap has. */
static void drop_damaged(struct removal *r) {
    struct bitmap_set *bitmaps = &r->image.bitmaps;
    for (u32 i = 0; i < bitmaps->count; i++) {
        if (r->keeps[i]) {
            use_bitmap(r, i, release);
        }
    }
    bitmaps_keep(bitmaps, r->keeps);
}

static void carry_out(struct removal *r) {
    struct qcow2 *image = &r->image;
    extension_clear_unknown(image);
    write_directory(r);
    free_orphans(r, true);
    refcounts_write_back(&r->refcounts);
    work_end(&image->work);
    disk_flush(&image->disk);
    refcounts_discard(&r->refcounts);
}

static _Noreturn void answer(struct removal *r, bool changed) {
    const struct call_bitmap_change *call = call_memory();
    struct result_bitmap_change *result = result_memory();
    struct bitmap_records records = {0};
    records_add(&records, &r->image.bitmaps, 0);
    if (!changed) {
        records_add(&records, &r->image.stale, BITMAP_STALE);
    }
    if (call->counts != 0) {
        records_count(&r->image, &records, NO_BITMAP);
    }
    result->bitmap_count = records.count;
    result->changed = changed;
    result->virtual_size = r->image.virtual_size;
    result->freed_clusters = r->freed;
    result->header.leaked_clusters -= r->rightful + r->freed;
    finish(records.start, records.length);
}

_Noreturn void operation_bitmap_remove_damaged(void) {
    const struct call_bitmap_change *call = call_memory();
    struct removal *r = heap_take_zeroed(sizeof(*r));
    struct qcow2 *image = &r->image;
    struct bitmaps_damage damage;
    qcow2_open_damaged(image, 0);
    r->old = image->bitmaps;
    bitmaps_read_sound(image, &damage);
    bitmaps_read_stale(image);
    r->clusters = clusters_of(image, image->disk.size);
    if (!bitmaps_present(image) && damage.fault == BITMAPS_SOUND) {
        answer(r, false);
    }
    r->keeps = heap_take_zeroed(image->bitmaps.count + 1ull);
    r->claimed = heap_take_zeroed(8 * divide_up(r->clusters, 64));
    r->contested = heap_take_zeroed(8 * divide_up(r->clusters, 64));
    verify_the_rest(r);
    bitmap_tables_open(&r->tables, &image->disk, image->bitmaps.bitmaps, image->bitmaps.count, 0);
    if (!damage.lost) {
        judge(r);
    }
    drop_damaged(r);
    if (damage.fault == BITMAPS_SOUND && r->kept == r->old.count) {
        use_run(r, r->old.directory_offset, r->old.directory_size, release);
        answer(r, false);
    }
    extension_check_room(image, r->kept);
    if (call->dry_run != 0) {
        free_orphans(r, false);
        answer(r, true);
    }
    refcounts_reserve(&r->refcounts);
    carry_out(r);
    answer(r, true);
}
