/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "vmdk/header.h"

#include "vmdk/descriptor.h"

/* Where fields are in the first sector. */
#define AT_VERSION 4
#define AT_FLAGS 8
#define AT_CAPACITY 12
#define AT_GRAIN_SIZE 20
#define AT_DESCRIPTOR 28
#define AT_DESCRIPTOR_SIZE 36
#define AT_TABLE_ENTRIES 44
#define AT_REDUNDANT_DIRECTORY 48
#define AT_DIRECTORY 56
#define AT_DATA 64
#define AT_NEWLINES 73
#define AT_COMPRESSION 77

#define FLAG_NEWLINES 1u
#define FLAG_REDUNDANT 2u
#define FLAG_ZEROED_GRAINS 4u
#define FLAG_COMPRESSED 0x10000u
#define FLAG_MARKERS 0x20000u
#define DIRECTORY_AT_END UINT64_MAX
#define VERSION_MAX 3
#define VERSION_READ_ONLY 3 /* another program tracks changed blocks in it */

static bool starts_with(const u8 *bytes, const char *text) { return memcmp(bytes, text, 4) == 0; }

/* No header of this kind. What it is instead decides what is said of it. */
static _Noreturn void refuse_magic(struct vmdk *image, const u8 *sector) {
    if (starts_with(sector, "COWD")) {
        refuse(REFUSAL_VMDK_SUBFORMAT, .a = VMDK_COWD);
    }
    u8 *text = heap_take(DESCRIPTOR_MAX);
    disk_read(&image->disk, 0, text, DESCRIPTOR_MAX);
    descriptor_refuse_alone(text, DESCRIPTOR_MAX);
    refuse(REFUSAL_NOT_VMDK);
}

static _Noreturn void refuse_field(enum vmdk_fault fault, u64 value) {
    refuse(REFUSAL_VMDK_HEADER, .a = fault, .b = value);
}

static void check_subformat(const u8 *sector) {
    u32 flags = little32(sector + AT_FLAGS);
    if ((flags & (FLAG_COMPRESSED | FLAG_MARKERS)) != 0 || little16(sector + AT_COMPRESSION) != 0) {
        refuse(REFUSAL_VMDK_SUBFORMAT, .a = VMDK_COMPRESSED);
    }
    if (little64(sector + AT_DIRECTORY) == DIRECTORY_AT_END) {
        refuse(REFUSAL_VMDK_SUBFORMAT, .a = VMDK_DIRECTORY_AT_END);
    }
    if (little64(sector + AT_DESCRIPTOR) == 0) {
        refuse(REFUSAL_VMDK_SUBFORMAT, .a = VMDK_NO_DESCRIPTOR);
    }
    if ((flags & FLAG_NEWLINES) != 0 && !starts_with(sector + AT_NEWLINES, "\n \r\n")) {
        refuse_field(VMDK_NEWLINES, little32(sector + AT_NEWLINES));
    }
}

static void read_sizes(struct vmdk *image, const u8 *sector) {
    u64 capacity = little64(sector + AT_CAPACITY);
    u64 grain = little64(sector + AT_GRAIN_SIZE);
    image->table_entries = little32(sector + AT_TABLE_ENTRIES);
    if (capacity == 0 || capacity > INT64_MAX / SECTOR) {
        refuse_field(VMDK_CAPACITY, capacity);
    }
    if (grain == 0 || grain > GRAIN_SECTORS_MAX || (grain & (grain - 1)) != 0) {
        refuse_field(VMDK_GRAIN_SIZE, grain);
    }
    if (image->table_entries == 0 || image->table_entries > TABLE_ENTRIES_MAX) {
        refuse_field(VMDK_TABLE_ENTRIES, image->table_entries);
    }
    image->virtual_size = capacity * SECTOR;
    image->grain_size = grain * SECTOR;
    image->tables = divide_up(image->virtual_size, table_covers(image));
    if (image->tables > TABLES_MAX) {
        refuse_field(VMDK_TABLES, image->tables);
    }
}

/* A place in the header, in bytes. Refuses one that `length` bytes from there on are not all in the file. */
static u64 place(const struct vmdk *image, enum vmdk_fault fault, u64 sector, u64 length) {
    if (sector > image->disk.size / SECTOR || sector * SECTOR + length > image->disk.size) {
        refuse_field(fault, sector);
    }
    return sector * SECTOR;
}

static void read_places(struct vmdk *image, const u8 *sector) {
    u64 descriptor = little64(sector + AT_DESCRIPTOR);
    u64 sectors = little64(sector + AT_DESCRIPTOR_SIZE);
    if (descriptor != DESCRIPTOR_OFFSET / SECTOR) {
        refuse_field(VMDK_DESCRIPTOR_PLACE, descriptor);
    }
    if (sectors == 0 || sectors > DESCRIPTOR_MAX / SECTOR) {
        refuse_field(VMDK_DESCRIPTOR_SIZE, sectors);
    }
    image->descriptor_size = sectors * SECTOR;
    place(image, VMDK_DESCRIPTOR_SIZE, descriptor, image->descriptor_size);
    image->directory_offset = place(image, VMDK_DIRECTORY, little64(sector + AT_DIRECTORY), 4 * image->tables);
    if ((little32(sector + AT_FLAGS) & FLAG_REDUNDANT) != 0) {
        u64 redundant = little64(sector + AT_REDUNDANT_DIRECTORY);
        image->redundant_offset = place(image, VMDK_REDUNDANT_DIRECTORY, redundant, 4 * image->tables);
    }
    if (image->redundant_offset == image->directory_offset) { /* mkimg of FreeBSD: one directory, in both fields */
        image->redundant_offset = 0;
    }
    image->data_offset = place(image, VMDK_DATA, little64(sector + AT_DATA), 0);
}

void vmdk_open(struct vmdk *image, u32 index, bool writable) {
    const struct call_header *call = call_memory();
    u8 sector[SECTOR];
    *image = (struct vmdk){.disk = {.index = index, .size = call->disk_size[index]}};
    result_disk(index);
    disk_read(&image->disk, 0, sector, sizeof(sector));
    if (!starts_with(sector, "KDMV")) {
        refuse_magic(image, sector);
    }
    image->version = little32(sector + AT_VERSION);
    if (image->version == 0 || image->version > VERSION_MAX) {
        refuse(REFUSAL_VMDK_VERSION, .a = image->version);
    }
    check_subformat(sector);
    if (writable && image->version == VERSION_READ_ONLY) {
        refuse(REFUSAL_VMDK_READ_ONLY);
    }
    image->has_zeroed_grains = (little32(sector + AT_FLAGS) & FLAG_ZEROED_GRAINS) != 0;
    read_sizes(image, sector);
    read_places(image, sector);
    image->end = round_up(image->disk.size, image->grain_size);
    descriptor_read(image);
}
