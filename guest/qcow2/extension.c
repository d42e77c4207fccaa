/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "qcow2/extension.h"

#include "qcow2/bitmaps.h"
#include "qcow2/header.h"
#include "qcow2/header_fields.h"

#define WHOLE (EXTENSION_HEAD + BITMAPS_EXTENSION_BYTES)

static bool in_one_sector(u64 at, u64 length) { return at / SECTOR == (at + length - 1) / SECTOR; }

static void write_and_flush(struct qcow2 *image, u64 at, const void *data, u64 length) {
    disk_write(&image->disk, at, data, length);
    disk_flush(&image->disk);
}

static void write_autoclear(struct qcow2 *image, u64 bits) {
    u8 field[8];
    image->autoclear = bits;
    store64(field, bits);
    write_and_flush(image, AT_AUTOCLEAR, field, sizeof(field));
}

void extension_clear_unknown(struct qcow2 *image) {
    if ((image->autoclear & ~AUTOCLEAR_KNOWN) != 0) {
        write_autoclear(image, image->autoclear & AUTOCLEAR_KNOWN);
    }
}

/* Where the backing file's name could go to make room, clear of where it is. */
static u64 new_place_of_name(const struct qcow2 *image) {
    return round_up(
        max64(image->extensions_end + WHOLE + EXTENSION_HEAD, image->backing_offset + image->backing_length), 8);
}

static void move_name(struct qcow2 *image, u64 to) {
    u8 field[8];
    write_and_flush(image, to, image->backing_name, image->backing_length);
    store64(field, to);
    write_and_flush(image, AT_BACKING_OFFSET, field, sizeof(field));
    image->backing_offset = to;
}

/* Puts an extension where the marker of the end stands, and a new marker behind it. Until the autoclear bit is
 * set nobody looks at what is in it. */
static void append(struct qcow2 *image, const u8 data[BITMAPS_EXTENSION_BYTES]) {
    u8 bytes[WHOLE + EXTENSION_HEAD] = {0};
    store32(bytes, EXTENSION_BITMAPS);
    store32(bytes + 4, BITMAPS_EXTENSION_BYTES);
    memcpy(bytes + EXTENSION_HEAD, data, BITMAPS_EXTENSION_BYTES);
    const u64 at = image->extensions_end;
    if (in_one_sector(at, sizeof(bytes))) {
        write_and_flush(image, at, bytes, sizeof(bytes));
    } else { /* the old marker last, so that the chain never runs into the unwritten */
        write_and_flush(image, at + EXTENSION_HEAD, bytes + EXTENSION_HEAD, sizeof(bytes) - EXTENSION_HEAD);
        write_and_flush(image, at, bytes, EXTENSION_HEAD);
    }
    image->bitmaps_extension = at + EXTENSION_HEAD;
    image->extensions_end = at + WHOLE;
    image->bitmaps_extensions = 1;
}

static void write_first(struct qcow2 *image, const u8 data[BITMAPS_EXTENSION_BYTES]) {
    if (image->bitmaps_extensions == 1) { /* a stale one: its place is free to use */
        write_and_flush(image, image->bitmaps_extension, data, BITMAPS_EXTENSION_BYTES);
    } else {
        if (image->extensions_end + WHOLE + EXTENSION_HEAD > header_extensions_limit(image)) {
            move_name(image, new_place_of_name(image));
        }
        append(image, data);
    }
    write_autoclear(image, image->autoclear | AUTOCLEAR_BITMAPS);
}

static void remove_extension(struct qcow2 *image) {
    if ((image->autoclear & AUTOCLEAR_BITMAPS) != 0) {
        write_autoclear(image, image->autoclear & ~AUTOCLEAR_BITMAPS);
    }
    u8 bytes[WHOLE] = {0};
    const u64 at = image->bitmaps_extension - EXTENSION_HEAD;
    if (at + WHOLE == image->extensions_end) {
        image->extensions_end = at;
    } else { /* others follow and stay where they are: a table of no feature names takes its place */
        store32(bytes, EXTENSION_FEATURE_NAMES);
        store32(bytes + 4, BITMAPS_EXTENSION_BYTES);
    }
    write_and_flush(image, at, bytes, WHOLE);
    image->bitmaps_extensions = 0;
}

/* Is there no place for the name but over its old one, does the extension that is to change lie in two sectors,
 * or is something odd? Then the whole header is written anew. */
static bool rewrites(const struct qcow2 *image) {
    bool changes = image->bitmaps.count > 0 && image->bitmaps_extensions == 1;
    bool torn = changes && !in_one_sector(image->bitmaps_extension, BITMAPS_EXTENSION_BYTES);
    bool adds = image->bitmaps.count > 0 && image->bitmaps_extensions == 0;
    bool full = adds && image->extensions_end + WHOLE + EXTENSION_HEAD > header_extensions_limit(image) &&
                new_place_of_name(image) + image->backing_length > image->cluster_size;
    return image->bitmaps_extensions > 1 || torn || full || image->bitmaps_fault == BITMAPS_LENGTH;
}

void extension_check_room(struct qcow2 *image, u32 count) {
    const u32 now = image->bitmaps.count;
    image->bitmaps.count = count;
    if (rewrites(image)) {
        header_check_room(image, REFUSAL_BITMAP_HEADER_FULL);
    }
    image->bitmaps.count = now;
}

void extension_write(struct qcow2 *image) {
    u8 data[BITMAPS_EXTENSION_BYTES];
    bitmaps_store_extension(&image->bitmaps, data);
    bool were_valid = (image->autoclear & AUTOCLEAR_BITMAPS) != 0 && image->bitmaps_extensions > 0;
    if (rewrites(image)) {
        image->autoclear &= ~AUTOCLEAR_BITMAPS;
        image->autoclear |= image->bitmaps.count > 0 ? AUTOCLEAR_BITMAPS : 0;
        header_rewrite(image);
    } else if (image->bitmaps.count == 0) {
        remove_extension(image);
    } else if (were_valid) {
        write_and_flush(image, image->bitmaps_extension, data, sizeof(data));
    } else {
        write_first(image, data);
    }
}
