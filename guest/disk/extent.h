/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What an image of any format has at a place of its disk.
 */
#ifndef AIRLOCK_DISK_EXTENT_H
#define AIRLOCK_DISK_EXTENT_H

#include "disk/disk.h"

enum extent_kind {
    EXTENT_ABSENT, /* not in this image: ask the backing file */
    EXTENT_ZERO,
    EXTENT_DATA,      /* at `host` of `disk` */
    EXTENT_COMPRESSED /* in the cluster of `entry`; no longer than to its end */
};

/* A part of a disk that is of one kind, and in one piece where it is data. */
struct extent {
    enum extent_kind kind;
    u32 disk;
    u64 host;
    u64 length; /* bytes */
    u64 entry;
};

#endif
