/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/bitmaps.h"

#define FLAGS_KNOWN (BITMAP_FLAG_IN_USE | BITMAP_FLAG_AUTO)
#define TYPE_DIRTY 1

_Noreturn void bitmaps_refuse(enum bitmaps_fault fault, const struct bitmap *bitmap, u64 value) {
    refuse(REFUSAL_BITMAPS_EXTENSION, .text = bitmap != NULL ? bitmap->name : NULL,
           .length = bitmap != NULL ? bitmap->name_length : 0, .a = fault, .b = value);
}

static void note_fault(struct qcow2 *image, enum bitmaps_fault fault, u64 value) {
    if (image->bitmaps_fault == BITMAPS_SOUND) {
        image->bitmaps_fault = fault;
        image->bitmaps_fault_value = value;
    }
}

void bitmaps_refuse_fault(const struct qcow2 *image) {
    if (image->bitmaps_fault != BITMAPS_SOUND) {
        bitmaps_refuse(image->bitmaps_fault, NULL, image->bitmaps_fault_value);
    }
}

void bitmaps_read_extension(struct qcow2 *image, u64 at, u32 length) {
    image->bitmaps_fault = BITMAPS_SOUND; /* the last one counts */
    if (length != BITMAPS_EXTENSION_BYTES) {
        image->bitmaps_extensions++;
        image->bitmaps = (struct bitmap_set){0};
        note_fault(image, BITMAPS_LENGTH, length);
        return;
    }
    const u8 *data = image->header + at;
    const struct bitmap_set set = {
        .count = load32(data), .directory_size = load64(data + 8), .directory_offset = load64(data + 16)};
    image->bitmaps_extensions++;
    image->bitmaps_extension = at;
    if ((image->autoclear & AUTOCLEAR_BITMAPS) == 0) {
        image->stale = set;
        return;
    }
    image->bitmaps = set;
    if (load32(data + 4) != 0) {
        note_fault(image, BITMAPS_RESERVED, 0);
    }
    if (set.count > BITMAPS_MAX) {
        note_fault(image, BITMAPS_COUNT, set.count);
    }
    if (set.count == 0) {
        note_fault(image, BITMAPS_NONE, 0);
    }
    if (offset_in_cluster(image, set.directory_offset) != 0) {
        note_fault(image, BITMAPS_OFFSET, set.directory_offset);
    }
    if (set.directory_size > BITMAP_DIRECTORY_BYTES_MAX) {
        note_fault(image, BITMAPS_DIRECTORY_SIZE, set.directory_size);
    }
    if (image->bitmaps_fault != BITMAPS_SOUND) {
        image->bitmaps = (struct bitmap_set){0};
    }
}

void bitmaps_store_extension(const struct bitmap_set *set, u8 extension[BITMAPS_EXTENSION_BYTES]) {
    store32(extension, set->count);
    store32(extension + 4, 0);
    store64(extension + 8, set->directory_size);
    store64(extension + 16, set->directory_offset);
}

bool bitmaps_present(const struct qcow2 *image) {
    return image->bitmaps.count > 0 || image->bitmaps_fault != BITMAPS_SOUND;
}

u64 bitmap_bits(u64 size, u32 granularity_bits) { return divide_up(size, 1ull << granularity_bits); }

u64 bitmap_table_entries(const struct qcow2 *image, u32 granularity_bits) {
    return clusters_of(image, divide_up(bitmap_bits(image->virtual_size, granularity_bits), 8));
}

u64 bitmap_entry_size(u64 name_length) { return round_up(BITMAP_ENTRY_FIXED + name_length, 8); }

static bool is_named(const struct bitmap *bitmap, const u8 *name, u64 length) {
    return bitmap->name_length == length && memcmp(bitmap->name, name, length) == 0;
}

u32 bitmaps_find(const struct bitmap_set *set, const u8 *name, u64 length, u32 *first) {
    u32 found = 0;
    for (u32 i = set->count; i-- > 0;) {
        if (is_named(&set->bitmaps[i], name, length)) {
            *first = i;
            found++;
        }
    }
    return found;
}

bool bitmap_entry_has_reserved_bits(u64 entry) {
    return (entry & ~(ENTRY_OFFSET | 1)) != 0 || ((entry & ENTRY_OFFSET) != 0 && (entry & 1) != 0);
}

bool bitmap_entry_is_sound(u64 entry, u32 cluster_bits) {
    return !bitmap_entry_has_reserved_bits(entry) && ((entry & ENTRY_OFFSET) & ((1ull << cluster_bits) - 1)) == 0;
}

