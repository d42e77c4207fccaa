/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * One input: a few operations on one image. What must hold afterwards is checked here; the sanitizers check the rest.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "input.h"

enum {
    REQUESTS_MAX = 200000,
    MORE_MAX = 16 << 11,
    GROWTH = 16 << 20,
    BYTES_MAX = INPUT_MAX + 32 * 1024 * 1024
};

static u8 before[BYTES_MAX];
static struct host *host;
static struct host_disk *disk;
static u32 accepted[OPERATIONS + 1]; /* successes by operation, for the driver's summary */
static u32 done[OPERATIONS + 1];

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);
void harness_summary(void);

static const struct result_header *header(void) { return (const struct result_header *)host->result; }

static const struct input_step *current;

static _Noreturn void fail(const char *what) {
    const struct result_header *result = header();
    fprintf(stderr, "FUZZ: %s: refusal %u (%llu %llu %llu %llu %llu %llu), modified %u, leaked %llu\n", what,
            result->code, (unsigned long long)result->arguments[0], (unsigned long long)result->arguments[1],
            (unsigned long long)result->arguments[2], (unsigned long long)result->arguments[3],
            (unsigned long long)result->arguments[4], (unsigned long long)result->arguments[5], result->modified,
            (unsigned long long)result->leaked_clusters);
    fprintf(stderr, "FUZZ: operation %u, selector %u, text %u:", current->operation % OPERATIONS + 1,
            current->selector % 3, current->text_length);
    for (u32 i = 0; i < sizeof(current->text); i++) {
        fprintf(stderr, " %u", current->text[i]);
    }
    fprintf(stderr, "\n");
    abort();
}

static void run(int (*function)(void)) {
    switch (function()) {
    case HOST_BROKEN:
        fail("a request that the rules forbid");
    case HOST_ENDLESS:
        fail("too many requests");
    default:
        break;
    }
}

static void select_snapshot(struct selector *selector, const struct input_step *step) {
    selector->kind = step->selector % 3 + 1;
    u32 length = step->text_length % (sizeof(step->text) + 1);
    if (selector->kind == SELECT_BY_ID) {
        selector->id_length = (u16)length;
        memcpy(selector->id, step->text, length);
    } else {
        selector->name_length = (u16)length;
        memcpy(selector->name, step->text, length);
    }
}

static const char *bitmap_name(u32 number) {
    static const char *const names[] = {"first", "second", "fresh", "f"};
    return names[number % 4];
}

/* The step's text as a list of actions. Merges are from the image, or from a copy of it that is disk 1. */
static void write_actions(struct call_bitmap_change *call, const struct input_step *step) {
    static const u32 granularities[] = {0, 512, 1024, 4096, 65536, 1 << 20, 768, 1u << 31};
    const char *name = bitmap_name(step->text[0]);
    u32 text = 0;
    call->header.disk_count = 2;
    call->dry_run = step->selector % 3 == 2;
    call->counts = 1;
    call->name_length = (u32)strlen(name);
    memcpy(call->name, name, call->name_length);
    call->action_count = step->text_length % (sizeof(step->text) - 1) + 1;
    for (u32 i = 0; i < call->action_count; i++) {
        struct bitmap_action *action = &call->actions[i];
        u32 rest = step->text[i + 1] / BITMAP_REMOVE_DAMAGED;
        action->kind = step->text[i + 1] % BITMAP_REMOVE_DAMAGED + 1;
        action->granularity = action->kind == BITMAP_ADD ? granularities[rest % 8] : 0;
        if (action->kind == BITMAP_MERGE) {
            const char *source = bitmap_name(rest);
            action->source_disk = rest / 4 % 2;
            action->source_at = (u16)text;
            action->source_length = (u16)strlen(source);
            memcpy(call->text + text, source, action->source_length);
            text += action->source_length;
        }
    }
    if (call->actions[0].kind == BITMAP_REMOVE_DAMAGED) {
        call->action_count = 1; /* elsewhere in a list it is refused */
    }
}

