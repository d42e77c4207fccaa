/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/payload.h"

#include "qcow2/bits.h"

struct payload payload_of(const struct qcow2 *image, const struct bitmap *bitmap) {
    if (bitmap->table_offset > image->disk.size) {
        bitmaps_refuse(BITMAPS_TABLE, bitmap, bitmap->table_offset);
    }
    return (struct payload){.disk = image->disk,
                            .cluster_bits = image->cluster_bits,
                            .granularity_bits = bitmap->granularity_bits,
                            .bits = bitmap_bits(image->virtual_size, bitmap->granularity_bits),
                            .end = UINT64_MAX,
                            .bitmap = *bitmap};
}

struct payload payload_in_memory(const u64 *words, u64 bits, u32 granularity_bits, u64 end) {
    return (struct payload){.memory = words, .bits = bits, .granularity_bits = granularity_bits, .end = end};
}

static void check_entry(const struct payload *payload, u64 entry) {
    if (!bitmap_entry_is_sound(entry, payload->cluster_bits)) {
        bitmaps_refuse(BITMAPS_TABLE, &payload->bitmap, entry);
    }
}

static bool visit_entry(void *context, u64 index, u64 entry) {
    (void)index;
    check_entry(context, entry);
    return true;
}

void payload_check_table(struct payload *payload) {
    bitmap_visit_table(&payload->disk, &payload->bitmap, visit_entry, payload);
}

/* Queues the read of a part of one cluster, or makes it up. */
static bool read_piece(struct payload *payload, u64 entry, u64 inside, u64 length, u8 *to) {
    u64 offset = entry & ENTRY_OFFSET;
    bool ones = (entry & 1) != 0;
    check_entry(payload, entry);
    if (offset != 0) {
        disk_queue_read(&payload->disk, offset + inside, to, length);
        payload->clusters_read++;
    } else {
        memset(to, ones ? 0xff : 0, length);
    }
    return offset != 0 || ones;
}

/* As payload_read(), for the `count` entries of the table from the one of byte `first` on. */
static bool queue_pieces(struct payload *payload, const u64 *table, u64 count, u64 first, u64 length, u64 *words) {
    const u64 cluster_size = 1ull << payload->cluster_bits;
    const u64 entry = first >> payload->cluster_bits;
    bool any = false;
    u64 at = first;
    for (u64 i = 0; i < count; i++) {
        u64 end = min64((entry + i + 1) << payload->cluster_bits, first + length);
        u8 *to = (u8 *)words + (at - first);
        any |= read_piece(payload, swap64(table[i]), at & (cluster_size - 1), end - at, to);
        at = end;
    }
    memset((u8 *)words + (at - first), 0, first + length - at);
    return any;
}

/* What is stored behind the last bit does not count. */
static void clear_behind(const struct payload *payload, u64 first, u64 length, u64 *words) {
    if (first * 8 + length * 8 > payload->bits) {
        bits_clear(words, max64(payload->bits, first * 8) - first * 8, length * 8);
    }
}

bool payload_queue(struct payload *payload, const u64 *table, u64 *words) {
    const u64 length = divide_up(payload->bits, 64) * 8;
    const u64 needed = divide_up(length, 1ull << payload->cluster_bits);
    return queue_pieces(payload, table, min64(needed, payload->bitmap.table_entries), 0, length, words);
}

void payload_settle(const struct payload *payload, u64 *words) {
    clear_behind(payload, 0, divide_up(payload->bits, 64) * 8, words);
}

bool payload_read(struct payload *payload, u64 first, u64 length, u64 *words) {
    const u64 cluster_size = 1ull << payload->cluster_bits;
    if (payload->memory != NULL) {
        u64 bytes = divide_up(payload->bits, 64) * 8;
        u64 there = bytes > first ? min64(bytes - first, length) : 0;
        memcpy(words, payload->memory + first / 8, there);
        memset((u8 *)words + there, 0, length - there);
        return !bits_all_clear(words, length);
    }
    void *mark = heap_mark();
    u64 entry = first >> payload->cluster_bits;
    u64 entries = min64(divide_up(first + length, cluster_size), payload->bitmap.table_entries);
    u64 count = entries > entry ? entries - entry : 0;
    u64 *table = heap_take(8 * count);
    disk_read(&payload->disk, payload->bitmap.table_offset + 8 * entry, table, 8 * count);
    bool any = queue_pieces(payload, table, count, first, length, words);
    disk_run();
    heap_release(mark);
    clear_behind(payload, first, length, words);
    return any;
}

/* What the set bits of a piece of a payload, `count` of them from bit `base` on, mean for the bits `first` to
 * `end` of the other bitmap. */
static bool rescale(const struct payload *payload, const u64 *piece, u64 base, u64 from, u64 count,
                    u32 granularity_bits, u64 first, u64 end, u64 *words) {
    const u32 own_bits = payload->granularity_bits;
    bool any = false;
    u64 at = bits_next_set(piece, from, count);
    while (at < count) {
        u64 run_end = bits_next_clear(piece, at, count);
        u64 to_set = max64(((base + at) << own_bits) >> granularity_bits, first);
        u64 byte_end = min64((base + run_end) << own_bits, payload->end);
        u64 set_end = min64(((byte_end - 1) >> granularity_bits) + 1, end);
        bits_set(words, to_set - first, set_end - first);
        any = true;
        /* What lies under the last bit set needs no second look. */
        u64 covered = (set_end << granularity_bits) >> own_bits;
        at = bits_next_set(piece, max64(run_end, covered > base ? covered - base : 0), count);
    }
    return any;
}

bool payload_merge(struct payload *payload, u32 granularity_bits, u64 first, u64 count, u64 *words, u64 *scratch) {
    if (payload->granularity_bits == granularity_bits) {
        u64 bytes = divide_up(count, 64) * 8;
        bool any = payload_read(payload, first / 8, bytes, scratch);
        if (any) {
            bits_merge(words, scratch, bytes);
        }
        return any;
    }
    bool any = false;
    u64 from = (first << granularity_bits) >> payload->granularity_bits;
    u64 last = (((first + count) << granularity_bits) - 1) >> payload->granularity_bits;
    u64 end = min64(last + 1, payload->bits);
    while (from < end) {
        u64 base = from / 64 * 64;
        u64 bits = min64(round_up(end, 64) - base, PAYLOAD_WINDOW * 8);
        if (payload_read(payload, base / 8, bits / 8, scratch)) {
            any |= rescale(payload, scratch, base, from - base, min64(bits, end - base), granularity_bits, first,
                           first + count, words);
        }
        from = base + bits;
    }
    return any;
}

void dirty_add(struct dirty_count *dirty, const u64 *words, u64 first, u64 count, u64 total, u32 granularity_bits,
               u64 disk_size) {
    u64 bits = bits_count(words, divide_up(count, 64) * 8);
    dirty->bits += bits;
    dirty->bytes += bits << granularity_bits;
    bool has_last = count > 0 && first + count == total;
    if (has_last && bits_next_set(words, count - 1, count) < count) {
        dirty->bytes -= (total << granularity_bits) - disk_size;
    }
}
