/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What images are and show, asked of the guest's own code, which only reads here.
 */
#ifndef AIRLOCK_FUZZ_CHAIN_IMAGES_H
#define AIRLOCK_FUZZ_CHAIN_IMAGES_H

#include "host.h"
#include "start/guest.h"

enum {
    SHOWN_MAX = 2 << 20 /* bytes that are looked at of a disk */
};

/* What a disk shows at its beginning. */
struct shown {
    u64 size;   /* bytes of the disk; UINT64_MAX: it cannot be read */
    u64 length; /* of them, in bytes */
    u8 bytes[SHOWN_MAX];
};

/* What the first of these layers shows. */
void look(struct host *host, const struct chain_layer *layers, u32 count, struct shown *shown);

/* The verification before a change. grows: it will get data; leaked: clusters; alike: a vmdk image's tables and their
 * copies say the same. */
enum refusal verify_layer(struct host *host, const struct chain_layer *layer, bool grows, u64 *leaked, bool *alike);

#endif
