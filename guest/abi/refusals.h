/* Why an operation was refused, of the disk that the result names. The comment after a code says what arguments[] and
 * text hold; a, b, c are arguments 0, 1, 2. The host words the message: sandbox/words/refusals.py. Codes are stable:
 * new ones go to the end of their group.
 */
#ifndef AIRLOCK_ABI_REFUSALS_H
#define AIRLOCK_ABI_REFUSALS_H

enum refusal {
    REFUSAL_NONE = 0,

    /* The call itself. */
    REFUSAL_BAD_CALL = 1,     /* the guest does not know the operation or the ABI version */
    REFUSAL_NO_MEMORY = 2,    /* the image needs more guest memory than there is: a bytes wanted */
    REFUSAL_READ_FAILED = 3,  /* a errno, b offset, c length */
    REFUSAL_WRITE_FAILED = 4, /* a errno, b offset, c length; header.modified says how far it got */
    REFUSAL_NO_SPACE = 5,     /* blocks could not be reserved: b offset, c length; mostly before any write */

    /* The header. Wording of qemu-img where it has one: block/qcow2.c of QEMU, qcow2_do_open(). */
    REFUSAL_NOT_QCOW2 = 20,
    REFUSAL_VERSION = 21,      /* a version */
    REFUSAL_CLUSTER_SIZE = 22, /* a cluster_bits */
    REFUSAL_HEADER_SHORT = 23, /* a header_length */
    REFUSAL_HEADER_LONG = 24,  /* a header_length */
    REFUSAL_BACKING_OFFSET = 25,
    REFUSAL_BACKING_NAME_LONG = 26,
    REFUSAL_INCOMPATIBLE_FEATURES = 27, /* b unknown bits, a those without a name; text: names from the feature table */
    REFUSAL_COMPRESSION_BIT_SET = 28,   /* zlib, but the incompatible bit is set */
    REFUSAL_COMPRESSION_BIT_CLEAR = 29, /* zstd, but the incompatible bit is clear */
    REFUSAL_COMPRESSION_TYPE = 30,      /* a compression type */
    REFUSAL_CORRUPT = 31,               /* the corrupt bit is set */
    REFUSAL_DIRTY = 32,                 /* the dirty bit is set: refcounts may lie */
    REFUSAL_REFCOUNT_WIDTH = 33,        /* a refcount_order */
    REFUSAL_NO_REFCOUNT_TABLE = 34,
    REFUSAL_REFCOUNT_TABLE_LARGE = 35,
    REFUSAL_REFCOUNT_TABLE_OFFSET = 36,
    REFUSAL_L1_LARGE = 37,
    REFUSAL_L1_OFFSET = 38,
    REFUSAL_L1_SMALL = 39,
    REFUSAL_SNAPSHOT_TABLE_LARGE = 40,
    REFUSAL_SNAPSHOT_TABLE_OFFSET = 41,
    REFUSAL_SNAPSHOT_EXTRA = 42,     /* a index of the table entry */
    REFUSAL_SNAPSHOT_TABLE_BIG = 43, /* over 64 MiB: a snapshots that hang over */
    REFUSAL_EXTENSION_LARGE = 44,
    REFUSAL_DATA_FILE_MISSING = 45, /* the data-file bit without a name */
    REFUSAL_RAW_WITHOUT_DATA_FILE = 46,
    REFUSAL_ENCRYPTION_METHOD = 47, /* a method */
    REFUSAL_NO_CRYPTO_HEADER = 48,
    REFUSAL_BITMAPS_EXTENSION = 49,   /* a which check, enum bitmaps_fault */
    REFUSAL_VIRTUAL_SIZE = 50,        /* a bytes: too big for the format */
    REFUSAL_EXTENDED_L2_CLUSTER = 51, /* a cluster_bits too small for subclusters */
    REFUSAL_TRUNCATED = 52,           /* a table (enum table), b offset, c file length: it ends behind the file */

    /* Verification: references against refcounts. a table (enum table), b its offset in the file,
     * c entry index in it, d the entry, e host offset of the cluster meant, f a count. */
    REFUSAL_REFCOUNT_TOO_LOW = 80, /* f references; d refcount */
    REFUSAL_OVERLAP = 81,          /* the cluster is in use as table f (enum table) already */
    REFUSAL_OUTSIDE_FILE = 82,
    REFUSAL_RESERVED_BITS = 83,
    REFUSAL_UNALIGNED = 84,
    REFUSAL_COPIED_FLAG = 85,      /* f refcount; flag wrong in the entry d */
    REFUSAL_SUBCLUSTERS = 86,      /* d the subcluster bitmap that contradicts itself */
    REFUSAL_SHARED_CLUSTER = 87,   /* two guest clusters of one mapping name the same host cluster */
    REFUSAL_DATA_FILE_OFFSET = 88, /* in an external data file a cluster is elsewhere than in the disk */

