/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Where the bytes of a disk are, for a reader that goes through it upwards: grain tables are fetched many at a time.
 * The image need not have been verified; what it says is checked as far as it is followed.
 */
#ifndef AIRLOCK_VMDK_GRAINS_H
#define AIRLOCK_VMDK_GRAINS_H

#include "disk/extent.h"
#include "vmdk/format.h"

struct grains {
    struct vmdk *image;
    u64 first; /* grain table that is the window's first */
    u32 count;
    u32 room;
    u32 *directory; /* the entries of the window: sectors */
    u8 *tables;
    void (*leave)(void *context); /* called before the window is read anew; NULL: nobody cares */
    void *leave_context;
};

/* bytes: about as much memory as the window may take. */
void grains_open(struct grains *grains, struct vmdk *image, u64 bytes);

/* The extent that begins at `offset`, at most `length` bytes, at most to the end of its grain table. Zeros end with
 * their grain: get_cluster_offset() tells one at a time, and commits look at how long they are. */
struct extent grains_at(struct grains *grains, u64 offset, u64 length);

/* Makes the grain table `index` one of the window, and returns it; NULL: the image has none there. */
u8 *grains_need(struct grains *grains, u64 index);

/* Reads `count` entries of a grain directory, from `index` on. */
void directory_read(struct vmdk *image, u64 offset, u64 index, u32 count, u32 *entries);

/* Refuses an entry of the directory at `offset` whose table is not all in the file. */
void directory_check(const struct vmdk *image, u64 offset, u64 index, u32 entry);

#endif