static u32 write_call(const struct input_step *step) {
    u32 operation = step->operation % OPERATIONS + 1;
    memset(host->call, 0, sizeof(host->call));
    *(struct call_header *)host->call =
        (struct call_header){.abi_version = ABI_VERSION, .operation = operation, .disk_count = 1};
    switch (operation) {
    case CALL_SNAPSHOT_COMPARE:
        select_snapshot(&((struct call_snapshot_compare *)host->call)->snapshot, step);
        break;
    case CALL_SNAPSHOT_CREATE: {
        struct call_snapshot_create *call = (struct call_snapshot_create *)host->call;
        call->name_length = step->text_length % (sizeof(step->text) + 1);
        memcpy(call->name, step->text, call->name_length);
        break;
    }
    case CALL_SNAPSHOT_APPLY:
        select_snapshot(&((struct call_snapshot_apply *)host->call)->snapshot, step);
        ((struct call_snapshot_apply *)host->call)->resize_allowed = step->resize_allowed % 2;
        break;
    case CALL_SNAPSHOT_DELETE:
        select_snapshot(&((struct call_snapshot_delete *)host->call)->snapshot, step);
        break;
    case CALL_BITMAP_LIST: {
        struct call_bitmap_list *call = (struct call_bitmap_list *)host->call;
        const char *name = bitmap_name(step->text[0]);
        call->counts = 1;
        call->extents_limit = step->selector % 3 == 0 ? 0 : EXTENTS_MAX;
        call->name_length = (u32)strlen(name);
        memcpy(call->name, name, call->name_length);
        break;
    }
    case CALL_BITMAP_CHANGE:
        write_actions((struct call_bitmap_change *)host->call, step);
        break;
    default:
        break;
    }
    return operation;
}

/* After a refusal that says that nothing was written. */
static void check_untouched(u64 length) {
    if (disk->length != length || memcmp(disk->bytes, before, length) != 0) {
        fail("refused as unmodified, but the file changed");
    }
}

/* all_done: false when the disk failed. What is left then may leak, and may lack flags that say that a cluster is not
 * shared any more. */
static void check_verified(bool all_done, bool may_leak, u64 leaked) {
    struct result_header then = *header();
    run(host_verify);
    if (!all_done && header()->code == REFUSAL_COPIED_FLAG && header()->arguments[3] >> 63 == 0) {
        return;
    }
    if (header()->code != REFUSAL_NONE) {
        fprintf(stderr, "FUZZ: it was refusal %u, modified %u\n", then.code, then.modified);
        fail("an image that was accepted is refused after the operation");
    }
    if (all_done && !may_leak && header()->leaked_clusters > leaked) {
        fprintf(stderr, "FUZZ: %llu clusters leaked before\n", (unsigned long long)leaked);
        fail("an operation leaks clusters");
    }
}

/* The snapshot that was just applied is the one that the disk equals. */
static void check_applied(void) {
    struct call_snapshot_apply applied = *(struct call_snapshot_apply *)host->call;
    struct call_snapshot_compare *call = (struct call_snapshot_compare *)host->call;
    memset(host->call, 0, sizeof(host->call));
    call->header = applied.header;
    call->header.operation = CALL_SNAPSHOT_COMPARE;
    call->snapshot = applied.snapshot;
    run(host_run);
    if (header()->code != REFUSAL_NONE || ((struct result_snapshot_compare *)host->result)->equal != 1) {
        fail("applied, but the disk differs");
    }
}

/* What a list of dirty ranges says, and what the count says, is the same. */
static void check_ranges(void) {
    const struct result_bitmap_list *result = (const struct result_bitmap_list *)host->result;
    const struct call_bitmap_list *call = (const struct call_bitmap_list *)host->call;
    const u8 *at = host->payload;
    u64 wanted = UINT64_MAX;
    for (u32 i = 0; i < result->bitmap_count; i++) {
        struct bitmap_record record;
        memcpy(&record, at, sizeof(record));
        if (record.name_length == call->name_length &&
            memcmp(at + sizeof(record), call->name, call->name_length) == 0 && (record.flags & BITMAP_STALE) == 0) {
            wanted = record.dirty_bytes;
        }
        at += round_up(sizeof(record) + record.name_length, 8);
    }
    u64 bytes = 0;
    u64 end = 0;
    for (u32 i = 0; i < result->extent_count; i++) {
        struct dirty_extent extent;
        memcpy(&extent, at + i * sizeof(extent), sizeof(extent));
        if (extent.length == 0 || (i > 0 && extent.offset <= end)) {
            fail("dirty ranges out of order");
        }
        bytes += extent.length;
        end = extent.offset + extent.length;
    }
    if (at + result->extent_count * sizeof(struct dirty_extent) != host->payload + host->payload_length ||
        end > result->virtual_size || (call->extents_limit != 0 && bytes != wanted)) {
        fail("dirty ranges that do not add up");
    }
}

/* Damaged bitmaps are gone: nothing is to be said against those that stay. */
static void check_sound(void) {
    const struct result_bitmap_list *result = (const struct result_bitmap_list *)host->result;
    if (result->fault != 0) {
        fail("the damaged bitmaps were removed, and some are left");
    }
}

