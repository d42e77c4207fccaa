/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "operations/bitmap_records.h"

static u64 record_size(u32 name_length) { return round_up(sizeof(struct bitmap_record) + name_length, 8); }

void records_add(struct bitmap_records *records, const struct bitmap_set *set, u32 flags) {
    u64 bytes = 0;
    for (u32 i = 0; i < set->count; i++) {
        bytes += record_size(set->bitmaps[i].name_length);
    }
    u8 *at = heap_take(bytes);
    if (records->length == 0) {
        records->start = at;
    }
    at = records->start + records->length;
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

/* False: there are not as many clusters in the file as bitmaps say that they have. */
static bool count(const struct qcow2 *image, const struct bitmap *bitmap, u64 *clusters_left, u64 *words,
                  struct dirty_count *dirty) {
    struct payload payload = payload_of(image, bitmap);
    const u64 table_clusters = clusters_of(image, 8ull * bitmap->table_entries);
    if (table_clusters > *clusters_left) {
        return false;
    }
    *clusters_left -= table_clusters;
    for (u64 first = 0; first < payload.bits; first += PAYLOAD_WINDOW * 8) {
        u64 bits = min64(payload.bits - first, PAYLOAD_WINDOW * 8);
        if (payload_read(&payload, first / 8, divide_up(bits, 64) * 8, words)) {
            dirty_add(dirty, words, first, bits, payload.bits, payload.granularity_bits, image->virtual_size);
        }
        if (payload.clusters_read > *clusters_left) {
            return false;
        }
    }
    *clusters_left -= payload.clusters_read;
    return true;
}

void records_count(struct qcow2 *image, struct bitmap_records *records, u32 known) {
    u64 clusters_left = clusters_of(image, image->disk.size);
    u64 *words = heap_take(PAYLOAD_WINDOW);
    struct bitmap_record *record = (struct bitmap_record *)records->start;
    for (u32 i = 0; i < image->bitmaps.count; i++, record = record_after(record)) {
        const struct bitmap *bitmap = &image->bitmaps.bitmaps[i];
        struct dirty_count dirty = {0, 0};
        if (i == known || (bitmap->flags & BITMAP_FLAG_IN_USE) != 0) {
            continue;
        }
        if (!count(image, bitmap, &clusters_left, words, &dirty)) {
            return;
        }
        record_set_count(record, &dirty);
    }
}