static void load_entry(struct bitmap *bitmap, const u8 *entry) {
    *bitmap = (struct bitmap){.table_offset = load64(entry),
                              .table_entries = load32(entry + 8),
                              .flags = load32(entry + 12),
                              .granularity_bits = entry[17],
                              .name_stored = load16(entry + 18),
                              .name = entry + BITMAP_ENTRY_FIXED};
}

/* The name must lie in memory. */
static void measure_name(struct bitmap *bitmap) {
    while (bitmap->name_length < bitmap->name_stored && bitmap->name[bitmap->name_length] != 0) {
        bitmap->name_length++;
    }
}

static void store_entry(const struct bitmap *bitmap, u8 *entry) {
    store64(entry, bitmap->table_offset);
    store32(entry + 8, bitmap->table_entries);
    store32(entry + 12, bitmap->flags);
    entry[16] = TYPE_DIRTY;
    entry[17] = (u8)bitmap->granularity_bits;
    store16(entry + 18, (u16)bitmap->name_stored);
    store32(entry + 20, 0);
}

/* check_dir_entry() */
static bool acceptable(const struct qcow2 *image, const struct bitmap *bitmap, u32 type) {
    u64 payload = (u64)bitmap->table_entries * image->cluster_size;
    bool bad = bitmap->table_entries == 0 || bitmap->table_offset == 0 ||
               offset_in_cluster(image, bitmap->table_offset) != 0 ||
               bitmap->table_entries > BITMAP_TABLE_ENTRIES_MAX ||
               bitmap->granularity_bits > BITMAP_GRANULARITY_BITS_MAX ||
               bitmap->granularity_bits < BITMAP_GRANULARITY_BITS_MIN || (bitmap->flags & ~FLAGS_KNOWN) != 0 ||
               bitmap->name_stored > BITMAP_NAME_MAX || type != TYPE_DIRTY || payload > BITMAP_PAYLOAD_MAX;
    bool too_small = !bad && (bitmap->flags & BITMAP_FLAG_IN_USE) == 0 &&
                     image->virtual_size > (payload * 8) << bitmap->granularity_bits;
    return !bad && !too_small;
}

/* An entry of the directory that can be found, and whether it can be one. */
static enum bitmaps_fault read_entry(const struct qcow2 *image, const u8 *entry, u64 size, struct bitmap *bitmap,
                                     u64 *length) {
    u64 extra = load32(entry + 20);
    load_entry(bitmap, entry);
    *length = round_up(BITMAP_ENTRY_FIXED + extra + bitmap->name_stored, 8);
    if (*length > size) {
        return BITMAPS_BROKEN;
    }
    measure_name(bitmap);
    if (extra != 0) {
        return BITMAPS_EXTRA;
    }
    return acceptable(image, bitmap, entry[16]) ? BITMAPS_SOUND : BITMAPS_ENTRY;
}

/* bitmap_list_load(): the entries up to the first fault, `found` of them; `last` is the one that has it. */
static enum bitmaps_fault read_entries(const struct qcow2 *image, const struct bitmap_set *set, u32 *found,
                                       struct bitmap *last) {
    u64 size = set->directory_size;
    for (u64 at = 0; at < size;) {
        const u8 *entry = set->directory + at;
        if (size - at < BITMAP_ENTRY_FIXED) {
            return BITMAPS_BROKEN;
        }
        if (*found == set->count) {
            return BITMAPS_MORE;
        }
        u64 length;
        enum bitmaps_fault fault = read_entry(image, entry, size - at, last, &length);
        if (fault != BITMAPS_SOUND) {
            return fault;
        }
        set->bitmaps[(*found)++] = *last;
        at += length;
    }
    return *found < set->count ? BITMAPS_LESS : BITMAPS_SOUND;
}

static bool inside_file(const struct qcow2 *image, const struct bitmap_set *set) {
    return set->directory_offset <= image->disk.size && set->directory_size <= image->disk.size - set->directory_offset;
}

/* load_bitmap_data(): the table of a bitmap in good order has exactly the entries that the disk needs. */
static bool has_fitting_table(const struct qcow2 *image, const struct bitmap *bitmap) {
    return (bitmap->flags & BITMAP_FLAG_IN_USE) != 0 ||
           bitmap->table_entries == bitmap_table_entries(image, bitmap->granularity_bits);
}

static void check_tables(const struct qcow2 *image) {
    for (u32 i = 0; i < image->bitmaps.count; i++) {
        const struct bitmap *bitmap = &image->bitmaps.bitmaps[i];
        if (!has_fitting_table(image, bitmap)) {
            bitmaps_refuse(BITMAPS_DATA, bitmap, 0);
        }
    }
}

