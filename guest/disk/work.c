/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 */
#include "disk/work.h"

#include "disk/disk.h"

#define STEPS 1024 /* of a part that is larger than its room */

static void tell(struct work *work, u64 done) {
    work->done = max64(work->done, min64(done, work->total));
    disk_progress(work->done, work->total);
}

void work_expect(struct work *work, struct work_kinds times, u64 bytes) {
    *work = (struct work){.tells = true, .times = times, .bytes = bytes};
}

void work_verify(struct work *work, u64 bytes, const struct work_kinds *kinds) {
    const struct work_kinds *times = &work->times;
    if (!work->tells) {
        return;
    }
    if (work->total == 0) {
        work->total = bytes + work->bytes + times->tables * kinds->tables + times->others * kinds->others +
                      times->blocks * kinds->blocks;
        work->room = bytes;
    }
    work->takes = bytes;
    work->gone = 0;
}

void work_change(struct work *work, u64 bytes) {
    if (work->total == 0) {
        return;
    }
    work->start += work->room;
    work->room = min64(work->total - work->start, bytes);
    work->total = work->start + work->room;
    work->takes = bytes;
    work->gone = 0;
    tell(work, work->start);
}

void work_done(struct work *work, u64 bytes) {
    if (work->total == 0) {
        return;
    }
    work->gone = min64(work->gone + bytes, work->takes);
    u64 part = work->takes <= work->room ? work->gone : work->gone / (work->takes / STEPS + 1) * (work->room / STEPS);
    if (work->start + part > work->done) {
        tell(work, work->start + part);
    }
}

void work_end(struct work *work) {
    if (work->total != 0) {
        tell(work, work->total);
    }
}
