/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Writing to the disk of an image, upwards, as vmdk_pwritev() would: a grain that there is is written in place, a new
 * one goes to the end of the file. Tables are changed in the window of the image's grains, and go to the file in
 * groups, behind the data that they name.
 */
#ifndef AIRLOCK_VMDK_WRITER_H
#define AIRLOCK_VMDK_WRITER_H

#include "vmdk/grains.h"

/* Puts `length` bytes of the disk, from `offset` on, at `host` of the file; it may queue that. */
typedef void vmdk_fill(void *context, u64 offset, u64 length, struct disk *to, u64 host);

struct vmdk_writer {
    struct grains *grains;
    vmdk_fill *keep; /* gives what the image shows now, for the rest of a new grain */
    void *context;   /* of keep */
    bool *dirty;     /* tables of the window */
    u64 waiting;     /* bytes of new grains that no table on the disk names yet */
    bool written;
};

void vmdk_writer_open(struct vmdk_writer *writer, struct grains *grains, vmdk_fill *keep, void *context);

/* fill: gives the new bytes. */
void vmdk_write(struct vmdk_writer *writer, u64 offset, u64 length, vmdk_fill *fill, void *context);

/* Makes whole grains read as zeros; what they had is lost. False: this image has no such grains, zeros have to be
 * written. */
bool vmdk_zero(struct vmdk_writer *writer, u64 offset, u64 length);

/* Everything is on the disk. */
void vmdk_writer_close(struct vmdk_writer *writer);

#endif
