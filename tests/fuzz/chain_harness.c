/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * One input: an operation on a backing chain, as a dry run, for real, and once more. A request of it may fail. What
 * must hold is checked here: what is refused is untouched, what is written to stays sound, and the top shows the same
 * at every moment.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain_calls.h"
#include "chain_images.h"

enum {
    REQUESTS_MAX = 400000
};

static u8 before[CHAIN_DISKS][DISK_MAX];
static u64 length_before[CHAIN_DISKS];
static u32 accepted[CHAIN_OPERATIONS]; /* by operation, for the driver's summary */
static u32 done[CHAIN_OPERATIONS];
static struct shown top_before;
static struct shown base_before;
static struct shown after;

/* Of the chain.layers that are written to. */
static struct {
    enum refusal refusal;
    u64 leaked;
    bool alike;
} sound[PARTS];

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
void harness_summary(void);

static const struct result_header *header(void) { return (const struct result_header *)chain.host->result; }

static _Noreturn void fail(const char *what, u32 layer) {
    const struct result_header *result = header();
    fprintf(stderr, "FUZZ: %s: layer %u, refusal %u (%llu %llu %llu %llu %llu %llu) of disk %u, modified %u\n", what,
            layer, result->code, (unsigned long long)result->arguments[0], (unsigned long long)result->arguments[1],
            (unsigned long long)result->arguments[2], (unsigned long long)result->arguments[3],
            (unsigned long long)result->arguments[4], (unsigned long long)result->arguments[5], result->disk,
            result->modified);
    fprintf(stderr, "FUZZ: operation %u, flags %u, %u layers, %u new ones, base %u, shared %u, fails at %u\n",
            chain.input.operation, chain.input.flags, chain.count, chain.new_count, chain.base, chain.input.shared,
            chain.input.fail_at);
    abort();
}

static bool writes_to(u32 disk) { return chain.host->disks[disk].writable != 0; }

static void check_untouched(void) {
    for (u32 i = 0; i < CHAIN_DISKS; i++) {
        if (chain.host->disks[i].length != length_before[i] ||
            (length_before[i] > 0 && memcmp(chain.host->disks[i].bytes, before[i], length_before[i]) != 0)) {
            fail("refused or read only, but a file changed", i);
        }
    }
}

static void run(bool dry, u64 fail_at) {
    calls_write(dry);
    for (u32 i = 0; i < CHAIN_DISKS; i++) {
        length_before[i] = chain.host->disks[i].length;
        if (length_before[i] > 0) {
            memcpy(before[i], chain.host->disks[i].bytes, length_before[i]);
        }
    }
    chain.host->requests = chain.host->logged = chain.host->counted = 0;
    chain.host->requests_max = REQUESTS_MAX;
    chain.host->fail_at = fail_at;
    chain.host->fail_with = chain.input.error % 2 == 0 ? -5 : -28; /* EIO, ENOSPC */
    int end = host_run();
    if (end != HOST_FINISHED) {
        fail(end == HOST_BROKEN ? "a request that the rules forbid" : "too many requests", 0);
    }
    if (header()->code > REFUSAL_BASE_VMDK_RESIZE || header()->text_length > MESSAGE_TEXT_MAX) {
        fail("no such refusal", 0);
    }
    if (header()->modified == 0 || dry) {
        check_untouched();
    }
    if (header()->modified != 0 && dry) {
        fail("a dry run that says it has written", 0);
    }
}

/* Did a request fail, be it behind the limit of a file's growth? */
static bool ran_into_failure(void) {
    return header()->code == REFUSAL_NO_SPACE || header()->code == REFUSAL_WRITE_FAILED ||
           header()->code == REFUSAL_READ_FAILED;
}

/* Layers that are only read are looked at when their turn comes. */
static bool may_be_late(void) {
    switch (header()->code) {
    case REFUSAL_COMPRESSED_CLUSTER: /* no verification inflates */
    case REFUSAL_VMDK_FULL:
    case REFUSAL_FILE_TOO_BIG:
        return true;
    default:
        return !writes_to(header()->disk);
    }
}

static bool equal(const struct shown *wanted, const struct shown *found) {
    return wanted->size == UINT64_MAX || (wanted->size == found->size && wanted->length == found->length &&
                                          memcmp(wanted->bytes, found->bytes, wanted->length) == 0);
}

/* Do both show the same between these bytes? */
static bool same_part(const struct shown *found, const struct shown *wanted, u64 from, u64 size) {
    u64 end = min64(size, min64(found->length, wanted->length));
    return from >= end || memcmp(found->bytes + from, wanted->bytes + from, end - from) == 0;
}

static void note_soundness(void) {
    for (u32 i = 0; i < chain.count; i++) {
        if (writes_to(chain.layers[i].disk)) {
            sound[i].refusal =
                verify_layer(chain.host, &chain.layers[i], i == chain.base, &sound[i].leaked, &sound[i].alike);
        }
    }
}

