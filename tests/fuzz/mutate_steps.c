/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Changes of an input of steps on one image: of a step, or of the image.
 */
#include <string.h>

#include "input.h"

size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t room, unsigned seed);

static void mutate_head(struct input *head, u64 *random) {
    struct input_step *step = &head->steps[random_below(random, STEPS)];
    switch (random_below(random, 6)) {
    case 0:
        step->operation = (u8)random_below(random, OPERATIONS);
        break;
    case 1:
        step->selector = (u8)random_below(random, 3);
        step->resize_allowed ^= (u8)random_below(random, 2);
        break;
    case 2:
        step->text_length = (u8)(1 + random_below(random, 2));
        step->text[0] = (u8)('1' + random_below(random, 4));
        break;
    case 3:
        step->text[random_below(random, sizeof(step->text))] = (u8)random_below(random, 256);
        step->text_length = (u8)random_below(random, 9);
        break;
    case 4:
        head->fail_at = (u16)random_below(random, 120);
        head->error = (u8)random_below(random, 2);
        break;
    default:
        head->fail_at = 0xffff;
        head->more = (u32)(random_below(random, 4) == 0 ? random_below(random, 1 << 17) : 0);
    }
}

size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t room, unsigned seed) {
    struct input head;
    u64 random = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
    if (size < sizeof(head) + 1024 || room < size) {
        return size;
    }
    memcpy(&head, data, sizeof(head));
    if (random_below(&random, 4) == 0) {
        mutate_head(&head, &random);
        memcpy(data, &head, sizeof(head));
        return size;
    }
    return sizeof(head) + mutate_image(data + sizeof(head), size - sizeof(head), room - sizeof(head), &random);
}