void bitmaps_read_with_room(struct qcow2 *image, u64 room) {
    struct bitmap_set *set = &image->bitmaps;
    bitmaps_refuse_fault(image);
    if (set->directory != NULL) {
        return;
    }
    if (set->count > 0 && set->directory_size == 0) {
        bitmaps_refuse(BITMAPS_EMPTY_DIRECTORY, NULL, 0);
    }
    if (!inside_file(image, set)) {
        refuse(REFUSAL_TRUNCATED, .a = TABLE_BITMAP_DIRECTORY, .b = set->directory_offset, .c = image->disk.size);
    }
    set->bitmaps = heap_take((set->count + 1) * sizeof(struct bitmap));
    set->directory = heap_take(set->directory_size + room);
    disk_read(&image->disk, set->directory_offset, set->directory, set->directory_size);
    u32 found = 0;
    struct bitmap last = {0};
    enum bitmaps_fault fault = read_entries(image, set, &found, &last);
    if (fault != BITMAPS_SOUND) {
        bitmaps_refuse(fault, &last, 0);
    }
    check_tables(image);
    set->is_whole = true;
}

void bitmaps_read(struct qcow2 *image) { bitmaps_read_with_room(image, 0); }

struct looking { /* at a bitmap's table */
    const struct qcow2 *image;
    bool sound;
};

static bool look_at_entry(void *context, u64 index, u64 entry) {
    struct looking *looking = context;
    (void)index;
    const u64 offset = entry & ENTRY_OFFSET;
    looking->sound = bitmap_entry_is_sound(entry, looking->image->cluster_bits) && offset < looking->image->disk.size;
    return looking->sound;
}

/* Can the table be what the entry says? tables_left: clusters that tables may have. */
static enum bitmaps_fault judge_entry(const struct qcow2 *image, const struct bitmap *bitmap, u64 *tables_left) {
    const u64 bytes = 8ull * bitmap->table_entries;
    if (!has_fitting_table(image, bitmap)) {
        return BITMAPS_DATA;
    }
    if (bitmap->table_offset > image->disk.size || bytes > image->disk.size - bitmap->table_offset ||
        clusters_of(image, bytes) > *tables_left) {
        return BITMAPS_TABLE;
    }
    *tables_left -= clusters_of(image, bytes);
    return BITMAPS_SOUND;
}

static void add_fault(struct bitmaps_damage *damage, enum bitmaps_fault fault, const struct bitmap *bitmap) {
    if (damage->fault == BITMAPS_SOUND) {
        damage->fault = fault;
        damage->name = bitmap != NULL ? bitmap->name : NULL;
        damage->name_length = bitmap != NULL ? (u32)min64(bitmap->name_length, BITMAP_NAME_MAX) : 0;
    }
}

/* Goes from entry to entry; those that are no bitmaps are left out. Returns how many bitmaps come before the first
 * fault. */
static u32 walk(struct qcow2 *image, struct bitmap_set *set, struct bitmaps_damage *damage) {
    const u32 claimed = set->count;
    u64 tables_left = clusters_of(image, image->disk.size);
    u32 seen = 0;
    u32 before = 0;
    set->count = 0;
    for (u64 at = 0, length = 0; at < set->directory_size; at += length, seen++) {
        struct bitmap bitmap = {0};
        const u64 left = set->directory_size - at;
        if (seen == claimed) {
            add_fault(damage, BITMAPS_MORE, NULL);
            return before;
        }
        enum bitmaps_fault fault =
            left < BITMAP_ENTRY_FIXED ? BITMAPS_BROKEN : read_entry(image, set->directory + at, left, &bitmap, &length);
        if (fault == BITMAPS_BROKEN) {
            add_fault(damage, fault, NULL);
            damage->lost = true;
            return before;
        }
        fault = fault != BITMAPS_SOUND ? fault : judge_entry(image, &bitmap, &tables_left);
        if (fault != BITMAPS_SOUND) {
            add_fault(damage, fault, &bitmap);
        } else {
            set->bitmaps[set->count++] = bitmap;
            before += damage->fault == BITMAPS_SOUND;
        }
    }
    if (seen < claimed) {
        add_fault(damage, BITMAPS_LESS, NULL);
    }
    return before;
}

/* Leaves out the bitmaps whose tables are not what they must be, or name clusters outside the file. before: so many
 * come before the fault that is known. */
