/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * From an input of the fuzzer of chains to disks, layers and calls.
 */
#ifndef AIRLOCK_FUZZ_CHAIN_CALLS_H
#define AIRLOCK_FUZZ_CHAIN_CALLS_H

#include "chain_input.h"
#include "host.h"

enum {
    CHAIN_DISKS = PARTS + 1, /* the last one is the data file of an image that has none among the parts */
    DISK_MAX = INPUT_MAX + 32 * 1024 * 1024
};

/* layers: the first `count` are the chain, those behind them the new backing files of a rebase. */
struct chain_state {
    struct host *host;
    struct chain_input input;
    struct chain_layer layers[2 * PARTS];
    u32 count;
    u32 new_count;
    u32 base; /* of a commit */
};

extern struct chain_state chain;

/* Takes an input. False: it is none. In any case calls_close() comes before the next. */
bool calls_open(const u8 *data, u64 size);
void calls_close(void);

/* The call of the input, and the disks that it may write to. */
void calls_write(bool dry);

bool has_flag(u32 flag);

/* Bytes of the backing file's name that the call records. */
u32 name_length(void);

#endif
