/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/header.h"

#include "qcow2/bitmaps.h"
#include "qcow2/header_fields.h"
#include "qcow2/snapshots.h"

#define FIRST_READ (64 * KIB)

void header_load(struct qcow2 *image, u64 length) {
    if (length > image->header_loaded) {
        disk_read(&image->disk, 0, image->header, image->cluster_size);
        image->header_loaded = image->cluster_size;
    }
}

static void check_table(const struct qcow2 *image, u64 offset, u64 entries, u64 entry_size, u64 bytes_max,
                        enum refusal too_large, enum refusal bad_offset) {
    if (entries > bytes_max / entry_size) {
        refuse(too_large);
    }
    if (offset > INT64_MAX - entries * entry_size || offset_in_cluster(image, offset) != 0) {
        refuse(bad_offset);
    }
}

static void read_version(struct qcow2 *image) {
    const u8 *header = image->header;
    image->version = load32(header + AT_VERSION);
    if (load32(header) != QCOW2_MAGIC) {
        refuse(REFUSAL_NOT_QCOW2);
    }
    if (image->version != 2 && image->version != 3) {
        refuse(REFUSAL_VERSION, .a = image->version);
    }
    image->cluster_bits = load32(header + AT_CLUSTER_BITS);
    if (image->cluster_bits < 9 || image->cluster_bits > 21) {
        refuse(REFUSAL_CLUSTER_SIZE, .a = image->cluster_bits);
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
            refuse(REFUSAL_HEADER_SHORT, .a = image->header_length);
        }
    }
    if (image->header_length > image->cluster_size) {
        refuse(REFUSAL_HEADER_LONG, .a = image->header_length);
    }
    image->backing_offset = load64(header + AT_BACKING_OFFSET);
    if (image->backing_offset > image->cluster_size) {
        refuse(REFUSAL_BACKING_OFFSET);
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
    refuse(REFUSAL_INCOMPATIBLE_FEATURES, .text = text, .length = used, .a = unknown,
           .b = image->incompatible & ~INCOMPATIBLE_KNOWN);
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
    header_load(image, min64(*at + 8, image->cluster_size));
    if (*at + 8 > end) {
        refuse(REFUSAL_EXTENSION_LARGE);
    }
    found->type = load32(image->header + *at);
    found->length = load32(image->header + *at + 4);
    *at += 8;
    if (found->length > end - *at) {
        refuse(REFUSAL_EXTENSION_LARGE);
    }
    header_load(image, *at + found->length);
    found->data = image->header + *at;
    *at += round_up(found->length, 8);
    return found->type != EXTENSION_END;
}

static void check_features(struct qcow2 *image) {
    bool bit = (image->incompatible & INCOMPATIBLE_COMPRESSION) != 0;
    image->compression_type = image->header_length > AT_COMPRESSION_TYPE ? image->header[AT_COMPRESSION_TYPE] : 0;
    if (image->compression_type > 1) {
        refuse(REFUSAL_COMPRESSION_TYPE, .a = image->compression_type);
    }
    if (image->compression_type == 0 && bit) {
        refuse(REFUSAL_COMPRESSION_BIT_SET);
    }
    if (image->compression_type == 1 && !bit) {
        refuse(REFUSAL_COMPRESSION_BIT_CLEAR);
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
        refuse(REFUSAL_EXTENDED_L2_CLUSTER, .a = image->cluster_bits);
    }
    if (image->refcount_order > 6) {
        refuse(REFUSAL_REFCOUNT_WIDTH, .a = image->refcount_order);
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
        refuse(REFUSAL_ENCRYPTION_METHOD, .a = image->encryption);
    }
    if (image->refcount_table_clusters == 0) {
        refuse(REFUSAL_NO_REFCOUNT_TABLE);
    }
    check_table(image, image->refcount_table_offset, image->refcount_table_clusters, image->cluster_size,
                REFCOUNT_TABLE_BYTES_MAX, REFUSAL_REFCOUNT_TABLE_LARGE, REFUSAL_REFCOUNT_TABLE_OFFSET);
    check_table(image, image->snapshots_offset, image->snapshot_count, 40, 40ull * SNAPSHOTS_MAX,
                REFUSAL_SNAPSHOT_TABLE_LARGE, REFUSAL_SNAPSHOT_TABLE_OFFSET);
    check_table(image, image->l1_offset, image->l1_entries, 8, L1_BYTES_MAX, REFUSAL_L1_LARGE, REFUSAL_L1_OFFSET);
    if (image->virtual_size > INT64_MAX || l1_entries_for(image, image->virtual_size) > INT32_MAX) {
        refuse(REFUSAL_VIRTUAL_SIZE, .a = image->virtual_size);
    }
    if (image->l1_entries < l1_entries_for(image, image->virtual_size)) {
        refuse(REFUSAL_L1_SMALL);
    }
}

static void read_crypto(struct qcow2 *image, const struct extension *extension) {
    if (image->encryption != 2 || extension->length != 16) {
        refuse(REFUSAL_NO_CRYPTO_HEADER);
    }
    image->crypto_offset = load64(extension->data);
    image->crypto_length = load64(extension->data + 8);
    if (offset_in_cluster(image, image->crypto_offset) != 0 || image->crypto_length == 0) {
        refuse(REFUSAL_NO_CRYPTO_HEADER);
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
                refuse(REFUSAL_EXTENSION_LARGE);
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
        refuse(REFUSAL_DATA_FILE_MISSING);
    }
    if (!has_data_file(image) && (image->autoclear & AUTOCLEAR_RAW_DATA) != 0) {
        refuse(REFUSAL_RAW_WITHOUT_DATA_FILE);
    }
    if (image->encryption == 2 && image->crypto_length == 0) {
        refuse(REFUSAL_NO_CRYPTO_HEADER);
    }
}

static void read_backing_name(struct qcow2 *image) {
    if (image->backing_offset == 0) {
        return;
    }
    image->backing_length = load32(image->header + AT_BACKING_LENGTH);
    if (image->backing_length > min64(BACKING_NAME_MAX, image->cluster_size - image->backing_offset)) {
        refuse(REFUSAL_BACKING_NAME_LONG);
    }
    header_load(image, image->backing_offset + image->backing_length);
    image->backing_name = image->header + image->backing_offset;
}

static void open_image(struct qcow2 *image, u32 disk, bool writing) {
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
        heap_extend(first, FIRST_READ, image->cluster_size - FIRST_READ);
    } else {
        image->header_loaded = image->cluster_size;
    }
    if (image->header_length > image->header_loaded) {
        header_load(image, image->header_length);
    }
    check_features(image);
    if (writing && (image->incompatible & INCOMPATIBLE_CORRUPT) != 0) {
        refuse(REFUSAL_CORRUPT);
    }
    read_tables(image);
    read_extensions(image);
    read_backing_name(image);
    snapshots_read(image);
    if (writing && (image->incompatible & INCOMPATIBLE_DIRTY) != 0) {
        refuse(REFUSAL_DIRTY);
    }
}

void qcow2_open(struct qcow2 *image, u32 disk, bool writing) {
    open_image(image, disk, writing);
    if (writing) {
        bitmaps_refuse_fault(image);
    }
}

void qcow2_open_damaged(struct qcow2 *image, u32 disk) { open_image(image, disk, true); }

void qcow2_forget_header(struct qcow2 *image) {
    image->header = NULL;
    image->header_loaded = 0;
    image->backing_name = image->backing_format = image->data_file = NULL;
    image->unknown_extensions = NULL;
    image->snapshots = NULL;
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