static void look_at_tables(struct qcow2 *image, struct bitmap_set *set, u32 before, struct bitmaps_damage *damage) {
    void *mark = heap_mark();
    struct bitmap_tables tables;
    struct bitmaps_damage found = {.fault = BITMAPS_SOUND};
    u32 kept = 0;
    bitmap_tables_open(&tables, &image->disk, set->bitmaps, set->count, 0);
    for (u32 i = 0; i < set->count; i++) {
        struct looking looking = {image, true};
        bitmap_tables_visit(&tables, i, look_at_entry, &looking);
        if (looking.sound) {
            set->bitmaps[kept++] = set->bitmaps[i]; /* what has been looked at is not needed in its place */
        } else {
            add_fault(i < before ? &found : damage, BITMAPS_TABLE, &set->bitmaps[i]);
        }
    }
    set->count = kept;
    if (found.fault != BITMAPS_SOUND) {
        found.lost = damage->lost;
        *damage = found;
    }
    heap_release(mark);
}

void bitmaps_read_sound(struct qcow2 *image, struct bitmaps_damage *damage) {
    struct bitmap_set *set = &image->bitmaps;
    *damage = (struct bitmaps_damage){.fault = image->bitmaps_fault, .value = image->bitmaps_fault_value};
    damage->lost = damage->fault != BITMAPS_SOUND;
    if (set->count > 0 && set->directory_size == 0) {
        add_fault(damage, BITMAPS_EMPTY_DIRECTORY, NULL);
        damage->lost = true;
    } else if (set->count > 0 && !inside_file(image, set)) {
        add_fault(damage, BITMAPS_OUTSIDE, NULL);
        damage->lost = true;
    } else if (set->count > 0) {
        set->bitmaps = heap_take(set->count * sizeof(struct bitmap));
        set->directory = heap_take(set->directory_size);
        disk_read(&image->disk, set->directory_offset, set->directory, set->directory_size);
        look_at_tables(image, set, walk(image, set, damage), damage);
    }
    if (damage->lost) {
        set->count = 0;
    }
}

void bitmaps_read_stale(struct qcow2 *image) {
    struct bitmap_set *set = &image->stale;
    u32 found = 0;
    if (set->directory_size <= BITMAP_DIRECTORY_BYTES_MAX && set->count <= BITMAPS_MAX &&
        offset_in_cluster(image, set->directory_offset) == 0 && inside_file(image, set)) {
        struct bitmap last;
        set->bitmaps = heap_take(set->count * sizeof(struct bitmap));
        set->directory = heap_take(set->directory_size);
        disk_read(&image->disk, set->directory_offset, set->directory, set->directory_size);
        set->is_whole = read_entries(image, set, &found, &last) == BITMAPS_SOUND;
    }
    set->count = found;
}

static u64 entry_position(const struct bitmap_set *set, u32 index) {
    return (u64)(set->bitmaps[index].name - set->directory) - BITMAP_ENTRY_FIXED;
}

void bitmaps_keep(struct bitmap_set *set, const bool *keeps) {
    u8 *to = set->directory;
    u32 kept = 0;
    for (u32 i = 0; i < set->count; i++) {
        struct bitmap bitmap = set->bitmaps[i];
        u64 size = bitmap_entry_size(bitmap.name_stored);
        if (keeps[i]) {
            memmove(to, set->directory + entry_position(set, i), size);
            bitmap.name = to + BITMAP_ENTRY_FIXED;
            set->bitmaps[kept++] = bitmap;
            to += size;
        }
    }
    set->count = kept;
    set->directory_size = (u64)(to - set->directory);
}

u32 bitmaps_remove(struct bitmap_set *set, const u8 *name, u64 length, struct bitmap *removed) {
    void *mark = heap_mark();
    bool *keeps = heap_take(set->count * sizeof(bool));
    u32 count = 0;
    for (u32 i = 0; i < set->count; i++) {
        keeps[i] = !is_named(&set->bitmaps[i], name, length);
        if (!keeps[i]) {
            removed[count++] = set->bitmaps[i];
        }
    }
    bitmaps_keep(set, keeps);
    heap_release(mark);
    return count;
}

void bitmaps_append(struct bitmap_set *set, const struct bitmap *bitmap) {
    u8 *entry = set->directory + set->directory_size;
    u64 length = bitmap_entry_size(bitmap->name_stored);
    memset(entry, 0, length);
    memcpy(entry + BITMAP_ENTRY_FIXED, bitmap->name, bitmap->name_stored);
    store_entry(bitmap, entry);
    set->directory_size += length;
    load_entry(&set->bitmaps[set->count], entry);
    measure_name(&set->bitmaps[set->count++]);
}

u64 bitmaps_store_entry(struct bitmap_set *set, u32 index) {
    u64 at = entry_position(set, index);
    store_entry(&set->bitmaps[index], set->directory + at);
    return at;
}