    /* Snapshots. */
    REFUSAL_SNAPSHOT_NOT_FOUND = 120,
    REFUSAL_TOO_MANY_SNAPSHOTS = 121,
    REFUSAL_REFCOUNT_OVERFLOW = 122, /* a refcount bits, b host offset: one more reference does not fit */
    REFUSAL_DATA_FILE = 123,         /* external data file: no internal snapshots */
    REFUSAL_HAS_BITMAPS = 124,       /* apply: text is the first bitmap's name, a how many */
    REFUSAL_SNAPSHOT_L1_LARGE = 125,
    REFUSAL_SNAPSHOT_L1_OFFSET = 126,
    REFUSAL_RESIZE_V2 = 127,           /* apply: version 2 cannot be resized: a current size, b the snapshot's */
    REFUSAL_RESIZE_NOT_ALLOWED = 128,  /* a current size, b the snapshot's */
    REFUSAL_FILE_TOO_BIG = 129,        /* an allocation would pass the largest host offset of the format */
    REFUSAL_SNAPSHOT_TABLE_FULL = 130, /* the new table would pass 64 MiB */
    REFUSAL_NAME_NOT_DELETABLE = 131,  /* id or name longer than qemu-img's limits: qemu-img cannot select it */

    /* Bitmaps. f is the index of the action that failed; text the name of the bitmap that is meant, which may be a
     * merge's source; header.disk says in which image it was looked for. Wording of qemu-img where it has one:
     * block/monitor/bitmap-qmp-cmds.c, block/qcow2-bitmap.c, block/dirty-bitmap.c of QEMU. */
    REFUSAL_BITMAP_NAME_EMPTY = 160,
    REFUSAL_BITMAP_GRANULARITY = 161, /* a bytes: not a power of two, or under 512 */
    REFUSAL_BITMAP_EXISTS = 162,
    REFUSAL_BITMAP_VERSION_2 = 163,      /* version 2 has no place for bitmaps */
    REFUSAL_BITMAP_TOO_LARGE = 164,      /* a granularity, b bytes that it would take */
    REFUSAL_BITMAP_NAME_LONG = 165,      /* a bytes */
    REFUSAL_TOO_MANY_BITMAPS = 166,      /* there are 65535 */
    REFUSAL_BITMAP_DIRECTORY_FULL = 167, /* a bytes that it would need */
    REFUSAL_BITMAP_NOT_FOUND = 168,      /* */
    REFUSAL_BITMAP_INCONSISTENT = 169,   /* it can only be removed */
    REFUSAL_BITMAP_SIZES = 170,          /* merge: a size of this disk, b of the source's */
    REFUSAL_BITMAP_AMBIGUOUS = 171,      /* a bitmaps have this name: only removing all of them is possible */
    REFUSAL_BITMAP_HEADER_FULL = 172,    /* no room for the extension in the first cluster */
    REFUSAL_BITMAP_EMPTY_DISK = 173,     /* a disk of no bytes has no bits */
    REFUSAL_BITMAPS_OVERLAP = 174,       /* bitmaps claim more clusters than the file has: a claimed, b there */

    /* Chains. header.disk says which image is meant. */
    REFUSAL_ENCRYPTED = 200,
    REFUSAL_COMPRESSED_CLUSTER = 201, /* a L2 entry, b offset: it does not inflate to a cluster */
    REFUSAL_BASE_RESIZE = 202,        /* a bytes of the base, b of the top: growing was not allowed */
    REFUSAL_BASE_RESIZE_V2 = 203,     /* the same, and it has snapshots */
    REFUSAL_BACKING_NAME_ROOM = 204,  /* no room for the backing file's name in the first cluster */
    REFUSAL_FILE_NOT_EMPTY = 205,     /* a bytes: a new image wants an empty file */
    REFUSAL_COMPRESS_DATA_FILE = 206, /* no cluster of an external data file can be compressed */
    REFUSAL_BACKING_RAW_DATA = 207,   /* a raw data file is the whole disk, and would not be any more */