/* all_done: false when a request failed. What is left then may leak, may be marked, and may lack flags that say that a
 * cluster is not shared any more. */
static void check_sound(bool all_done) {
    for (u32 i = 0; i < chain.count; i++) {
        u64 leaked;
        bool alike;
        if (!writes_to(chain.layers[i].disk)) {
            continue;
        }
        enum refusal refusal = verify_layer(chain.host, &chain.layers[i], i == chain.base, &leaked, &alike);
        bool flags_only = refusal == REFUSAL_COPIED_FLAG && header()->arguments[3] >> 63 == 0;
        if (refusal == REFUSAL_NONE || (!all_done && (refusal == REFUSAL_DIRTY || flags_only))) {
            if (all_done && (leaked > sound[i].leaked || (sound[i].alike && !alike))) {
                fail("an operation leaks clusters, or lets tables and their copies differ", i);
            }
            continue;
        }
        fail("what was written to is not sound", i);
    }
}

static void check_first_write(enum refusal refusal) {
    for (u32 i = 0; i < chain.count; i++) {
        if (writes_to(chain.layers[i].disk) && sound[i].refusal != REFUSAL_NONE) {
            fail("what is not sound was written to", i);
        }
    }
    if (refusal != REFUSAL_NONE && !ran_into_failure() && !may_be_late()) {
        fail("a refusal after the first write", 0);
    }
}

static void check_top(const char *what) {
    look(chain.host, chain.layers, chain.count, &after);
    if (!equal(&top_before, &after)) {
        fail(what, 0);
    }
}

static void check_committed(void) {
    look(chain.host, chain.layers + chain.base, chain.count - chain.base, &after);
    if (top_before.size == UINT64_MAX || base_before.size == UINT64_MAX) {
        return;
    }
    if (after.size != max64(top_before.size, base_before.size)) {
        fail("the base has another size", chain.base);
    }
    if (!same_part(&after, &top_before, 0, top_before.size) ||
        !same_part(&after, &base_before, top_before.size, base_before.size)) {
        fail("the base shows something else than the top", chain.base);
    }
}

/* The layers that stay after a rebase, as a chain of their own. */
static u32 new_chain(struct chain_layer *to) {
    to[0] = chain.layers[0];
    memcpy(to + 1, chain.layers + chain.count, chain.new_count * sizeof(*chain.layers));
    return 1 + chain.new_count;
}

static void check_rebased(bool all_done) {
    struct chain_layer left[PARTS + 1];
    if (chain.input.operation == CHAIN_RELINK) {
        return;
    }
    look(chain.host, left, new_chain(left), &after);
    if (equal(&top_before, &after)) {
        return;
    }
    if (all_done) {
        fail("the image shows something else on its new backing file", 0);
    }
    check_top("a rebase that failed changes what the image shows");
}

/* Nothing but what its backing files have. */
static void check_emptied(void) {
    static const u8 zeros[SHOWN_MAX];
    u64 size = top_before.size;
    look(chain.host, chain.layers, chain.count, &after);
    look(chain.host, chain.layers + 1, chain.count - 1, &base_before);
    if (size == UINT64_MAX || (chain.count > 1 && base_before.size == UINT64_MAX)) {
        return;
    }
    u64 backed = chain.count > 1 ? min64(base_before.length, after.length) : 0;
    if (after.size != size || memcmp(after.bytes, base_before.bytes, backed) != 0 ||
        memcmp(after.bytes + backed, zeros, after.length - backed) != 0) {
        fail("an image that was emptied holds something", 0);
    }
}

static void check_named(u32 length) {
    const struct result_image_info *info = (const struct result_image_info *)chain.host->result;
    memset(chain.host->call, 0, sizeof(chain.host->call));
    *(struct call_header *)chain.host->call =
        (struct call_header){.abi_version = ABI_VERSION, .operation = CALL_IMAGE_INFO, .disk_count = 1};
    chain.host->fail_at = UINT64_MAX;
    if (host_run() != HOST_FINISHED || info->header.code != REFUSAL_NONE || info->backing_name_length != length) {
        fail("the header does not name the backing file", 0);
    }
}

static void check_done(enum refusal refusal, bool failed) {
    if (chain.input.operation == CHAIN_COMMIT) {
        check_top("a commit changes what the top shows");
        if (refusal == REFUSAL_NONE) {
            check_committed();
        }
    } else if (chain.input.operation == CHAIN_EMPTY) {
        if (refusal == REFUSAL_NONE) {
            check_emptied();
        }
    } else {
        check_rebased(refusal == REFUSAL_NONE);
        if (refusal == REFUSAL_NONE) {
            check_named(name_length());
        }
    }
    check_sound(refusal == REFUSAL_NONE && !failed);
}

