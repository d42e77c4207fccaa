/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include <string.h>

#include "qcow2/bits.h"
#include "qcow2/counters.h"
#include "qcow2/preparation.h"

#include "entry.h"
#include "host.h"
#include "probes.h"

uint64_t probe_block_get(const u8 *block, u32 order, u64 index) { return block_get(block, order, index); }

void probe_block_set(u8 *block, u32 order, u64 index, u64 value) { block_set(block, order, index, value); }

uint64_t probe_bits_next(const u64 *words, u64 from, u64 end, u32 set) {
    return set != 0 ? bits_next_set(words, from, end) : bits_next_clear(words, from, end);
}

void probe_bits_change(u64 *words, u64 from, u64 end, u32 set) {
    if (set != 0) {
        bits_set(words, from, end);
    } else {
        bits_clear(words, from, end);
    }
}

uint64_t probe_bits_merge(u64 *words, const u64 *more, u64 bytes) {
    bits_merge(words, more, bytes);
    return bits_count(words, bytes);
}

uint32_t probe_bits_all_clear(const u64 *words, u64 bytes) { return bits_all_clear(words, bytes); }

struct disk_script {
    const struct probe_io *script;
    u32 count;
    u8 *memory;
    struct disk disk;
};

static void run_disk_script(void *argument) {
    struct disk_script *run = argument;
    struct disk *disk = &run->disk;
    for (u32 i = 0; i < run->count; i++) {
        const struct probe_io *io = &run->script[i];
        u8 *memory = run->memory + io->place;
        switch (io->operation) {
        case DOORBELL_READ:
            disk_queue_read(disk, io->offset, memory, io->length);
            break;
        case DOORBELL_WRITE:
            disk_queue_write(disk, io->offset, memory, io->length);
            break;
        case DOORBELL_DISCARD:
            disk_queue_discard(disk, io->offset, io->length);
            break;
        case DOORBELL_RESERVE:
            disk_queue_reserve(disk, io->offset, io->length);
            break;
        case DOORBELL_RESIZE:
            disk_resize(disk, io->length);
            break;
        case DOORBELL_FLUSH:
            disk_flush(disk);
            break;
        default:
            disk_run();
        }
    }
}

int probe_disk(const struct probe_io *script, u32 count, u8 *memory, u64 *size) {
    struct disk_script run = {script, count, memory, {0, *size}};
    int end = enter(run_disk_script, &run);
    *size = run.disk.size;
    return end;
}

struct refcount_script {
    struct probe_change *script;
    u32 count;
    u64 cursor;
};

static void run_refcount_script(void *argument) {
    struct refcount_script *run = argument;
    struct qcow2 image;
    struct refcounts refcounts;
    qcow2_open(&image, 0, true);
    refcounts_open(&refcounts, &image);
    refcounts.cursor = run->cursor;
    for (u32 i = 0; i < run->count; i++) {
        struct probe_change *change = &run->script[i];
        switch (change->kind) {
        case 1:
            change->offset = refcounts_allocate(&refcounts, change->bytes);
            break;
        case 2:
        case 3:
            refcounts_free(&refcounts, change->offset, change->bytes, change->kind == 3);
            break;
        case 5:
            change->offset = refcounts_allocate_bytes(&refcounts, change->bytes);
            break;
        default:
            refcounts_write_back(&refcounts);
            refcounts_discard(&refcounts);
        }
    }
    refcounts_write_back(&refcounts);
    refcounts_discard(&refcounts);
}

int probe_refcounts(struct probe_change *script, u32 count, u64 cursor) {
    struct refcount_script run = {script, count, cursor};
    return enter(run_refcount_script, &run);
}

static void rewrite_header(void *argument) {
    struct qcow2 image;
    qcow2_open(&image, 0, true);
    *(u32 *)argument = header_needs_update(&image);
    prepare_header(&image);
}

int probe_header(u32 *rewritten) { return enter(rewrite_header, rewritten); }

struct search {
    const struct selector *selector;
    int64_t *index;
    u8 *id;
    u32 *length;
};

static void search(void *argument) {
    const struct search *search = argument;
    struct qcow2 image;
    qcow2_open(&image, 0, false);
    if (search->selector != NULL) {
        *search->index = snapshots_find(&image, search->selector);
    } else {
        *search->length = snapshots_next_id(&image, search->id);
    }
}

int probe_find(const struct selector *selector, int64_t *index) {
    return enter(search, &(struct search){.selector = selector, .index = index});
}

int probe_next_id(u8 *id, u32 *length) { return enter(search, &(struct search){.id = id, .length = length}); }

struct rewriting {
    u64 offset;
    u64 *size;
};

static void rewrite_snapshots(void *argument) {
    const struct rewriting *run = argument;
    struct qcow2 image;
    qcow2_open(&image, 0, true);
    *run->size = snapshots_table_size(image.snapshots, image.snapshot_count);
    snapshots_write(&image, run->offset, image.snapshots, image.snapshot_count);
}

int probe_snapshots(u64 offset, u64 *size) {
    return enter(rewrite_snapshots, &(struct rewriting){.offset = offset, .size = size});
}

struct counting {
    u64 clusters;
    u64 first;
    u64 cluster;
    u32 width;
    u32 *value;
    u64 *room;
    u32 *overflowed;
};

static void count(void *argument) {
    const struct counting *run = argument;
    struct counters counters;
    counters_open(&counters, run->clusters, run->width);
    *run->room = counters.room;
    counters_window(&counters, run->first, run->clusters);
    if (in_window(&counters, run->cluster)) {
        counter_set(&counters, run->cluster, *run->value);
        *run->value = counter_get(&counters, run->cluster);
    }
    *run->overflowed = counters.overflowed;
}

int probe_counters(u64 clusters, u32 width, u64 first, u64 cluster, u32 *value, u64 *room, u32 *overflowed) {
    return enter(count, &(struct counting){clusters, first, cluster, width, value, room, overflowed});
}

struct heap_script {
    u64 size;
    u64 between;
    u64 more;
    u64 distance;
};

static void run_heap_script(void *argument) {
    struct heap_script *run = argument;
    u8 *piece = heap_take(run->size);
    void *mark = heap_mark();
    if (run->between > 0) {
        heap_take(run->between);
        heap_release(mark); /* given back: nothing lies between */
        heap_take(run->between);
    }
    u8 *more = heap_extend(piece, run->size, run->more);
    memset(piece, 1, run->size + run->more);
    run->distance = (u64)(more - piece);
    if (heap_take(0) < (void *)(more + run->more)) {
        refuse(REFUSAL_BAD_CALL);
    }
}

int probe_heap(u64 size, u64 between, u64 more, u64 *distance) {
    struct heap_script run = {.size = size, .between = between, .more = more};
    int how = enter(run_heap_script, &run);
    *distance = run.distance;
    return how;
}
