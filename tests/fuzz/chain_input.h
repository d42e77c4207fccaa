/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * An input of the fuzzer of chains: this head, then the bytes of all parts one behind the other.
 */
#ifndef AIRLOCK_FUZZ_CHAIN_INPUT_H
#define AIRLOCK_FUZZ_CHAIN_INPUT_H

#include "input.h"

enum {
    PARTS = 6,
    PART_DATA = 0, /* the external data file of the part before; others: enum layer_format */
    PART_FORMATS = 4
};

enum chain_operation {
    CHAIN_COMMIT,
    CHAIN_REBASE,
    CHAIN_COMPRESS, /* a rebase that does */
    CHAIN_RELINK,
    CHAIN_EMPTY,
    CHAIN_OVERLAY, /* a new image; of the parts nothing is looked at */
    CHAIN_FACTS,
    CHAIN_OPERATIONS
};

enum chain_flags {
    CHAIN_MAY_RESIZE = 1,
    CHAIN_EMPTIES = 2, /* the top of a commit */
    CHAIN_RECORDS_ID = 4,
    CHAIN_BACKED = 8, /* names of a backing file are recorded */
    CHAIN_NO_FORMAT = 16
};

struct chain_part {
    u32 length;
    u8 format; /* modulo PART_FORMATS */
    u8 reserved[3];
};

struct chain_input {
    u8 operation; /* modulo CHAIN_OPERATIONS */
    u8 flags;     /* enum chain_flags */
    u8 base;      /* of a commit: index of the layer */
    u8 old_count; /* of a rebase: layers that are there; the others are the new backing files */
    u8 shared;    /* of a rebase: the new backing file is this layer; 0: it is not one of them */
    u8 cluster_bits;
    u8 name_length;
    u8 error;
    u16 fail_at; /* a request; 0xffff: none */
    u8 grown;    /* part that gets zeros at its end */
    u8 reserved;
    u32 more; /* of them, in 512 bytes */
    u64 size; /* of a new image */
    struct chain_part parts[PARTS];
};

/* Changes a vmdk image in place as mutate_image() does one of qcow2; returns its new length. */
u64 mutate_vmdk(u8 *image, u64 length, u64 room, u64 *random);

/* The content id behind "\nKEY=", eight digits of it; NULL: there is none. */
u8 *vmdk_content_id(u8 *image, u64 length, const char *key);

#endif
