/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A fuzzer for compilers that have none: changes seeds at random, and again the same for the same number.
 * driver FIRST COUNT SEED-FILE...
 */
#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "input.h"

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t room, unsigned seed);
void harness_summary(void);

static unsigned long number;
static u8 data[INPUT_MAX];

static void say_number(void) { fprintf(stderr, "FUZZ: input number %lu\n", number); }

struct seed {
    u8 *data;
    u64 size;
};

static struct seed load(const char *path) {
    FILE *file = fopen(path, "rb");
    struct seed seed = {malloc(INPUT_MAX), 0};
    if (file == NULL || seed.data == NULL) {
        perror(path);
        exit(2);
    }
    seed.size = fread(seed.data, 1, INPUT_MAX, file);
    (void)fclose(file);
    return seed;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        return 2;
    }
    char *end;
    unsigned long first = strtoul(argv[1], &end, 10);
    unsigned long count = strtoul(argv[2], &end, 10);
    u64 seed_count = (u64)argc - 3;
    struct seed *seeds = calloc(seed_count, sizeof(*seeds));
    if (seeds == NULL) {
        return 2;
    }
    for (u64 i = 0; i < seed_count; i++) {
        seeds[i] = load(argv[i + 3]);
    }
    __sanitizer_set_death_callback(say_number);
    for (number = first; number < first + count; number++) {
        u64 random = number * 0x9e3779b97f4a7c15ull + 1;
        const struct seed *seed = &seeds[random_below(&random, seed_count)];
        memcpy(data, seed->data, seed->size);
        u64 size = seed->size;
        for (u64 times = random_below(&random, 5); times > 0; times--) {
            size = LLVMFuzzerCustomMutator(data, size, INPUT_MAX, (unsigned)random_below(&random, UINT32_MAX));
        }
        LLVMFuzzerTestOneInput(data, size);
    }
    harness_summary();
    printf("%lu inputs\n", count);
    for (u64 i = 0; i < seed_count; i++) {
        free(seeds[i].data);
    }
    free(seeds);
    return 0;
}
