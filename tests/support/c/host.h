/* Copyright: (c) 2026, The airlock.images authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The guest's surroundings on an ordinary computer: a doorbell whose disks lie in memory, or are somebody else's. Also
 * read by cffi: no expressions, lines of the preprocessor are dropped.
 */
#ifndef AIRLOCK_TEST_HOST_H
#define AIRLOCK_TEST_HOST_H

#include <stdint.h>

enum host_sizes {
    HOST_DISKS = 8,
    HOST_LOG = 65536,
    HOST_RESULT = 32768,
    HOST_CALL = 65536
};

enum host_end {
    HOST_FINISHED = 0, /* the guest rang FINISH, or gave up: the result says */
    HOST_BROKEN,       /* a request against the rules of abi/doorbell.h */
    HOST_ENDLESS       /* more requests than requests_max */
};

struct host_request { /* as it came in */
    uint32_t operation;
    uint32_t batch; /* requests that came in one ring have one number */
    uint64_t offset;
    uint64_t length;
};

struct host_disk {
    uint8_t *bytes; /* room for `limit`, zero behind `length`; NULL: there is no such disk */
    uint64_t length;
    uint64_t limit; /* the file may grow to; behind it EFBIG */
    uint32_t writable;
    uint32_t changes; /* requests that changed the disk or its length */
};

struct doorbell_request;

struct host {
    int64_t (*server)(
        const struct doorbell_request *); /* serves all requests, by no rules of here; NULL: the disks do */
    struct host_disk disks[8]; /* the first one is there always, and is the host's; the others are the caller's */
    uint64_t capacity;         /* bytes of memory for the first one */
    uint64_t fail_at;          /* index of the request that fails; all ones: none */
    uint64_t fail_for;         /* only requests with this operation are counted for fail_at; 0: all */
    int64_t fail_with;         /* negated errno */
    uint64_t counted;          /* for fail_at */
    uint64_t requests;
    uint64_t requests_max;
    uint64_t moved;  /* bytes read and written */
    uint64_t memory; /* of the guest, bytes: MEMORY_SIZE unless a test says more, up to 3 GiB */
    uint32_t batches;
    uint32_t logged;
    const uint8_t *payload;
    uint64_t payload_length;
    uint64_t lowest_stack; /* bytes that the deepest ring had below the start */
    uint8_t call[65536];
    uint8_t result[32768];
    struct host_request log[65536];
};

struct host *host_open(void);
void host_load(const uint8_t *bytes, uint64_t offset, uint64_t length); /* on the first disk */
void host_clear(void);
void host_rest(void); /* gives the memory of disk and heap back */
int host_run(void);
int host_verify(void);

#endif
