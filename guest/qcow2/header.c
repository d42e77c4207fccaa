/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/header.h"

#include "qcow2/bitmaps.h"
#include "qcow2/header_fields.h"
#include "qcow2/snapshots.h"

#define HEADER_BYTES 112 /* as qemu writes it */
#define FIRST_READ (64 * KIB)

#define FEATURE_NAME_BYTES 48

/* Makes the first `length` bytes of the first cluster available. */
static void load_header(struct qcow2 *image, u64 length) {
    if (length > image->header_loaded) {
        disk_read(&image->disk, 0, image->header, image->cluster_size);
        image->header_loaded = image->cluster_size;
    }
}

static void check_table(const struct qcow2 *image, u64 offset, u64 entries, u64 entry_size, u64 bytes_max,
                        enum refusal too_large, enum refusal bad_offset) {
    if (entries > bytes_max / entry_size) {
        refuse_plain(too_large);
    }
    if (offset > INT64_MAX - entries * entry_size || offset_in_cluster(image, offset) != 0) {
        refuse_plain(bad_offset);
    }
}

static void read_version(struct qcow2 *image) {
    const u8 *header = image->header;
    image->version = load32(header + AT_VERSION);
    if (load32(header) != QCOW2_MAGIC) {
        refuse_plain(REFUSAL_NOT_QCOW2);
    }
    if (image->version != 2 && image->version != 3) {
        refuse(REFUSAL_VERSION, image->version, 0, 0, 0, 0, 0);
    }
    image->cluster_bits = load32(header + AT_CLUSTER_BITS);
    if (image->cluster_bits < 9 || image->cluster_bits > 21) {
        refuse(REFUSAL_CLUSTER_SIZE, image->cluster_bits, 0, 0, 0, 0, 0);
    }
    image->cluster_size = 1ull << image->cluster_bits;
    image->refcount_order = 4;
    image->header_length = 72;
    if (image->version == 3) {
        image->incompatible = load64(header + AT_INCOMPATIBLE);
        image->compatible = load64(header + AT_COMPATIBLE);
        image->autoclear = load64(header + AT_AUTOCLEAR);
        image->refcount_order = load32(header + AT_REFCOUNT_ORDER);
        image->header_length = load32(header + AT_HEADER_LENGTH);
        if (image->header_length < 104) {
            refuse(REFUSAL_HEADER_SHORT, image->header_length, 0, 0, 0, 0, 0);
        }
    }
    if (image->header_length > image->cluster_size) {
        refuse(REFUSAL_HEADER_LONG, image->header_length, 0, 0, 0, 0, 0);
    }
    image->backing_offset = load64(header + AT_BACKING_OFFSET);
    if (image->backing_offset > image->cluster_size) {
        refuse_plain(REFUSAL_BACKING_OFFSET);
    }
}

/* Names the unknown bits out of the image's own table of feature names, where it has one. */
static _Noreturn void refuse_features(struct qcow2 *image, u64 unknown, const u8 *names, u64 length) {
    u8 text[MESSAGE_TEXT_MAX];
    u64 used = 0;
    for (u64 at = 0; at + FEATURE_NAME_BYTES <= length; at += FEATURE_NAME_BYTES) {
        const u8 *name = names + at;
        if (name[0] != 0 || name[1] > 63 || (unknown & (1ull << name[1])) == 0) {
            continue;
        }
        unknown &= ~(1ull << name[1]);
        if (used + FEATURE_NAME_BYTES >= sizeof(text)) {
            break;
        }
        if (used > 0) {
            text[used++] = ',';
            text[used++] = ' ';
        }
        for (u32 i = 2; i < FEATURE_NAME_BYTES && name[i] != 0; i++) {
            text[used++] = name[i];
        }
    }
    refuse_text(REFUSAL_INCOMPATIBLE_FEATURES, text, used, unknown, image->incompatible & ~INCOMPATIBLE_KNOWN);
}

u64 header_extensions_limit(const struct qcow2 *image) {
    return image->backing_offset != 0 ? image->backing_offset : image->cluster_size;
}

