/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A hosted sparse extent with its descriptor in it: the subformat monolithicSparse, the only one of VMDK that is one
 * file. Numbers are little-endian, places are sectors. A grain is what a cluster is elsewhere; the grain directory
 * names grain tables, and there are two of both, of which readers take the one that is not called redundant.
 * Source: "Virtual Disk Format 5.0" of VMware; block/vmdk.c of QEMU, vmdk_open_vmdk4().
 */
#ifndef AIRLOCK_VMDK_FORMAT_H
#define AIRLOCK_VMDK_FORMAT_H

#include "disk/disk.h"

#define DESCRIPTOR_OFFSET SECTOR /* where QEMU looks for it, whatever the header says */
#define DESCRIPTOR_MAX (VMDK_DESCRIPTOR_SECTORS_MAX * SECTOR)
#define GRAIN_SECTORS_MAX ((1ull << VMDK_GRAIN_BITS_MAX) / SECTOR)
#define TABLE_ENTRIES_MAX 512ull      /* of a grain table */
#define TABLES_MAX (32 * MIB)         /* grain tables */
#define FILE_SECTORS_MAX (1ull << 32) /* an entry has 32 bits */
#define ENTRY_NO_GRAIN 0u             /* entries of a grain table: what the parent has */
#define ENTRY_ZEROED 1u               /* zeros, in an image with zeroed grains */

/* A content id in the descriptor: it changes when the disk does, and an overlay records its parent's. */
struct content_id {
    u32 value;
    u32 digits;
    u64 offset; /* of the digits in the file */
};

struct vmdk {
    struct disk disk;
    u32 version;
    bool has_zeroed_grains;
    u64 virtual_size;     /* bytes */
    u64 grain_size;       /* bytes, a power of two */
    u64 table_entries;    /* of one grain table */
    u64 tables;           /* entries of the grain directory */
    u64 directory_offset; /* bytes in the file */
    u64 redundant_offset; /* of the redundant grain directory; 0: there is none */
    u64 descriptor_size;  /* bytes */
    u64 data_offset;      /* bytes: metadata lies before it, grains behind */
    u64 end;              /* bytes: behind all grains, and a multiple of the grain size: where the next new one goes */
    struct content_id id;
    struct content_id parent_id;
    const u8 *backing_name; /* not terminated; NULL: none */
    u32 backing_length;
};

static inline u64 table_bytes(const struct vmdk *image) { return 4 * image->table_entries; }

/* Bytes of the disk that one grain table is about. */
static inline u64 table_covers(const struct vmdk *image) { return image->grain_size * image->table_entries; }

/* Little-endian fields at any alignment: the order of both sides. */
static inline u16 little16(const void *at) {
    u16 value;
    __builtin_memcpy(&value, at, sizeof(value));
    return value;
}

static inline u32 little32(const void *at) {
    u32 value;
    __builtin_memcpy(&value, at, sizeof(value));
    return value;
}

static inline u64 little64(const void *at) {
    u64 value;
    __builtin_memcpy(&value, at, sizeof(value));
    return value;
}

static inline void put_little32(void *at, u32 value) { __builtin_memcpy(at, &value, sizeof(value)); }

#endif
