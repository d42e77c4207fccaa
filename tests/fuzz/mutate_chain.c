/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Changes of an input of the fuzzer of chains: of what is asked, or of one of the images.
 */
#include <string.h>

#include "chain_input.h"

enum {
    PART_GROWTH = 16 << 10
};

size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t room, unsigned seed);

static void mutate_operation(struct chain_input *input, u64 *random) {
    switch (random_below(random, 8)) {
    case 0:
        input->operation = (u8)random_below(random, CHAIN_OPERATIONS);
        break;
    case 1:
        input->flags ^= (u8)(1u << random_below(random, 5));
        break;
    case 2:
        input->base = (u8)random_below(random, PARTS);
        input->old_count = (u8)random_below(random, PARTS);
        break;
    case 3:
        input->shared = (u8)random_below(random, PARTS);
        break;
    case 4:
        input->cluster_bits = (u8)random_below(random, 24);
        input->name_length = (u8)random_below(random, 256);
        input->size = random_below(random, 1ull << random_below(random, 60)) & ~random_below(random, 512);
        break;
    case 5:
        input->grown = (u8)random_below(random, PARTS);
        input->more = (u32)(random_below(random, 2) == 0 ? random_below(random, 1 << 12) : 0);
        break;
    case 6:
        input->parts[random_below(random, PARTS)].format = (u8)random_below(random, PART_FORMATS);
        break;
    default:
        input->fail_at = (u16)(random_below(random, 4) == 0 ? 0xffff : random_below(random, 200));
        input->error = (u8)random_below(random, 2);
    }
}

/* Each vmdk image records the content id of the one below it. */
static void settle_ids(const struct chain_input *input, u8 *data, u64 size) {
    u8 *recorded = NULL;
    for (u32 i = 0; i < PARTS; i++) {
        u64 length = min64(input->parts[i].length, size);
        u8 *id = input->parts[i].format == LAYER_VMDK ? vmdk_content_id(data, length, "\nCID=") : NULL;
        if (id != NULL && recorded != NULL) {
            memcpy(recorded, id, 8);
        }
        recorded = id != NULL ? vmdk_content_id(data, length, "\nparentCID=") : NULL;
        data += length;
        size -= length;
    }
}

/* Changes one part; returns the length of all. */
static u64 mutate_part(struct chain_input *input, u8 *data, u64 size, u64 room, u64 *random) {
    static u8 copy[INPUT_MAX + PART_GROWTH];
    u32 index = (u32)random_below(random, PARTS);
    u64 start = 0;
    for (u32 i = 0; i < index; i++) {
        start += min64(input->parts[i].length, size - start);
    }
    u64 length = min64(input->parts[index].length, size - start);
    u64 most = length + min64(PART_GROWTH, room - size);
    memcpy(copy, data + start, length);
    switch (input->parts[index].format) {
    case LAYER_QCOW2:
        most = mutate_image(copy, length, most, random);
        break;
    case LAYER_VMDK:
        most = mutate_vmdk(copy, length, most, random);
        break;
    default:
        most = length - min64(length, random_below(random, 2000));
    }
    memmove(data + start + most, data + start + length, size - start - length);
    memcpy(data + start, copy, most);
    input->parts[index].length = (u32)most;
    return size - length + most;
}

size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t room, unsigned seed) {
    struct chain_input input;
    u64 random = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
    if (size < sizeof(input) || room < size || size > INPUT_MAX) {
        return size;
    }
    memcpy(&input, data, sizeof(input));
    u64 left = size - sizeof(input);
    if (random_below(&random, 4) == 0) {
        mutate_operation(&input, &random);
    } else {
        left = mutate_part(&input, data + sizeof(input), left, room - sizeof(input), &random);
    }
    if (random_below(&random, 2) == 0) {
        settle_ids(&input, data + sizeof(input), left);
    }
    memcpy(data, &input, sizeof(input));
    return sizeof(input) + left;
}
