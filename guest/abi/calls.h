/* What the host asks of a guest, and what it gets back: one call struct and one result struct for
 * each operation. Same rules as doorbell.h. Text is bytes with a length, never terminated.
 *
 * Nothing in a result is to be trusted: the host checks every count and length, and prints text only
 * after it has been decoded with replacement and stripped of control characters.
 */
#ifndef AIRLOCK_ABI_CALLS_H
#define AIRLOCK_ABI_CALLS_H

enum call_operation {
    CALL_LIST = 1, /* the snapshots; reads only */
    CALL_INFO,     /* facts of the format and the snapshots; reads only */
    CALL_COMPARE,  /* does the active mapping equal a snapshot's? reads only */
    CALL_CREATE,   /* the three that write answer with the snapshots that there are then */
    CALL_APPLY,
    CALL_DELETE
};

enum call_limits {
    SNAPSHOT_NAME_MAX = 255, /* bytes that qemu-img keeps of a name */
    SNAPSHOT_ID_MAX = 127,
    SNAPSHOTS_MAX = 65536,
    BACKING_NAME_MAX = 1023,
    MESSAGE_TEXT_MAX = 1024
};

struct call_header {
    uint32_t abi_version;
    uint32_t operation; /* enum call_operation */
    uint32_t disk_count;
    uint32_t reserved;
    uint64_t disk_size[64]; /* bytes, measured by the host when it opened each file */
};

/* Which snapshot is meant. */
enum selector_kind {
    SELECT_BY_NAME = 1,   /* first with this name in table order: qemu-img snapshot -d */
    SELECT_BY_ID_OR_NAME, /* a full pass over ids, then one over names: qemu-img snapshot -a */
    SELECT_BY_ID          /* the id, and the name as well when name_length > 0 */
};

struct selector {
    uint32_t kind; /* enum selector_kind */
    uint16_t id_length;
    uint16_t name_length;
    uint8_t id[128];
    uint8_t name[256];
};

struct call_list {
    struct call_header header;
};

struct call_info {
    struct call_header header;
};

struct call_compare {
    struct call_header header;
    struct selector snapshot;
};

struct call_create {
    struct call_header header;
    uint32_t date_seconds; /* since 1970, UTC */
    uint32_t date_nanoseconds;
    uint32_t name_length; /* at most SNAPSHOT_NAME_MAX */
    uint32_t reserved;
    uint8_t name[256];
};

struct call_apply {
    struct call_header header;
    struct selector snapshot;
    uint32_t resize_allowed; /* 0: a snapshot of another disk size is refused */
    uint32_t reserved;
};

struct call_delete {
    struct call_header header;
    struct selector snapshot;
};

/* Common to every result. code 0 is success; otherwise a refusal (refusals.h says what the arguments
 * mean). */
struct result_header {
    uint32_t abi_version;
    uint32_t code;     /* enum refusal */
    uint32_t modified; /* not 0: the first write of the operation had gone out */
    uint32_t text_length;
    uint64_t arguments[6];
    uint64_t leaked_clusters; /* counted by a verification: refcount above what refers to it */
    uint8_t text[1024];       /* a name out of the image that the message quotes */
};

/* A snapshot in a payload, followed by id_length + name_length bytes of text and
 * padding to a multiple of 8. */
struct snapshot_record {
    uint64_t vm_state_size; /* bytes */
    uint64_t vm_clock;      /* nanoseconds */
    uint64_t icount;        /* all ones: not recorded */
    uint64_t disk_size;     /* bytes */
    uint32_t date_seconds;
    uint32_t date_nanoseconds;
    uint16_t id_length;   /* at most SNAPSHOT_ID_MAX, ends before the first NUL */
    uint16_t name_length; /* at most SNAPSHOT_NAME_MAX, likewise */
    uint32_t reserved;
};

struct result_list {
    struct result_header header;
    uint32_t snapshot_count; /* records in the payload */
    uint32_t reserved;
    uint64_t virtual_size; /* bytes */
};

struct result_info {
    struct result_header header;
    uint32_t snapshot_count; /* records in the payload */
    uint32_t version;
    uint32_t cluster_bits;
    uint32_t refcount_order;
    uint32_t encryption;       /* 0 none, 1 AES, 2 LUKS */
    uint32_t compression_type; /* 0 zlib, 1 zstd */
    uint64_t virtual_size;
    uint64_t incompatible_features;
    uint64_t compatible_features;
    uint64_t autoclear_features;
    uint32_t l1_entries;
    uint32_t bitmap_count; /* that the header extension claims; 0 without one */
    uint64_t file_size;    /* bytes */
    uint32_t backing_name_length;
    uint32_t backing_format_length;
    uint32_t data_file_length;
    uint32_t reserved;
    uint8_t backing_name[1024];
    uint8_t backing_format[16];
    uint8_t data_file[1024];
};

struct result_compare {
    struct result_header header;
    uint32_t equal; /* 1: mapping and disk size equal the snapshot's */
    uint32_t same_size;
    uint64_t disk_size;          /* of the snapshot, bytes */
    uint64_t differing_clusters; /* guest clusters that are mapped otherwise */
};

struct result_create {
    struct result_header header;
    uint32_t snapshot_count; /* records in the payload */
    uint32_t id_length;
    uint64_t virtual_size;
    uint8_t id[128];
};

struct result_apply {
    struct result_header header;
    uint32_t snapshot_count; /* records in the payload */
    uint32_t resized;
    uint64_t virtual_size; /* afterwards, bytes */
};

struct result_delete {
    struct result_header header;
    uint32_t snapshot_count; /* records in the payload */
    uint32_t reserved;
    uint64_t virtual_size;
    uint64_t freed_clusters;
};

#endif
