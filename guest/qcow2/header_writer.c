/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Writing the header: the first cluster anew, or single fields of it.
 */
#include "qcow2/bitmaps.h"
#include "qcow2/header.h"
#include "qcow2/header_fields.h"

#define HEADER_BYTES 112 /* as qemu writes it */

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
        refuse(writer->when_full);
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

static u64 unknown_fields_of(const struct qcow2 *image) {
    return image->header_length > HEADER_BYTES ? image->header_length - HEADER_BYTES : 0;
}

/* The end of the header's own fields, where the extensions begin. */
static u64 end_of_fields(const struct qcow2 *image) {
    return (image->version >= 3 ? HEADER_BYTES : 72) + unknown_fields_of(image);
}

/* A table of feature names, which nobody reads in an image whose features are known, up to `end`. */
static void add_gap(struct header_writer *writer, u64 end) {
    const u64 start = writer->used;
    u8 *at = header_add(writer, end - start);
    store32(at, EXTENSION_FEATURE_NAMES);
    store32(at + 4, (u32)(end - start - EXTENSION_HEAD));
}

/* The first cluster as qcow2_update_header() lays it out. gap_end: 0, or where what follows the fields is to stand. */
static struct header_writer compose(struct qcow2 *image, enum refusal when_full, u64 gap_end) {
    const u64 unknown_fields = unknown_fields_of(image);
    struct header_writer writer = {
        .start = heap_take_zeroed(image->cluster_size), .size = image->cluster_size, .when_full = when_full};
    header_load(image, image->cluster_size);
    u64 known = image->version >= 3 ? HEADER_BYTES : 72;
    u8 *header = header_add(&writer, end_of_fields(image));
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
    if (gap_end != 0) {
        add_gap(&writer, gap_end);
    }
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

static void write_part(struct qcow2 *image, const struct header_writer *composed, u64 start, u64 end) {
    disk_write(&image->disk, start, composed->start + start, end - start);
    disk_flush(&image->disk);
}

/* The end of what the header on the disk refers to. now: its cluster. */
static u64 end_in_use(const struct qcow2 *image, const u8 *now) {
    const u64 name = load64(now + AT_BACKING_OFFSET);
    return max64(image->extensions_end + EXTENSION_HEAD, name != 0 ? name + load32(now + AT_BACKING_LENGTH) : 0);
}

/* Is there more than one sector in which the header is to change? */
static bool spans_sectors(const struct qcow2 *image, const u8 *now, const struct header_writer *composed) {
    u64 sectors = 0;
    for (u64 at = 0; at < image->cluster_size; at += SECTOR) {
        sectors += memcmp(now + at, composed->start + at, SECTOR) != 0;
    }
    return sectors > 1;
}

/* Through an intermediate header whose extensions and name lie after everything that the old and the new one use: each
 * step is one sector, or nothing that the header of that moment refers to. */
static bool take_detour(struct qcow2 *image, const struct header_writer *composed, u64 in_use) {
    const u64 fields = end_of_fields(image);
    const u64 gap_end = fields + round_up(round_up(max64(in_use, composed->used), SECTOR) - fields, 8);
    const u64 length = composed->used - fields;
    if (fields + EXTENSION_HEAD > SECTOR || gap_end + length > image->cluster_size) {
        return false;
    }
    const struct header_writer detour = compose(image, composed->when_full, gap_end);
    write_part(image, &detour, gap_end, gap_end + length);
    write_part(image, &detour, 0, SECTOR);
    write_part(image, composed, SECTOR, gap_end);
    write_part(image, composed, 0, SECTOR);
    write_part(image, composed, gap_end, image->cluster_size);
    return true;
}

/* In the place of the header that is there, so that a crash leaves one or the other where that can be done. */
static void put_in_place(struct qcow2 *image, const struct header_writer *composed) {
    u8 *now = heap_take(image->cluster_size);
    disk_read(&image->disk, 0, now, image->cluster_size);
    const bool switches = load32(now) == QCOW2_MAGIC && spans_sectors(image, now, composed);
    const u64 in_use = switches ? end_in_use(image, now) : 0;
    if (switches && in_use <= SECTOR) {
        write_part(image, composed, SECTOR, image->cluster_size);
        write_part(image, composed, 0, SECTOR);
    } else if (switches && composed->used <= SECTOR) {
        write_part(image, composed, 0, SECTOR);
        write_part(image, composed, SECTOR, image->cluster_size);
    } else if (!switches || !take_detour(image, composed, in_use)) {
        write_part(image, composed, 0, image->cluster_size);
    }
}

void header_rewrite(struct qcow2 *image) {
    void *mark = heap_mark();
    const struct header_writer composed = compose(image, REFUSAL_EXTENSION_LARGE, 0);
    put_in_place(image, &composed);
    image->autoclear &= AUTOCLEAR_KNOWN;
    image->bitmaps_extensions = composed.bitmaps != 0;
    image->bitmaps_extension = composed.bitmaps;
    image->extensions_end = composed.extensions;
    image->backing_offset = composed.backing;
    heap_release(mark);
}

void header_check_room(struct qcow2 *image, enum refusal when_full) {
    void *mark = heap_mark();
    compose(image, when_full, 0);
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
