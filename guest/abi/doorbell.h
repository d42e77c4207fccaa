/* The doorbell: how a guest asks the host to move bytes.
 *
 * Read by gcc (the guest) and by cffi (the host), so: only enums and structs, fixed-width types, no
 * expressions. All fields are little-endian, the byte order of both sides. A change of meaning is a
 * new ABI_VERSION.
 *
 * The guest fills `requests`, sets `count` and writes any byte to DOORBELL_PORT. The host copies the
 * batch, runs it in order and fills in each `status`. After the first request that fails the rest of
 * the batch is not run: each gets -ECANCELED. A request that breaks a rule below (disk index, range,
 * overflow, write permission, size limit) is not answered: it ends the machine.
 */
#ifndef AIRLOCK_ABI_DOORBELL_H
#define AIRLOCK_ABI_DOORBELL_H

enum abi {
    ABI_VERSION = 1,
    DOORBELL_PORT = 0x10,
    DOORBELL_BATCH = 255,
    DISKS_MAX = 64
};

/* Guest-physical addresses, mapped one to one. Below TEXT nothing is mapped for the guest: the page
 * tables and the task state segment live there. */
enum memory_map {
    TEXT_ADDRESS = 0x40000,      /* read-only, executable: code and constants */
    DATA_ADDRESS = 0x180000,     /* from here on nothing is executable: variables */
    CALL_ADDRESS = 0x190000,     /* struct call_*: written by the host before the start */
    RESULT_ADDRESS = 0x1a0000,   /* struct result_*: read by the host after FINISH */
    DOORBELL_ADDRESS = 0x1a8000, /* struct doorbell */
    STACK_BOTTOM = 0x1c0000,     /* the page below is not mapped */
    STACK_TOP = 0x200000,
    HEAP_ADDRESS = 0x200000,
    MEMORY_SIZE = 0x8000000 /* 128 MiB: end of the heap and of everything unless the host gives more */
};

enum doorbell_operation {
    DOORBELL_READ = 1, /* disk -> memory; status: bytes read, short only at the end of the file */
    DOORBELL_WRITE,    /* memory -> disk; status: length */
    DOORBELL_COPY,     /* source_disk, source_offset -> disk, offset; status: length */
    DOORBELL_ZERO,     /* the range reads as zeros and stays allocated, the file grows to hold it */
    DOORBELL_DISCARD,  /* punches a hole, the file keeps its length; a file system that cannot: status 0 */
    DOORBELL_RESIZE,   /* the file's length becomes `length` */
    DOORBELL_RESERVE,  /* blocks for the range, content and length as they were; -ENOSPC when full */
    DOORBELL_FLUSH,    /* everything written to `disk` is stable */
    DOORBELL_PROGRESS, /* `offset` of `length` units are done */
    DOORBELL_FINISH    /* the end: the result struct is filled, payload = memory, length */
};

struct doorbell_request {
    uint32_t operation; /* enum doorbell_operation */
    uint32_t disk;      /* index into the disks of the call */
    uint64_t offset;    /* bytes from the start of the disk */
    uint64_t length;    /* bytes */
    uint64_t memory;    /* guest address, from DATA to the end of memory */
    uint32_t source_disk;
    uint32_t reserved;
    uint64_t source_offset;
    int64_t status; /* OUT: bytes, 0, or a negated Linux errno */
    uint64_t reserved2;
};

struct doorbell {
    uint32_t count;
    uint32_t reserved[15];
    struct doorbell_request requests[255];
};

#endif
