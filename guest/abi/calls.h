/* What the host asks of a guest, and what it gets back: one call struct and one result struct for
 * each operation. Same rules as doorbell.h. Text is bytes with a length, never terminated.
 *
 * Nothing in a result is to be trusted: the host checks every count and length, and prints text only
 * after it has been decoded with replacement and stripped of control characters.
 */
#ifndef AIRLOCK_ABI_CALLS_H
#define AIRLOCK_ABI_CALLS_H

enum call_operation {
    CALL_SNAPSHOT_LIST = 1, /* the snapshots; reads only */
    CALL_IMAGE_INFO,        /* facts of the format and the snapshots; reads only */
    CALL_SNAPSHOT_COMPARE,  /* does the active mapping equal a snapshot's? reads only */
    CALL_SNAPSHOT_CREATE,   /* the three that write answer with the snapshots that there are then */
    CALL_SNAPSHOT_APPLY,
    CALL_SNAPSHOT_DELETE,
    CALL_BITMAP_LIST, /* the persistent bitmaps, and the dirty ranges of one; reads only */
    CALL_BITMAP_CHANGE,
    CALL_COMMIT,         /* what the layers above the base hold goes into the base */
    CALL_EMPTY,          /* an image holds nothing any more: after a commit */
    CALL_REBASE,         /* another backing file, or none */
    CALL_OVERLAY_CREATE, /* a new image in an empty file */
    CALL_VMDK_INFO       /* facts of a vmdk image; reads only */
};

/* For Python these are in sandbox/guests/_limits.py, which takes no cffi to read. */
enum call_limits {
    SNAPSHOT_NAME_MAX = 255, /* bytes that qemu-img keeps of a name */
    SNAPSHOT_ID_MAX = 127,
    SNAPSHOTS_MAX = 65536,
    BACKING_NAME_MAX = 1023,
    BACKING_FORMAT_MAX = 15,
    DATA_FILE_NAME_MAX = 1024, /* of a longer one, this is told */
    MESSAGE_TEXT_MAX = 1024,
    BITMAP_NAME_MAX = 1023,
    BITMAPS_MAX = 65535,
    BITMAP_GRANULARITY_BITS_MIN = 9, /* log2 of bytes */
    BITMAP_GRANULARITY_BITS_MAX = 31,
    BITMAP_ACTIONS_MAX = 1024,
    BITMAP_TEXT_MAX = 32768, /* bytes of source names in one call */
    EXTENTS_MAX = 1048576,
    VMDK_GRAIN_BITS_MAX = 30,        /* log2 of bytes */
    VMDK_DESCRIPTOR_SECTORS_MAX = 20 /* as much of it as QEMU looks at */
};

