/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "bitmaps/content.h"

#include "qcow2/bits.h"

#define CLUSTER_MIN 512

struct making {
    struct bitmap_content *content;
    struct payload old; /* no entries: there is none whose bits could stay */
    u64 *words;         /* the new bits of the window */
    u64 *old_words;
    u64 *scratch;
};

static bool merge_sources(struct making *m, u64 first, u64 count) {
    const struct bitmap_plan *plan = m->content->plan;
    bool any = false;
    for (u32 i = 0; i < plan->source_count; i++) {
        result_disk(plan->sources[i].disk.index);
        any |= payload_merge(&plan->sources[i], plan->granularity_bits, first, count, m->words, m->scratch);
    }
    result_disk(plan->image->disk.index);
    return any;
}

/* Gives a cluster its new place, with room for it in the file system; false: there is nothing to be written. */
static bool place_cluster(struct making *m, u64 index, const u64 *words, u64 length) {
    struct bitmap_content *content = m->content;
    struct qcow2 *image = content->plan->image;
    content->changed = true;
    content->table[index] = 0;
    if (content->refcounts == NULL || bits_all_clear(words, length)) {
        return false;
    }
    u64 offset = refcounts_allocate(content->refcounts, image->cluster_size);
    store64(&content->table[index], offset);
    disk_queue_reserve(&image->disk, offset, image->cluster_size);
    return true;
}

/* The table still has the old entries; those of clusters whose bits stay as they are remain. */
static void store_window(struct making *m, u64 first_entry, u64 bytes) {
    struct qcow2 *image = m->content->plan->image;
    const u64 cluster_size = image->cluster_size;
    const u64 *table = m->content->table + first_entry;
    bool placed[PAYLOAD_WINDOW / CLUSTER_MIN];
    for (u64 at = 0, i = 0; at < bytes; at += cluster_size, i++) {
        const u64 *words = m->words + at / 8;
        u64 length = min64(cluster_size, bytes - at);
        placed[i] =
            memcmp(words, m->old_words + at / 8, length) != 0 && place_cluster(m, first_entry + i, words, length);
    }
    disk_run();
    for (u64 at = 0, i = 0; at < bytes; at += cluster_size, i++) {
        if (placed[i]) {
            disk_queue_write(&image->disk, load64(&table[i]), m->words + at / 8, cluster_size);
        }
    }
    disk_run();
}

/* The old bits stay, or a bitmap gets empty that is known to change: no need to read them. */
static bool skip_window(struct making *m, u64 first_entry, u64 entries, bool any_added) {
    struct bitmap_content *content = m->content;
    if (any_added) {
        return false;
    }
    if (content->plan->fresh) {
        return true;
    }
    if (content->counts) {
        return false;
    }
    if (!content->plan->keeps) {
        if (!content->changed) {
            return false;
        }
        memset(content->table + first_entry, 0, 8 * entries);
    }
    return true;
}

/* Of that many bits of the bitmap, and as many of what is merged into it. */
static u64 work_of(const struct bitmap_plan *plan, u64 bits) {
    return divide_up(bits, 8) * (plan->source_count + (plan->fresh ? 0ull : 1ull));
}

u64 bitmap_content_work(const struct bitmap_plan *plan) {
    return work_of(plan, bitmap_bits(plan->image->virtual_size, plan->granularity_bits));
}

static void make_window(struct making *m, u64 first, u64 total) {
    struct bitmap_content *content = m->content;
    const struct bitmap_plan *plan = content->plan;
    const u64 cluster_size = plan->image->cluster_size;
    u64 count = min64(total - first, PAYLOAD_WINDOW * 8);
    u64 bytes = round_up(divide_up(count, 8), 8);
    memset(m->words, 0, round_up(bytes, cluster_size));
    bool any = merge_sources(m, first, count);
    if (skip_window(m, first / 8 / cluster_size, divide_up(bytes, cluster_size), any)) {
        return;
    }
    memset(m->old_words, 0, bytes);
    if (payload_read(&m->old, first / 8, bytes, m->old_words) && plan->keeps) {
        bits_merge(m->words, m->old_words, bytes);
    }
    store_window(m, first / 8 / cluster_size, bytes);
    dirty_add(&content->dirty, m->words, first, count, total, plan->granularity_bits, plan->image->virtual_size);
}

void bitmap_content_make(struct bitmap_content *content) {
    const struct bitmap_plan *plan = content->plan;
    struct qcow2 *image = plan->image;
    struct making m = {.content = content};
    content->table_entries = (u32)bitmap_table_entries(image, plan->granularity_bits);
    content->table = heap_take_zeroed(8ull * content->table_entries);
    if (content->windows == NULL) {
        content->windows = heap_take(3 * PAYLOAD_WINDOW);
    }
    m.words = content->windows;
    m.old_words = m.words + PAYLOAD_WINDOW / sizeof(u64);
    m.scratch = m.old_words + PAYLOAD_WINDOW / sizeof(u64);
    if (!plan->fresh) {
        m.old = payload_of(image, &image->bitmaps.bitmaps[plan->original]);
        u64 entries = min64(m.old.bitmap.table_entries, content->table_entries);
        disk_read(&image->disk, m.old.bitmap.table_offset, content->table, 8 * entries);
    }
    const u64 total = bitmap_bits(image->virtual_size, plan->granularity_bits);
    for (u64 first = 0; first < total; first += PAYLOAD_WINDOW * 8) {
        make_window(&m, first, total);
        work_done(&image->work, work_of(plan, min64(total - first, PAYLOAD_WINDOW * 8)));
    }
}

struct freeing {
    struct refcounts *refcounts;
    const u64 *kept;
    u64 *freed;
};

static bool free_entry(void *context, u64 index, u64 entry) {
    const struct freeing *f = context;
    u64 offset = entry & ENTRY_OFFSET;
    if (offset != 0 && (f->kept == NULL || swap64(f->kept[index]) != entry)) {
        refcounts_free(f->refcounts, offset, f->refcounts->image->cluster_size, true);
        (*f->freed)++;
    }
    return true;
}

void bitmap_content_free(struct qcow2 *image, struct refcounts *refcounts, const struct bitmap *bitmap, const u64 *kept,
                         u64 *freed) {
    bitmap_visit_table(&image->disk, bitmap, free_entry, &(struct freeing){refcounts, kept, freed});
    refcounts_free(refcounts, bitmap->table_offset, 8ull * bitmap->table_entries, false);
    *freed += clusters_of(image, 8ull * bitmap->table_entries);
}