    /* Images of the format vmdk: block/vmdk.c of QEMU. */
    REFUSAL_NOT_VMDK = 240,
    REFUSAL_VMDK_SUBFORMAT = 241,      /* a enum vmdk_subformat; text: b bytes of type, and the first file named */
    REFUSAL_VMDK_VERSION = 242,        /* a version */
    REFUSAL_VMDK_READ_ONLY = 243,      /* version 3 */
    REFUSAL_VMDK_HEADER = 244,         /* a enum vmdk_fault, b the field */
    REFUSAL_VMDK_DESCRIPTOR = 245,     /* a enum vmdk_line; text: a part of that line */
    REFUSAL_VMDK_EXTENT = 246,         /* b sectors of the descriptor; text: the name, not of a file beside this one */
    REFUSAL_VMDK_EXTENT_SIZE = 247,    /* a sectors of the header, b of the descriptor */
    REFUSAL_VMDK_OUTSIDE = 248,        /* an entry names what is not in the file; arguments as for a verification */
    REFUSAL_VMDK_OVERLAP = 249,        /* an entry names what is in use already; likewise */
    REFUSAL_VMDK_NO_TABLE = 250,       /* a grain table is not there; likewise */
    REFUSAL_VMDK_PARENT_CHANGED = 251, /* a content id that is recorded, b the parent's; c sectors of the descriptor */
    REFUSAL_VMDK_FULL = 252,           /* a bytes of the file, b of what was to be added */
    REFUSAL_BASE_VMDK_RESIZE = 253     /* a bytes of the base, b of the top: a vmdk base does not grow */
};

/* The tables that a refusal can point at. */
enum table {
    TABLE_HEADER = 1,
    TABLE_L1, /* of the active disk */
    TABLE_L2,
    TABLE_REFCOUNT_TABLE,
    TABLE_REFCOUNT_BLOCK,
    TABLE_SNAPSHOT_TABLE,
    TABLE_SNAPSHOT_L1,
    TABLE_DATA, /* a data cluster, as the target of a reference */
    TABLE_BITMAP_DIRECTORY,
    TABLE_BITMAP_TABLE,
    TABLE_BITMAP_DATA,
    TABLE_CRYPTO_HEADER,
    TABLE_GRAIN_DIRECTORY,
    TABLE_GRAIN_TABLE
};

/* What is no monolithicSparse image. */
enum vmdk_subformat {
    VMDK_OTHER_TYPE = 1,
    VMDK_OTHER_EXTENT,     /* the type is that of its extent */
    VMDK_COMPRESSED,       /* streamOptimized */
    VMDK_DIRECTORY_AT_END, /* as programs that cannot seek write it */
    VMDK_NO_DESCRIPTOR,    /* one extent of several */
    VMDK_ALONE,            /* a descriptor by itself: the data is in files that it names */
    VMDK_COWD              /* vmfsSparse */
};

enum vmdk_fault {
    VMDK_NEWLINES = 1, /* a program has converted the ends of lines */
    VMDK_CAPACITY,
    VMDK_GRAIN_SIZE,
    VMDK_TABLE_ENTRIES,
    VMDK_TABLES, /* too many */
    VMDK_DESCRIPTOR_PLACE,
    VMDK_DESCRIPTOR_SIZE,
    VMDK_DIRECTORY, /* outside the file; the following, too */
    VMDK_REDUNDANT_DIRECTORY,
    VMDK_DATA
};

enum vmdk_line {
    VMDK_LINE_END = 1, /* the text does not end */
    VMDK_LINE_TYPE,    /* createType is not there, or has no quotation marks */
    VMDK_LINE_CID,
    VMDK_LINE_PARENT,
    VMDK_LINE_EXTENT,
    VMDK_LINE_EXTENTS, /* more than one */
    VMDK_LINE_TWICE,
    VMDK_LINE_HIDDEN /* QEMU would find the key where it does not begin a line */
};

enum bitmaps_fault {
    BITMAPS_SOUND = 0,
    BITMAPS_LENGTH = 1,      /* Invalid extension length */
    BITMAPS_RESERVED,        /* Reserved field is not zero */
    BITMAPS_OFFSET,          /* invalid bitmap directory offset */
    BITMAPS_COUNT,           /* more than 65535: b how many */
    BITMAPS_DIRECTORY_SIZE,  /* b bytes */
    BITMAPS_NONE,            /* zero bitmaps */
    BITMAPS_EMPTY_DIRECTORY, /* Requested bitmap directory size is zero */
    BITMAPS_BROKEN,          /* Broken bitmap directory */
    BITMAPS_MORE,            /* More bitmaps found than specified in header extension */
    BITMAPS_LESS,
    BITMAPS_EXTRA,  /* Bitmap extra data is not supported */
    BITMAPS_ENTRY,  /* text: the bitmap's name; it does not satisfy the constraints */
    BITMAPS_TABLE,  /* text: the bitmap's name; its table could not be read */
    BITMAPS_DATA,   /* text: the bitmap's name; its table has another size than the disk needs */
    BITMAPS_OUTSIDE /* the directory is not all in the file */
};

#endif
