/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "bitmaps/records.h"

static u64 record_size(u32 name_length) { return round_up(sizeof(struct bitmap_record) + name_length, 8); }

void records_add(struct bitmap_records *records, const struct bitmap_set *set, u32 flags) {
    u64 bytes = 0;
    for (u32 i = 0; i < set->count; i++) {
        bytes += record_size(set->bitmaps[i].name_length);
    }
    if (records->start == NULL) {
        records->start = heap_take(0);
    }
    u8 *at = heap_extend(records->start, records->length, bytes);
    memset(at, 0, bytes);
    for (u32 i = 0; i < set->count; i++) {
        const struct bitmap *bitmap = &set->bitmaps[i];
        struct bitmap_record *record = (struct bitmap_record *)at;
        *record = (struct bitmap_record){
            .dirty_bytes = UINT64_MAX,
            .dirty_count = UINT64_MAX,
            .granularity = 1u << bitmap->granularity_bits,
            .flags = flags | ((bitmap->flags & BITMAP_FLAG_AUTO) != 0 ? BITMAP_RECORDING : 0) |
                     ((bitmap->flags & BITMAP_FLAG_IN_USE) != 0 ? BITMAP_IN_USE : 0),
            .name_length = bitmap->name_length,
        };
        memcpy(at + sizeof(*record), bitmap->name, bitmap->name_length);
        at += record_size(bitmap->name_length);
    }
    records->length += bytes;
    records->count += set->count;
}

struct bitmap_record *record_after(struct bitmap_record *record) {
    return (struct bitmap_record *)((u8 *)record + record_size(record->name_length));
}

void record_set_count(struct bitmap_record *record, const struct dirty_count *dirty) {
    record->dirty_bytes = dirty->bytes;
    record->dirty_count = dirty->bits;
}

struct counted { /* a bitmap whose bits are on their way */
    struct bitmap_record *record;
    struct payload payload;
    u64 *words;
    bool any; /* that are set, maybe */
};

/* Small bitmaps are counted many at a time. */
struct counting {
    const struct qcow2 *image;
    u64 clusters_left; /* that bitmaps can have, of those in the file */
    u64 *words;        /* PAYLOAD_WINDOW bytes */
    u64 used;          /* bytes of them */
    struct counted *counted;
    u32 count;
};

static void settle(struct counting *c) {
    disk_run();
    for (u32 i = 0; i < c->count; i++) {
        const struct counted *one = &c->counted[i];
        const struct payload *payload = &one->payload;
        struct dirty_count dirty = {0, 0};
        if (one->any) {
            payload_settle(payload, one->words);
            dirty_add(&dirty, one->words, 0, payload->bits, payload->bits, payload->granularity_bits,
                      c->image->virtual_size);
        }
        record_set_count(one->record, &dirty);
    }
    c->count = 0;
    c->used = 0;
}

static bool take_clusters(struct counting *c, u64 clusters) {
    bool enough = clusters <= c->clusters_left;
    c->clusters_left -= enough ? clusters : 0;
    return enough;
}

/* False: there are not as many clusters in the file as bitmaps say that they have. bytes: of its bits. */
static bool count_soon(struct counting *c, const struct payload *payload, u64 bytes, const u64 *table,
                       struct bitmap_record *record) {
    struct counted *one = &c->counted[c->count];
    *one = (struct counted){.record = record, .payload = *payload, .words = c->words + c->used / sizeof(u64)};
    one->any = payload_queue(&one->payload, table, one->words);
    if (!take_clusters(c, one->payload.clusters_read)) {
        return false;
    }
    c->count++;
    c->used += bytes;
    return true;
}

static bool count_now(struct counting *c, struct payload *payload, struct bitmap_record *record) {
    struct dirty_count dirty = {0, 0};
    for (u64 first = 0; first < payload->bits; first += PAYLOAD_WINDOW * 8) {
        u64 bits = min64(payload->bits - first, PAYLOAD_WINDOW * 8);
        if (payload_read(payload, first / 8, divide_up(bits, 64) * 8, c->words)) {
            dirty_add(&dirty, c->words, first, bits, payload->bits, payload->granularity_bits, c->image->virtual_size);
        }
        if (payload->clusters_read > c->clusters_left) {
            return false;
        }
    }
    take_clusters(c, payload->clusters_read);
    record_set_count(record, &dirty);
    return true;
}

static bool count(struct counting *c, struct bitmap_tables *tables, u32 index, struct bitmap_record *record) {
    const struct bitmap *bitmap = &tables->bitmaps[index];
    struct payload payload = payload_of(c->image, bitmap);
    const u64 bytes = divide_up(payload.bits, 64) * 8;
    if (!take_clusters(c, clusters_of(c->image, 8ull * bitmap->table_entries))) {
        return false;
    }
    if (c->count == DISK_QUEUE_MAX || bytes > PAYLOAD_WINDOW - c->used) {
        settle(c);
    }
    const u64 *table = bytes <= PAYLOAD_WINDOW ? bitmap_tables_get(tables, index) : NULL;
    if (table != NULL) {
        return count_soon(c, &payload, bytes, table, record);
    }
    settle(c);
    return count_now(c, &payload, record);
}

void records_count(struct qcow2 *image, struct bitmap_records *records, u32 known) {
    struct counting counting = {.image = image,
                                .clusters_left = clusters_of(image, image->disk.size),
                                .words = heap_take(PAYLOAD_WINDOW),
                                .counted = heap_take(DISK_QUEUE_MAX * sizeof(struct counted))};
    struct bitmap_tables tables;
    struct bitmap_record *record = (struct bitmap_record *)records->start;
    bitmap_tables_open(&tables, &image->disk, image->bitmaps.bitmaps, image->bitmaps.count, BITMAP_FLAG_IN_USE);
    for (u32 i = 0; i < image->bitmaps.count; i++, record = record_after(record)) {
        bool counts = i != known && (image->bitmaps.bitmaps[i].flags & BITMAP_FLAG_IN_USE) == 0;
        if (counts && !count(&counting, &tables, i, record)) {
            break;
        }
    }
    settle(&counting);
}