/* What a change of bitmaps, or its dry run, says that there is: a list says the same, now or once it is done. */
static void check_bitmaps(const struct input_step *step) {
    static u8 told[1 << 16];
    u64 length = host->payload_length;
    const struct result_bitmap_change *result = (const struct result_bitmap_change *)host->result;
    u32 changed = result->changed;
    struct input_step list = {.operation = CALL_BITMAP_LIST - 1};
    const bool removed = ((const struct call_bitmap_change *)host->call)->actions[0].kind == BITMAP_REMOVE_DAMAGED;
    if (length > sizeof(told)) {
        return;
    }
    memcpy(told, host->payload, length);
    if (step->selector % 3 == 2 && changed != 0) {
        return; /* not done */
    }
    write_call(&list);
    run(host_run);
    if (header()->code != REFUSAL_NONE || host->payload_length != length || memcmp(host->payload, told, length) != 0) {
        fail("a change of bitmaps says what is not there");
    }
    if (removed) {
        check_sound();
    }
}

/* False: what comes next has nothing to work on. */
static bool run_step(const struct input_step *step, bool faulty) {
    u64 length = disk->length;
    current = step;
    memcpy(before, disk->bytes, length);
    u32 changes = disk->changes;
    u32 operation = write_call(step);
    bool reads =
        !(operation == CALL_SNAPSHOT_CREATE || operation == CALL_SNAPSHOT_APPLY || operation == CALL_SNAPSHOT_DELETE ||
          (operation == CALL_BITMAP_CHANGE && ((const struct call_bitmap_change *)host->call)->dry_run == 0));
    host->requests = host->logged = 0;
    host->disks[1] = (struct host_disk){.bytes = before, .length = length};
    run(host_run);
    const struct result_header result = *header();
    bool full = result.code == REFUSAL_NO_SPACE || result.code == REFUSAL_WRITE_FAILED; /* behind disk->limit */
    bool failed = full || (faulty && host->fail_at < host->counted);
    done[operation]++;
    if (result.code > REFUSAL_BITMAPS_OVERLAP || result.text_length > MESSAGE_TEXT_MAX) {
        fail("no such refusal");
    }
    host->fail_at = UINT64_MAX;
    if (reads && (disk->changes != changes || result.modified != 0)) {
        fail("an operation that reads has written");
    }
    if (result.modified == 0) {
        check_untouched(length);
    } else if (result.code != REFUSAL_NONE && !failed) {
        fail("a refusal after the first write");
    }
    if (result.code == REFUSAL_NONE && !failed) {
        accepted[operation]++;
        if (operation == CALL_BITMAP_LIST) {
            check_ranges();
        } else if (operation == CALL_BITMAP_CHANGE) {
            if ((result.modified != 0) !=
                (((const struct result_bitmap_change *)host->result)->changed != 0 && !reads)) {
                fail("a change of bitmaps that writes without changing anything, or the other way round");
            }
            check_bitmaps(step);
        }
    }
    if (result.modified != 0) {
        /* qemu, too, forgets the cluster that a disk ends in the middle of. */
        bool resized =
            operation == CALL_SNAPSHOT_APPLY && ((const struct result_snapshot_apply *)host->result)->resized != 0;
        check_verified(!failed, resized, result.leaked_clusters);
        if (operation == CALL_SNAPSHOT_APPLY && result.code == REFUSAL_NONE) {
            write_call(step);
            check_applied();
        }
    }
    return result.code == REFUSAL_NONE;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size) {
    struct input input;
    if (size < sizeof(input) || size > INPUT_MAX) {
        return 0;
    }
    memcpy(&input, data, sizeof(input));
    host = host_open();
    disk = &host->disks[0];
    host_load(data + sizeof(input), 0, size - sizeof(input));
    disk->length = size - sizeof(input) + 512ull * (input.more % MORE_MAX);
    disk->limit = disk->length + GROWTH;
    host->requests_max = REQUESTS_MAX;
    bool faulty = input.fail_at != 0xffff;
    if (faulty) {
        host->fail_at = input.fail_at;
        host->fail_with = input.error % 2 == 0 ? -5 : -28; /* EIO, ENOSPC */
    }
    for (u32 i = 0; i < STEPS; i++) {
        if (!run_step(&input.steps[i], faulty && i == 0)) {
            break;
        }
    }
    return 0;
}

void harness_summary(void) {
    for (u32 i = CALL_SNAPSHOT_LIST; i <= OPERATIONS; i++) {
        printf("operation %u %u of %u, ", i, accepted[i], done[i]);
    }
}
