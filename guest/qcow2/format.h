/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The qcow2 format as docs/interop/qcow2.txt of QEMU has it: limits, entries of the tables, and the
 * image that an operation works on.
 */
#ifndef AIRLOCK_QCOW2_FORMAT_H
#define AIRLOCK_QCOW2_FORMAT_H

#include "disk/disk.h"
#include "disk/work.h"
#include "start/guest.h"

#define QCOW2_MAGIC 0x514649fbu

#define INCOMPATIBLE_DIRTY (1ull << 0)
#define INCOMPATIBLE_CORRUPT (1ull << 1)
#define INCOMPATIBLE_DATA_FILE (1ull << 2)
#define INCOMPATIBLE_COMPRESSION (1ull << 3)
#define INCOMPATIBLE_EXTENDED_L2 (1ull << 4)
#define INCOMPATIBLE_KNOWN 0x1full
#define COMPATIBLE_LAZY_REFCOUNTS (1ull << 0)
#define AUTOCLEAR_BITMAPS (1ull << 0)
#define AUTOCLEAR_RAW_DATA (1ull << 1)
#define AUTOCLEAR_KNOWN 0x3ull

/* Entries of the L1 and L2 tables and of the refcount table. */
#define ENTRY_COPIED (1ull << 63)
#define ENTRY_COMPRESSED (1ull << 62)
#define ENTRY_ZERO (1ull << 0)
#define ENTRY_OFFSET 0x00fffffffffffe00ull
#define L1_RESERVED 0x7f000000000001ffull
#define L2_RESERVED 0x3f000000000001feull
#define REFCOUNT_TABLE_RESERVED 0x1ffull

#define DEFLATE_WINDOW_BITS 12 /* of a compressed cluster: raw deflate, as qemu writes it */

/* Limits of QEMU (block/qcow2.h). */
#define L1_BYTES_MAX (32 * MIB)
#define REFCOUNT_TABLE_BYTES_MAX (8 * MIB)
#define SNAPSHOT_TABLE_BYTES_MAX (64 * MIB)
#define SNAPSHOT_EXTRA_MAX 1024
#define BITMAP_DIRECTORY_BYTES_MAX 67107840ull
#define HOST_OFFSET_MAX ((1ull << 56) - 1)

struct snapshot {
    u64 l1_offset;
    u64 vm_state_size;
    u64 vm_clock;
    u64 disk_size;
    u64 icount;
    u32 l1_entries;
    u32 date_seconds;
    u32 date_nanoseconds;
    u32 extra_size;          /* bytes, as found in the table */
    const u8 *unknown_extra; /* extra_size - 24 bytes behind the known ones, if there are so many */
    const u8 *id;
    const u8 *name;
    u16 id_length; /* both end before the first NUL, as qemu has them in memory */
    u16 name_length;
};

#define BITMAP_FLAG_IN_USE 1u
#define BITMAP_FLAG_AUTO 2u

struct bitmap {
    u64 table_offset;
    u32 table_entries;
    u32 flags;
    u32 granularity_bits;
    u32 name_length; /* ends before the first NUL, as qemu has it in memory */
    u32 name_stored; /* bytes of it in the directory */
    const u8 *name;
};

/* The bitmaps that a header extension names. */
struct bitmap_set {
    u32 count;
    u64 directory_offset;
    u64 directory_size; /* bytes */
    u8 *directory;      /* NULL: not read yet */
    bool is_whole;      /* it was read, and makes sense to its end */
    struct bitmap *bitmaps;
};

struct extension { /* of the header, unknown to us: kept when the header is rewritten */
    u32 type;
    u32 length;
    const u8 *data;
};

struct qcow2 {
    struct disk disk;
    u32 version;
    u32 cluster_bits;
    u64 cluster_size;
    u64 virtual_size; /* bytes, rounded down to 512 as qemu does */
    u32 encryption;
    u32 compression_type;
    u64 incompatible;
    u64 compatible;
    u64 autoclear;
    u32 refcount_order;
    u32 header_length;

    u64 l1_offset;
    u32 l1_entries;
    u64 *l1;       /* host byte order; qcow2_load_l1() */
    bool detached; /* the header names another L1 table for now, and its size: it is not to be written */

    u64 refcount_table_offset;
    u32 refcount_table_clusters;