/* What a dry run and the run say of themselves. */
static void check_prediction(const u8 *dry) {
    if (chain.input.operation == CHAIN_COMMIT) {
        const struct result_commit *told = (const struct result_commit *)(const void *)dry;
        const struct result_commit *found = (const struct result_commit *)chain.host->result;
        if (memcmp(&told->resized, &found->resized, sizeof(*told) - offsetof(struct result_commit, resized)) != 0) {
            fail("a commit that its dry run has not foreseen", chain.base);
        }
    } else {
        const struct result_rebase *told = (const struct result_rebase *)(const void *)dry;
        const struct result_rebase *found = (const struct result_rebase *)chain.host->result;
        if (told->copied_bytes != found->copied_bytes || told->zeroed_bytes != found->zeroed_bytes) {
            fail("a rebase that its dry run has not foreseen", 0);
        }
    }
}

/* dry: the result of a dry run, or NULL. True: done. */
static bool run_for_real(u64 fail_at, const u8 *dry) {
    calls_write(false);
    note_soundness();
    look(chain.host, chain.layers, chain.count, &top_before);
    if (chain.input.operation == CHAIN_COMMIT) {
        look(chain.host, chain.layers + chain.base, chain.count - chain.base, &base_before);
    }
    run(false, fail_at);
    const enum refusal refusal = header()->code;
    if (refusal == REFUSAL_NONE && dry != NULL) {
        check_prediction(dry);
    }
    if (header()->modified != 0) {
        bool failed = ran_into_failure() || chain.host->counted > fail_at;
        check_first_write(refusal);
        check_done(refusal, failed);
    }
    return refusal == REFUSAL_NONE;
}

/* What was done is the state of before for what comes next. */
static void run_again(bool was_done) {
    bool all_vmdk = chain.input.operation == CHAIN_COMMIT && has_flag(CHAIN_RECORDS_ID);
    for (u32 i = 0; i <= chain.base; i++) {
        all_vmdk &= chain.layers[i].format == LAYER_VMDK;
    }
    if (was_done && chain.input.operation != CHAIN_COMMIT && chain.input.operation != CHAIN_EMPTY) { /* back again */
        struct chain_layer old[PARTS];
        u32 old_count = chain.count - 1;
        memcpy(old, chain.layers + 1, old_count * sizeof(*old));
        memmove(chain.layers + 1, chain.layers + chain.count, chain.new_count * sizeof(*chain.layers));
        memcpy(chain.layers + 1 + chain.new_count, old, old_count * sizeof(*old));
        chain.count = 1 + chain.new_count;
        chain.new_count = old_count;
        chain.input.shared = 0;
    }
    if (run_for_real(UINT64_MAX, NULL) && was_done && all_vmdk) {
        check_untouched();
    }
}

static void run_chain(void) {
    static u8 dry[sizeof(chain.host->result)];
    const bool faulty = chain.input.fail_at != 0xffff;
    bool foreseen = false;
    if (chain.input.operation != CHAIN_EMPTY) {
        run(true, UINT64_MAX);
        foreseen = header()->code == REFUSAL_NONE;
        memcpy(dry, chain.host->result, sizeof(dry));
    }
    bool was_done = run_for_real(faulty ? chain.input.fail_at : UINT64_MAX, foreseen ? dry : NULL);
    accepted[chain.input.operation] += was_done;
    if (was_done || faulty) {
        run_again(was_done);
    }
}

static void run_overlay(void) {
    u64 leaked;
    bool alike;
    if (has_flag(CHAIN_MAY_RESIZE)) {
        memset(chain.host->disks[0].bytes, 0, chain.host->disks[0].length);
        chain.host->disks[0].length = 0;
    }
    run(false, UINT64_MAX);
    if (header()->code == REFUSAL_NONE) {
        chain.layers[0] = (struct chain_layer){.format = LAYER_QCOW2};
        accepted[CHAIN_OVERLAY]++;
        check_named(has_flag(CHAIN_BACKED) ? 1u + 4 * chain.input.name_length : 0);
        if (verify_layer(chain.host, &chain.layers[0], true, &leaked, &alike) != REFUSAL_NONE || leaked > 0) {
            fail("a new image that is not sound", 0);
        }
    }
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size) {
    if (!calls_open(data, size)) {
        calls_close();
        return 0;
    }
    const u32 operation = chain.input.operation;
    done[operation]++;
    if (operation == CHAIN_FACTS) {
        run(true, UINT64_MAX);
        accepted[operation] += header()->code == REFUSAL_NONE;
    } else if (operation == CHAIN_OVERLAY) {
        run_overlay();
    } else {
        run_chain();
    }
    calls_close();
    return 0;
}

void harness_summary(void) {
    static const char *const names[] = {"commit", "rebase", "compress", "relink", "empty", "overlay", "facts"};
    for (u32 i = 0; i < CHAIN_OPERATIONS; i++) {
        printf("%s %u of %u, ", names[i], accepted[i], done[i]);
    }
}
