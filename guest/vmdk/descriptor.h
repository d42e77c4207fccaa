/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The descriptor: lines of text, which QEMU searches for words and others read line by line. Where the two would
 * not find the same it is refused.
 */
#ifndef AIRLOCK_VMDK_DESCRIPTOR_H
#define AIRLOCK_VMDK_DESCRIPTOR_H

#include "vmdk/format.h"

/* Reads it, of `image->descriptor_size` bytes, into `image`: content ids, the parent's name. Refuses all but a
 * monolithicSparse disk in one piece, of the header's size, in this very file. */
void descriptor_read(struct vmdk *image);

/* Refuses a text that is a descriptor by itself, with the first file that it names; returns if it is none. */
void descriptor_refuse_alone(const u8 *bytes, u64 size);

/* Gives a content id another value; its digits stay as many. At once, behind a flush and before one. */
void content_id_write(struct vmdk *image, struct content_id *id, u32 value);

/* The nearest value that this id has digits for. */
u32 content_id_fit(const struct content_id *id, u32 value);

#endif
