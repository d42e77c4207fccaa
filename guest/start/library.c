/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the linked libraries want of a C library. Callers release the memory with heap_release(). And what of them stays
 * out of the guests, for it takes a third of each, and is never used.
 */
#include "start/guest.h"

void *malloc(size_t size);
void *calloc(size_t count, size_t size);
void free(void *memory);
_Noreturn void __stack_chk_fail(void); // NOLINT(bugprone-reserved-identifier): the compiler's name

void *malloc(size_t size) { return heap_take(size); }

void *calloc(size_t count, size_t size) {
    size_t bytes;
    return heap_take_zeroed(__builtin_mul_overflow(count, size, &bytes) ? SIZE_MAX : bytes);
}

void free(void *memory) { (void)memory; }

_Noreturn void __stack_chk_fail(void) { // NOLINT(bugprone-reserved-identifier)
    __builtin_trap();
}

/* Weak, so that they stand for the library's own, and a library that has other parts than this one links as well. */
#define NEVER_CALLED(name)                                                                                             \
    _Noreturn __attribute__((weak)) void name(void);                                                                   \
    _Noreturn void name(void) { __builtin_trap(); }
#define NO_DECODER(version)                                                                                            \
    __attribute__((weak)) void *ZBUFFv0##version##_createDCtx(void);                                                   \
    void *ZBUFFv0##version##_createDCtx(void) { return NULL; }                                                         \
    NEVER_CALLED(ZBUFFv0##version##_decompressContinue)                                                                \
    NEVER_CALLED(ZBUFFv0##version##_decompressInitDictionary)                                                          \
    NEVER_CALLED(ZBUFFv0##version##_freeDCtx)                                                                          \
    NEVER_CALLED(ZSTDv0##version##_createDCtx)                                                                         \
    NEVER_CALLED(ZSTDv0##version##_decompress_usingDict)                                                               \
    NEVER_CALLED(ZSTDv0##version##_findFrameSizeInfoLegacy)                                                            \
    NEVER_CALLED(ZSTDv0##version##_freeDCtx)                                                                           \
    NEVER_CALLED(ZSTDv0##version##_getFrameParams)

/* zstd's formats of before 1.0, from which no qcow2 image is. Without a decoder a stream of theirs is damaged data. */
NO_DECODER(5)
NO_DECODER(6)
NO_DECODER(7)

/* Strategies of other levels than the one that compressor.c takes, QEMU's, and dictionaries. */
NEVER_CALLED(ZSTD_compressBlock_btlazy2)
NEVER_CALLED(ZSTD_compressBlock_btlazy2_dictMatchState)
NEVER_CALLED(ZSTD_compressBlock_btlazy2_extDict)
NEVER_CALLED(ZSTD_compressBlock_greedy)
NEVER_CALLED(ZSTD_compressBlock_greedy_dedicatedDictSearch)
NEVER_CALLED(ZSTD_compressBlock_greedy_dedicatedDictSearch_row)
NEVER_CALLED(ZSTD_compressBlock_greedy_dictMatchState)
NEVER_CALLED(ZSTD_compressBlock_greedy_dictMatchState_row)
NEVER_CALLED(ZSTD_compressBlock_greedy_extDict)
NEVER_CALLED(ZSTD_compressBlock_greedy_extDict_row)
NEVER_CALLED(ZSTD_compressBlock_greedy_row)
NEVER_CALLED(ZSTD_compressBlock_lazy)
NEVER_CALLED(ZSTD_compressBlock_lazy2)
NEVER_CALLED(ZSTD_compressBlock_lazy2_dedicatedDictSearch)
NEVER_CALLED(ZSTD_compressBlock_lazy2_dedicatedDictSearch_row)
NEVER_CALLED(ZSTD_compressBlock_lazy2_dictMatchState)
NEVER_CALLED(ZSTD_compressBlock_lazy2_dictMatchState_row)
NEVER_CALLED(ZSTD_compressBlock_lazy2_extDict)
NEVER_CALLED(ZSTD_compressBlock_lazy2_extDict_row)
NEVER_CALLED(ZSTD_compressBlock_lazy2_row)
NEVER_CALLED(ZSTD_compressBlock_lazy_dedicatedDictSearch)
NEVER_CALLED(ZSTD_compressBlock_lazy_dedicatedDictSearch_row)
NEVER_CALLED(ZSTD_compressBlock_lazy_dictMatchState)
NEVER_CALLED(ZSTD_compressBlock_lazy_dictMatchState_row)
NEVER_CALLED(ZSTD_compressBlock_lazy_extDict)
NEVER_CALLED(ZSTD_compressBlock_lazy_extDict_row)
NEVER_CALLED(ZSTD_compressBlock_lazy_row)
NEVER_CALLED(ZSTD_dedicatedDictSearch_lazy_loadDictionary)
NEVER_CALLED(ZSTD_insertAndFindFirstIndex)
NEVER_CALLED(ZSTD_row_update)
NEVER_CALLED(ZSTD_compressBlock_btopt)
NEVER_CALLED(ZSTD_compressBlock_btopt_dictMatchState)
NEVER_CALLED(ZSTD_compressBlock_btopt_extDict)
NEVER_CALLED(ZSTD_compressBlock_btultra)
NEVER_CALLED(ZSTD_compressBlock_btultra2)
NEVER_CALLED(ZSTD_compressBlock_btultra_dictMatchState)
NEVER_CALLED(ZSTD_compressBlock_btultra_extDict)
NEVER_CALLED(ZSTD_updateTree)
NEVER_CALLED(ZSTD_compressSuperBlock)
NEVER_CALLED(ZSTD_compressBlock_fast)
NEVER_CALLED(ZSTD_compressBlock_fast_dictMatchState)
NEVER_CALLED(ZSTD_compressBlock_fast_extDict)
NEVER_CALLED(ZSTD_fillHashTable)