    u64 snapshots_offset;
    u64 snapshots_size; /* bytes */
    u32 snapshot_count;
    struct snapshot *snapshots;

    u64 backing_offset; /* of the name in the header; 0: there is no backing file */
    u32 backing_length;
    const u8 *backing_name;
    const u8 *backing_format;
    u32 backing_format_length;
    const u8 *data_file;
    u32 data_file_length;
    u64 crypto_offset; /* LUKS header; length 0: none */
    u64 crypto_length;
    u32 bitmaps_extensions; /* how many there are: more than one is odd, the last counts */
    u64 bitmaps_extension;  /* where its data begins */
    struct bitmap_set bitmaps;
    u64 *orphans; /* a verification sets a bit for each cluster that is counted once, and that nothing refers to; or
                     NULL */
    enum bitmaps_fault bitmaps_fault; /* of the extension: what it says of bitmaps is not to be used */
    u64 bitmaps_fault_value;
    struct bitmap_set stale; /* instead of them: a program without bitmap support has written since */
    struct work work;        /* how far a change of the image has come */
    u64 extensions_end;      /* where the marker stands that ends the extensions */

    u8 *header; /* the first cluster, header_loaded bytes of it */
    u64 header_loaded;
    struct extension *unknown_extensions; /* in the order found */
    u32 unknown_extension_count;
};

static inline bool has_extended_l2(const struct qcow2 *image) {
    return (image->incompatible & INCOMPATIBLE_EXTENDED_L2) != 0;
}

static inline bool has_data_file(const struct qcow2 *image) {
    return (image->incompatible & INCOMPATIBLE_DATA_FILE) != 0;
}

static inline u32 l2_entry_size(const struct qcow2 *image) { return has_extended_l2(image) ? 16 : 8; }

static inline u64 l2_entries(const struct qcow2 *image) { return image->cluster_size / l2_entry_size(image); }

static inline u64 clusters_of(const struct qcow2 *image, u64 bytes) { return divide_up(bytes, image->cluster_size); }

static inline u64 offset_in_cluster(const struct qcow2 *image, u64 offset) {
    return offset & (image->cluster_size - 1);
}

/* Entries of the L1 table that a disk of `size` bytes needs. */
static inline u64 l1_entries_for(const struct qcow2 *image, u64 size) {
    u64 covered = image->cluster_size * l2_entries(image);
    return divide_up(size, covered);
}

enum cluster_type {
    CLUSTER_UNALLOCATED,
    CLUSTER_ZERO_PLAIN,
    CLUSTER_NORMAL,
    CLUSTER_ZERO_ALLOCATED,
    CLUSTER_COMPRESSED
};

static inline enum cluster_type cluster_type(const struct qcow2 *image, u64 entry) {
    if ((entry & ENTRY_COMPRESSED) != 0) {
        return CLUSTER_COMPRESSED;
    }
    bool zero = (entry & ENTRY_ZERO) != 0 && !has_extended_l2(image);
    if ((entry & ENTRY_OFFSET) != 0) {
        return zero ? CLUSTER_ZERO_ALLOCATED : CLUSTER_NORMAL;
    }
    return zero ? CLUSTER_ZERO_PLAIN : CLUSTER_UNALLOCATED;
}

/* The bytes of the file that a compressed cluster takes: whole sectors but for the first. */
static inline void compressed_range(const struct qcow2 *image, u64 entry, u64 *offset, u64 *length) {
    u32 shift = 62 - (image->cluster_bits - 8);
    u64 sectors = ((entry >> shift) & ((1ull << (image->cluster_bits - 8)) - 1)) + 1;
    *offset = entry & ((1ull << shift) - 1);
    *length = sectors * 512 - (*offset & 511);
}

/* The last byte of a file that the L2 entry of a compressed cluster has bits for. */
static inline u64 compressed_offset_max(const struct qcow2 *image) {
    return (1ull << (62 - (image->cluster_bits - 8))) - 1;
}

/* The L2 entry of a compressed cluster, `length` bytes at an offset of the file. */
static inline u64 compressed_entry(const struct qcow2 *image, u64 offset, u64 length) {
    u32 shift = 62 - (image->cluster_bits - 8);
    u64 more_sectors = (offset + length - 1) / 512 - offset / 512;
    return ENTRY_COMPRESSED | more_sectors << shift | offset;
}

#endif
