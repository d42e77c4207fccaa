/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * How far a change has come, in bytes of the tables and bitmaps that it goes over, the verification before it included.
 * What is told never goes back, never above the total, and the total never grows: what turns out to be more than was
 * expected counts less, and a verification that has to begin again holds still until it is where it was.
 */
#ifndef AIRLOCK_DISK_WORK_H
#define AIRLOCK_DISK_WORK_H

#include "start/guest.h"

/* Bytes that may be gone over more than once: all L2 tables of the active mapping, as many others as a snapshot can
 * have of its own, and all refcount blocks. */
struct work_kinds {
    u64 tables;
    u64 others;
    u64 blocks;
};

struct work {
    u64 total; /* bytes; 0: nothing is told */
    u64 done;
    u64 start; /* of the part that is under way: where it begins, */
    u64 room;  /* how much of the total it is, */
    u64 takes; /* how much there is to go over in it, */
    u64 gone;  /* and how much of that is done */

    bool tells;
    struct work_kinds times; /* what the change is expected to go over behind the verification, as of work_expect() */
    u64 bytes;
};

/* Says, before the verification, what about comes behind it: how many times each kind is gone over, and how many bytes
 * else. Without this call nothing is told. */
void work_expect(struct work *work, struct work_kinds times, u64 bytes);

/* The verification begins, or begins again. bytes: that it goes over. */
void work_verify(struct work *work, u64 bytes, const struct work_kinds *kinds);

/* The verification is over, the change begins. bytes: that it goes over, as far as can be known now. */
void work_change(struct work *work, u64 bytes);

/* So many bytes more were gone over. */
void work_done(struct work *work, u64 bytes);

/* All is done: goes with the next request. */
void work_end(struct work *work);

#endif