/* The next extension at *at, or false at the end. Bounded by the cluster that they live in. */
static bool next_extension(struct qcow2 *image, u64 *at, struct extension *found) {
    u64 end = header_extensions_limit(image);
    image->extensions_end = *at;
    if (*at >= end) {
        return false;
    }
    load_header(image, min64(*at + 8, image->cluster_size));
    if (*at + 8 > end) {
        refuse_plain(REFUSAL_EXTENSION_LARGE);
    }
    found->type = load32(image->header + *at);
    found->length = load32(image->header + *at + 4);
    *at += 8;
    if (found->length > end - *at) {
        refuse_plain(REFUSAL_EXTENSION_LARGE);
    }
    load_header(image, *at + found->length);
    found->data = image->header + *at;
    *at += round_up(found->length, 8);
    return found->type != EXTENSION_END;
}

static void check_features(struct qcow2 *image) {
    bool bit = (image->incompatible & INCOMPATIBLE_COMPRESSION) != 0;
    image->compression_type = image->header_length > AT_COMPRESSION_TYPE ? image->header[AT_COMPRESSION_TYPE] : 0;
    if (image->compression_type > 1) {
        refuse(REFUSAL_COMPRESSION_TYPE, image->compression_type, 0, 0, 0, 0, 0);
    }
    if (image->compression_type == 0 && bit) {
        refuse_plain(REFUSAL_COMPRESSION_BIT_SET);
    }
    if (image->compression_type == 1 && !bit) {
        refuse_plain(REFUSAL_COMPRESSION_BIT_CLEAR);
    }
    u64 unknown = image->incompatible & ~INCOMPATIBLE_KNOWN;
    if (unknown != 0) {
        struct extension extension;
        for (u64 at = image->header_length; next_extension(image, &at, &extension);) {
            if (extension.type == (u32)EXTENSION_FEATURE_NAMES) {
                refuse_features(image, unknown, extension.data, extension.length);
            }
        }
        refuse_features(image, unknown, NULL, 0);
    }
    if (has_extended_l2(image) && image->cluster_bits < 14) {
        refuse(REFUSAL_EXTENDED_L2_CLUSTER, image->cluster_bits, 0, 0, 0, 0, 0);
    }
    if (image->refcount_order > 6) {
        refuse(REFUSAL_REFCOUNT_WIDTH, image->refcount_order, 0, 0, 0, 0, 0);
    }
}

static void read_tables(struct qcow2 *image) {
    const u8 *header = image->header;
    image->encryption = load32(header + AT_ENCRYPTION);
    image->virtual_size = load64(header + AT_SIZE) & ~511ull;
    image->refcount_table_offset = load64(header + AT_REFCOUNT_TABLE_OFFSET);
    image->refcount_table_clusters = load32(header + AT_REFCOUNT_TABLE_CLUSTERS);
    image->snapshot_count = load32(header + AT_SNAPSHOT_COUNT);
    image->snapshots_offset = load64(header + AT_SNAPSHOTS_OFFSET);
    image->l1_entries = load32(header + AT_L1_ENTRIES);
    image->l1_offset = load64(header + AT_L1_OFFSET);
    if (image->encryption > 2) {
        refuse(REFUSAL_ENCRYPTION_METHOD, image->encryption, 0, 0, 0, 0, 0);
    }
    if (image->refcount_table_clusters == 0) {
        refuse_plain(REFUSAL_NO_REFCOUNT_TABLE);
    }
    check_table(image, image->refcount_table_offset, image->refcount_table_clusters, image->cluster_size,
                REFCOUNT_TABLE_BYTES_MAX, REFUSAL_REFCOUNT_TABLE_LARGE, REFUSAL_REFCOUNT_TABLE_OFFSET);
    check_table(image, image->snapshots_offset, image->snapshot_count, 40, 40ull * SNAPSHOTS_MAX,
                REFUSAL_SNAPSHOT_TABLE_LARGE, REFUSAL_SNAPSHOT_TABLE_OFFSET);
    check_table(image, image->l1_offset, image->l1_entries, 8, L1_BYTES_MAX, REFUSAL_L1_LARGE, REFUSAL_L1_OFFSET);
    if (image->virtual_size > INT64_MAX || l1_entries_for(image, image->virtual_size) > INT32_MAX) {
        refuse(REFUSAL_VIRTUAL_SIZE, image->virtual_size, 0, 0, 0, 0, 0);
    }
    if (image->l1_entries < l1_entries_for(image, image->virtual_size)) {
        refuse_plain(REFUSAL_L1_SMALL);
    }
}

static void read_crypto(struct qcow2 *image, const struct extension *extension) {
    if (image->encryption != 2 || extension->length != 16) {
        refuse_plain(REFUSAL_NO_CRYPTO_HEADER);
    }
    image->crypto_offset = load64(extension->data);
    image->crypto_length = load64(extension->data + 8);
    if (offset_in_cluster(image, image->crypto_offset) != 0 || image->crypto_length == 0) {
        refuse_plain(REFUSAL_NO_CRYPTO_HEADER);
    }
}

