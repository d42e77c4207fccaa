/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The bitmaps of an image whose disk is written to: those that record note it, and all grow with the disk. In
 * between they are marked as in use, so that a crash leaves none that claims to be complete.
 */
#ifndef AIRLOCK_BITMAPS_RECORDING_H
#define AIRLOCK_BITMAPS_RECORDING_H

#include "bitmaps/content.h"

struct recording {
    struct qcow2 *image;
    struct refcounts *refcounts;
    u32 chunk_bits; /* log2 of the bytes that a bit of `written` stands for */
    u64 bits;
    u64 *written; /* NULL: no bitmap records */
    u64 end;      /* bytes of the disk: behind all that was written */
    bool grows;
    bool active;
};

/* Before the first write to the disk, which will be `size` bytes large. The image must have been verified. */
void recording_start(struct recording *recording, struct qcow2 *image, struct refcounts *refcounts, u64 size,
                     u32 chunk_bits);

void recording_note(struct recording *recording, u64 offset, u64 length);

/* When everything else is on the disk. */
void recording_store(struct recording *recording);

#endif