struct call_header {
    uint32_t abi_version;
    uint32_t operation; /* enum call_operation */
    uint32_t disk_count;
    uint32_t may_ask;       /* 1: the guest may ask for more memory, see result_header */
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

struct call_snapshot_list {
    struct call_header header;
};

struct call_image_info {
    struct call_header header;
};

struct call_snapshot_compare {
    struct call_header header;
    struct selector snapshot;
};

struct call_snapshot_create {
    struct call_header header;
    uint32_t date_seconds; /* since 1970, UTC */
    uint32_t date_nanoseconds;
    uint32_t name_length; /* at most SNAPSHOT_NAME_MAX */
    uint32_t reserved;
    uint8_t name[256];
};

struct call_snapshot_apply {
    struct call_header header;
    struct selector snapshot;
    uint32_t resize_allowed; /* 0: a snapshot of another disk size is refused */
    uint32_t reserved;
};

struct call_snapshot_delete {
    struct call_header header;
    struct selector snapshot;
};

/* Which dirty ranges to tell. */
struct call_bitmap_list {
    struct call_header header;
    uint64_t extents_start; /* bytes: what lies before this is left out */
    uint32_t extents_limit; /* how many at most, up to EXTENTS_MAX; 0: none are asked for */
    uint32_t counts;        /* 1: count the dirty bits of every bitmap, which reads all of them */
    uint32_t name_length;   /* of the bitmap whose ranges are meant */
    uint32_t reserved;
    uint8_t name[1024];
};

enum bitmap_action_kind {
    BITMAP_ADD = 1, /* recording, and empty */
    BITMAP_REMOVE,
    BITMAP_CLEAR,
    BITMAP_ENABLE,
    BITMAP_DISABLE,
    BITMAP_MERGE,
    BITMAP_REMOVE_DAMAGED /* of the image, not of one bitmap: alone, and without a name */
};

struct bitmap_action {
    uint32_t kind;          /* enum bitmap_action_kind */
    uint32_t granularity;   /* add: bytes; 0: what qemu-img takes for this cluster size */
    uint32_t source_disk;   /* merge: 0: the image itself */
    uint16_t source_at;     /* merge: where the source's name begins in the call's text */
    uint16_t source_length; /* bytes */
};

/* Actions on one bitmap of disk 0, in order; all of them or none. */
struct call_bitmap_change {
    struct call_header header;
    uint32_t action_count;
    uint32_t dry_run;     /* 1: say what would be, write nothing; the disk may be open for reading only */
    uint32_t counts;      /* 1: count the dirty bits of every bitmap, not only of the one changed */
    uint32_t name_length; /* of the bitmap that all actions are about */
    uint8_t name[1024];
    struct bitmap_action actions[1024];
    uint8_t text[32768];
};

enum layer_format {
    LAYER_QCOW2 = 1,
    LAYER_RAW,
    LAYER_VMDK /* monolithicSparse */
};

/* An image of a backing chain. */
struct chain_layer {
    uint32_t format;    /* enum layer_format */
    uint32_t disk;      /* index into the disks of the call */
    uint32_t data_disk; /* of the external data file; 0: the image has none */
    uint32_t reserved;
};

struct call_commit {
    struct call_header header;
    uint32_t layer_count;
    uint32_t base;                 /* index of the layer that gets what those above it hold */
    uint32_t resize_allowed;       /* 0: a base that is smaller than the top is refused */
    uint32_t empties;              /* 1: the top is empty afterwards */
    uint32_t dry_run;              /* 1: count, write nothing */
    uint32_t records_id;           /* 1: the layer above the base is of vmdk, and records the base's new content id */
    struct chain_layer layers[64]; /* the top first, the base's own backing files last */
};

struct call_empty {
    struct call_header header;
    struct chain_layer layer;
};

struct call_rebase {
    struct call_header header;
    uint32_t layer_count;     /* the image, then its backing files of now; only the image itself with relinks */
    uint32_t new_layer_count; /* the new backing file, then those under it; 0: there will be none */
    uint32_t relinks;         /* 1: only the name changes, whatever the new file holds */
    uint32_t shared;          /* index in `layers` of the file that is the new backing file too; 0: none is */
    uint32_t dry_run;         /* 1: count, write nothing */
    uint32_t compresses;      /* 1: what the image gets is compressed, where that makes it smaller */
    uint32_t reserved;
    uint16_t backing_length; /* bytes; 0: no backing file */
    uint16_t format_length;  /* 0: none is recorded */
    struct chain_layer layers[64];
    struct chain_layer new_layers[64];
    uint8_t backing_name[1024];
    uint8_t backing_format[16];
};

struct call_overlay_create {
    struct call_header header;
    uint64_t virtual_size; /* bytes, a multiple of 512 */
    uint32_t cluster_bits; /* log2 of bytes */
    uint16_t backing_length;
    uint16_t format_length;
    uint8_t backing_name[1024];
    uint8_t backing_format[16];
};

struct call_vmdk_info {
    struct call_header header;
};

/* Common to every result. code 0 is success; otherwise a refusal (refusals.h says what the arguments
 * mean). */
struct result_header {
    uint32_t abi_version;
    uint32_t code;     /* enum refusal */
    uint32_t modified; /* not 0: the first write of the operation had gone out */
    uint32_t text_length;
    uint64_t arguments[6];
    uint64_t memory_wanted;   /* with REFUSAL_NO_MEMORY, and nothing written: bytes with which it would go on */
    uint64_t leaked_clusters; /* counted by a verification: refcount above what refers to it */
    uint32_t disk;            /* the refusal is about: index into the disks of the call */
    uint32_t windows;         /* of counters, that a verification needed at most: in each, all tables were read */
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

struct result_snapshot_list {
    struct result_header header;
    uint32_t snapshot_count; /* records in the payload */
    uint32_t reserved;
    uint64_t virtual_size; /* bytes */
};

struct result_image_info {
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
    uint32_t bitmaps_fault; /* enum bitmaps_fault of the extension: nobody knows how many bitmaps there are */
    uint8_t backing_name[1024];
    uint8_t backing_format[16];
    uint8_t data_file[1024];
};

struct result_snapshot_compare {
    struct result_header header;
    uint32_t equal; /* 1: mapping and disk size equal the snapshot's */
    uint32_t same_size;
    uint64_t disk_size;          /* of the snapshot, bytes */
    uint64_t differing_clusters; /* guest clusters that are mapped otherwise */
};

struct result_snapshot_create {
    struct result_header header;
    uint32_t snapshot_count; /* records in the payload */
    uint32_t id_length;
    uint64_t virtual_size;
    uint8_t id[128];
};

struct result_snapshot_apply {
    struct result_header header;
    uint32_t snapshot_count; /* records in the payload */
    uint32_t resized;
    uint64_t virtual_size; /* afterwards, bytes */
};

struct result_snapshot_delete {
    struct result_header header;
    uint32_t snapshot_count; /* records in the payload */
    uint32_t reserved;
    uint64_t virtual_size;
    uint64_t freed_clusters;
};

enum bitmap_flags {
    BITMAP_RECORDING = 1, /* enabled: writes of a guest will be noted in it */
    BITMAP_IN_USE = 2,    /* inconsistent: whoever used it last did not store it */
    BITMAP_STALE = 4      /* inconsistent: a program without bitmap support has written to the image since */
};

/* A bitmap in a payload, followed by name_length bytes of text and padding to a multiple of 8. */
struct bitmap_record {
    uint64_t dirty_bytes; /* of the disk; all ones: not counted, as for every inconsistent one */
    uint64_t dirty_count; /* bits; likewise */
    uint32_t granularity; /* bytes of the disk that a bit stands for */
    uint32_t flags;       /* enum bitmap_flags */
    uint32_t name_length; /* at most BITMAP_NAME_MAX, ends before the first NUL */
    uint32_t reserved;
};

struct dirty_extent {
    uint64_t offset; /* bytes */
    uint64_t length;
};

struct result_bitmap_list {
    struct result_header header;
    uint32_t bitmap_count; /* records in the payload */
    uint32_t extent_count; /* struct dirty_extent behind them */
    uint64_t virtual_size; /* bytes */
    uint64_t extents_end;  /* bytes: all ranges that begin before this were told */
    uint64_t fault_value;
    uint32_t fault;             /* enum bitmaps_fault: the first that was found; bitmaps that have one are left out */
    uint32_t fault_name_length; /* of the bitmap that has it */
    uint8_t fault_name[1024];
};

struct result_bitmap_change {
    struct result_header header;
    uint32_t bitmap_count; /* records in the payload: as they are now, or with dry_run would be */
    uint32_t changed;      /* 1: the actions lead to something else than there was */
    uint64_t virtual_size;
    uint64_t freed_clusters;
};

struct result_commit {
    struct result_header header;
    uint32_t resized; /* 1: the base has grown */
    uint32_t empties; /* 1: the top held anything that is gone from it now */
    uint64_t virtual_size;
    uint64_t committed_bytes;    /* of the disk, written to the base */
    uint64_t zeroed_bytes;       /* of the disk, made zeros in the base */
    uint64_t committed_clusters; /* of the base's clusters, or 64 KiB of a raw one */
    uint64_t cleared_clusters;   /* of the top */
    uint32_t complete;           /* 1: all of it was in the base before, as the content ids of vmdk layers say */
    uint32_t reserved;
};

struct result_empty {
    struct result_header header;
    uint64_t cleared_clusters;
};

struct result_rebase {
    struct result_header header;
    uint64_t virtual_size;
    uint64_t copied_bytes; /* of the disk: held by the image now, because the new backing file has other data */
    uint64_t zeroed_bytes; /* likewise, as zeros */
};

struct result_overlay_create {
    struct result_header header;
    uint64_t file_size;
};

struct result_vmdk_info {
    struct result_header header;
    uint64_t virtual_size; /* bytes */
    uint64_t grain_size;   /* bytes */
    uint32_t version;
    uint32_t zeroed_grains; /* 1: it can have them */
    uint32_t content_id;
    uint32_t parent_content_id;
    uint32_t backing_name_length; /* of parentFileNameHint; its format is vmdk */
    uint32_t descriptor_sectors;  /* of its text, which begins with the second sector of the file */
    uint8_t backing_name[1024];
};

#endif