static void read_extensions(struct qcow2 *image) {
    struct extension extension;
    u64 room = (header_extensions_limit(image) - min64(image->header_length, header_extensions_limit(image))) / 8;
    image->unknown_extensions = heap_take(min64(room, image->cluster_size) * sizeof(struct extension));
    for (u64 at = image->header_length; next_extension(image, &at, &extension);) {
        switch (extension.type) {
        case (u32)EXTENSION_BACKING_FORMAT:
            if (extension.length > 15) {
                refuse_plain(REFUSAL_EXTENSION_LARGE);
            }
            image->backing_format = extension.data;
            image->backing_format_length = extension.length;
            break;
        case EXTENSION_FEATURE_NAMES:
            break;
        case EXTENSION_CRYPTO:
            read_crypto(image, &extension);
            break;
        case EXTENSION_BITMAPS:
            bitmaps_read_extension(image, (u64)(extension.data - image->header), extension.length);
            break;
        case EXTENSION_DATA_FILE:
            image->data_file = extension.data;
            image->data_file_length = extension.length;
            break;
        default:
            image->unknown_extensions[image->unknown_extension_count++] = extension;
        }
    }
    if (has_data_file(image) && image->data_file == NULL) {
        refuse_plain(REFUSAL_DATA_FILE_MISSING);
    }
    if (!has_data_file(image) && (image->autoclear & AUTOCLEAR_RAW_DATA) != 0) {
        refuse_plain(REFUSAL_RAW_WITHOUT_DATA_FILE);
    }
    if (image->encryption == 2 && image->crypto_length == 0) {
        refuse_plain(REFUSAL_NO_CRYPTO_HEADER);
    }
}

static void read_backing_name(struct qcow2 *image) {
    if (image->backing_offset == 0) {
        return;
    }
    image->backing_length = load32(image->header + AT_BACKING_LENGTH);
    if (image->backing_length > min64(BACKING_NAME_MAX, image->cluster_size - image->backing_offset)) {
        refuse_plain(REFUSAL_BACKING_NAME_LONG);
    }
    load_header(image, image->backing_offset + image->backing_length);
    image->backing_name = image->header + image->backing_offset;
}

void qcow2_open(struct qcow2 *image, u32 disk, bool writing) {
    const struct call_header *call = call_memory();
    memset(image, 0, sizeof(*image));
    result_disk(disk);
    image->disk = (struct disk){.index = disk, .size = call->disk_size[disk]};
    u8 *first = heap_take(FIRST_READ);
    disk_read(&image->disk, 0, first, FIRST_READ);
    image->header = first;
    image->header_loaded = FIRST_READ;
    read_version(image);
    if (image->cluster_size > FIRST_READ) {
        heap_take(image->cluster_size - FIRST_READ); /* follows what was taken: the heap is a row */
    } else {
        image->header_loaded = image->cluster_size;
    }
    if (image->header_length > image->header_loaded) {
        load_header(image, image->header_length);
    }
    check_features(image);
    if (writing && (image->incompatible & INCOMPATIBLE_CORRUPT) != 0) {
        refuse_plain(REFUSAL_CORRUPT);
    }
    read_tables(image);
    read_extensions(image);
    read_backing_name(image);
    snapshots_read(image);
    if (writing && (image->incompatible & INCOMPATIBLE_DIRTY) != 0) {
        refuse_plain(REFUSAL_DIRTY);
    }
}

void qcow2_load_l1(struct qcow2 *image) {
    u64 bytes = 8ull * image->l1_entries;
    image->l1 = heap_take(bytes);
    disk_read(&image->disk, image->l1_offset, image->l1, bytes);
    for (u32 i = 0; i < image->l1_entries; i++) {
        image->l1[i] = swap64(image->l1[i]);
    }
}

bool header_needs_update(const struct qcow2 *image) {
    bool stale = image->bitmaps_extensions > 0 && (image->autoclear & AUTOCLEAR_BITMAPS) == 0;
    return stale || (image->autoclear & ~AUTOCLEAR_KNOWN) != 0;
}

