/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A fuzzer's input: this head, then the bytes of an image.
 */
#ifndef AIRLOCK_FUZZ_INPUT_H
#define AIRLOCK_FUZZ_INPUT_H

#include "start/guest.h"

enum {
    STEPS = 3,
    OPERATIONS = CALL_BITMAP_CHANGE, /* and those before it */
    INPUT_MAX = 1 << 20,
    HEAD_BYTES = 64
};

struct input_step {
    u8 operation; /* modulo OPERATIONS, plus 1: enum call_operation */
    u8 selector;  /* modulo 3, plus 1: enum selector_kind; a change of bitmaps is a dry run with the last of them */
    u8 resize_allowed;
    u8 text_length;
    u8 text[8]; /* id, name; of bitmaps: which one, then an action in each byte */
};

struct input {
    struct input_step steps[STEPS];
    u16 fail_at; /* a request of the first step; 0xffff: none */
    u8 error;
    u8 reserved;
    u32 more; /* zeros behind the image, in 512 bytes */
    u8 padding[HEAD_BYTES - STEPS * sizeof(struct input_step) - 8];
};

/* Changes an image in place as somebody would who knows the format; returns its new length. */
u64 mutate_image(u8 *image, u64 length, u64 room, u64 *random);

u64 random_below(u64 *random, u64 below);

#endif