static const struct {
    u8 type;
    u8 bit;
    const char *name;
} feature_names[] = {
    {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
    {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},          {2, 1, "raw external data"},
};

struct header_writer {
    u8 *start;
    u64 used;
    u64 size;
    enum refusal when_full;
    u64 bitmaps;    /* where the data of their extension begins; 0: there is none */
    u64 extensions; /* where they end */
    u64 backing;    /* where the backing file's name begins */
};

static u8 *header_add(struct header_writer *writer, u64 length) {
    if (length > writer->size - writer->used) {
        refuse_plain(writer->when_full);
    }
    u8 *at = writer->start + writer->used;
    writer->used += length;
    return at;
}

static void extension_add(struct header_writer *writer, u32 type, const void *data, u32 length) {
    u8 *at = header_add(writer, 8 + round_up(length, 8));
    store32(at, type);
    store32(at + 4, length);
    memcpy(at + 8, data, length);
}

static void add_feature_names(struct header_writer *writer) {
    u8 names[sizeof(feature_names) / sizeof(feature_names[0]) * FEATURE_NAME_BYTES] = {0};
    for (u64 i = 0; i < sizeof(names) / FEATURE_NAME_BYTES; i++) {
        u8 *at = names + i * FEATURE_NAME_BYTES;
        *at++ = feature_names[i].type;
        *at++ = feature_names[i].bit;
        for (const char *name = feature_names[i].name; *name != 0; name++) {
            *at++ = (u8)*name;
        }
    }
    extension_add(writer, EXTENSION_FEATURE_NAMES, names, sizeof(names));
}

static void add_extensions(struct qcow2 *image, struct header_writer *writer) {
    if (image->backing_format != NULL) {
        extension_add(writer, (u32)EXTENSION_BACKING_FORMAT, image->backing_format, image->backing_format_length);
    }
    if (has_data_file(image)) {
        extension_add(writer, EXTENSION_DATA_FILE, image->data_file, image->data_file_length);
    }
    if (image->crypto_length != 0) {
        u8 crypto[16];
        store64(crypto, image->crypto_offset);
        store64(crypto + 8, image->crypto_length);
        extension_add(writer, EXTENSION_CRYPTO, crypto, sizeof(crypto));
    }
    if (image->version >= 3 && image->cluster_size > 4096) {
        add_feature_names(writer);
    }
    if (image->bitmaps.count > 0) {
        u8 bitmaps[BITMAPS_EXTENSION_BYTES];
        bitmaps_store_extension(&image->bitmaps, bitmaps);
        extension_add(writer, EXTENSION_BITMAPS, bitmaps, sizeof(bitmaps));
        writer->bitmaps = writer->used - sizeof(bitmaps);
    }
    for (u32 i = image->unknown_extension_count; i-- > 0;) { /* qemu's list gives them back in reverse */
        const struct extension *unknown = &image->unknown_extensions[i];
        extension_add(writer, unknown->type, unknown->data, unknown->length);
    }
    writer->extensions = writer->used;
    header_add(writer, 8); /* the end marker */
}

/* What may have moved since the header was read. */
static void store_tables(const struct qcow2 *image, u8 *header) {
    store32(header + AT_L1_ENTRIES, image->l1_entries);
    store64(header + AT_L1_OFFSET, image->l1_offset);
    store64(header + AT_REFCOUNT_TABLE_OFFSET, image->refcount_table_offset);
    store32(header + AT_REFCOUNT_TABLE_CLUSTERS, image->refcount_table_clusters);
}

/* The first cluster as qcow2_update_header() lays it out. */
static struct header_writer compose(struct qcow2 *image, enum refusal when_full) {
    u64 unknown_fields = image->header_length > HEADER_BYTES ? image->header_length - HEADER_BYTES : 0;
    struct header_writer writer = {
        .start = heap_take_zeroed(image->cluster_size), .size = image->cluster_size, .when_full = when_full};
    load_header(image, image->cluster_size);
    u64 known = image->version >= 3 ? HEADER_BYTES : 72;
    u8 *header = header_add(&writer, known + unknown_fields);
    memcpy(header, image->header, 72);
    store_tables(image, header);
    if (image->version >= 3) {
        memcpy(header + 72, image->header + 72, AT_COMPRESSION_TYPE - 72);
        store64(header + AT_INCOMPATIBLE, image->incompatible);
        header[AT_COMPRESSION_TYPE] = (u8)image->compression_type;
        memcpy(header + known, image->header + HEADER_BYTES, unknown_fields);
        store64(header + AT_AUTOCLEAR, image->autoclear & AUTOCLEAR_KNOWN);
        store32(header + AT_HEADER_LENGTH, (u32)(HEADER_BYTES + unknown_fields));
    }
    store64(header + AT_SIZE, image->virtual_size);
    add_extensions(image, &writer);
    store64(header + AT_BACKING_OFFSET, 0);
    store32(header + AT_BACKING_LENGTH, 0);
    if (image->backing_offset != 0) {
        writer.backing = writer.used;
        store64(header + AT_BACKING_OFFSET, writer.used);
        store32(header + AT_BACKING_LENGTH, image->backing_length);
        memcpy(header_add(&writer, image->backing_length), image->backing_name, image->backing_length);
    }
    return writer;
}

void header_begin(struct qcow2 *image, u32 disk, u32 cluster_bits) {
    const struct call_header *call = call_memory();
    *image = (struct qcow2){.disk = {.index = disk, .size = call->disk_size[disk]},
                            .version = 3,
                            .cluster_bits = cluster_bits,
                            .cluster_size = 1ull << cluster_bits,
                            .refcount_order = 4,
                            .header_length = HEADER_BYTES};
    image->header = heap_take_zeroed(image->cluster_size);
    image->header_loaded = image->cluster_size;
    store32(image->header, QCOW2_MAGIC);
    store32(image->header + AT_VERSION, image->version);
    store32(image->header + AT_CLUSTER_BITS, cluster_bits);
    store32(image->header + AT_REFCOUNT_ORDER, image->refcount_order);
}

void header_rewrite(struct qcow2 *image) {
    void *mark = heap_mark();
    const struct header_writer composed = compose(image, REFUSAL_EXTENSION_LARGE);
    disk_write(&image->disk, 0, composed.start, image->cluster_size);
    disk_flush(&image->disk);
    image->autoclear &= AUTOCLEAR_KNOWN;
    image->bitmaps_extensions = composed.bitmaps != 0;
    image->bitmaps_extension = composed.bitmaps;
    image->extensions_end = composed.extensions;
    image->backing_offset = composed.backing;
    heap_release(mark);
}

void header_check_room(struct qcow2 *image, enum refusal when_full) {
    void *mark = heap_mark();
    compose(image, when_full);
    heap_release(mark);
}

void header_write_snapshots(struct qcow2 *image) {
    u8 field[12];
    store32(field, image->snapshot_count);
    store64(field + 4, image->snapshots_offset);
    disk_write(&image->disk, AT_SNAPSHOT_COUNT, field, sizeof(field));
}

void header_write_l1(struct qcow2 *image) {
    u8 field[12];
    store32(field, image->l1_entries);
    store64(field + 4, image->l1_offset);
    disk_write(&image->disk, AT_L1_ENTRIES, field, sizeof(field));
}

void header_write_refcount_table(struct qcow2 *image) {
    u8 field[12];
    store64(field, image->refcount_table_offset);
    store32(field + 8, image->refcount_table_clusters);
    disk_write(&image->disk, AT_REFCOUNT_TABLE_OFFSET, field, sizeof(field));
}

void header_write_size(struct qcow2 *image) {
    u8 field[8];
    store64(field, image->virtual_size);
    disk_write(&image->disk, AT_SIZE, field, sizeof(field));
}

void header_write_features(struct qcow2 *image) {
    u8 field[8];
    store64(field, image->incompatible);
    disk_write(&image->disk, AT_INCOMPATIBLE, field, sizeof(field));
    disk_flush(&image->disk);
}

void header_write_tables(struct qcow2 *image) {
    u8 fields[20];
    store64(fields, image->l1_offset);
    store64(fields + 8, image->refcount_table_offset);
    store32(fields + 16, image->refcount_table_clusters);
    disk_write(&image->disk, AT_L1_OFFSET, fields, sizeof(fields));
    disk_flush(&image->disk);
}

void header_switch_mapping(struct qcow2 *image, u64 size, u32 l1_entries, u64 l1_offset) {
    u8 fields[AT_REFCOUNT_TABLE_OFFSET - AT_SIZE];
    store64(fields, size);
    store32(fields + (AT_ENCRYPTION - AT_SIZE), image->encryption);
    store32(fields + (AT_L1_ENTRIES - AT_SIZE), l1_entries);
    store64(fields + (AT_L1_OFFSET - AT_SIZE), l1_offset);
    disk_write(&image->disk, AT_SIZE, fields, sizeof(fields));
    disk_flush(&image->disk);
}
