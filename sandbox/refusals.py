# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each refusal of the guest means in words: one entry for each code of guest/abi/refusals.h.

Data only; refused.from_refusal() fills it in. The fields of both texts are those of refused._fields():
{a} .. {f} are the arguments as numbers, {b_hex} .. {e_hex} the same in hexadecimal, {text} a name out of the image,
{errno} what the system says of argument a, {table} and {target} names of tables, {entry} an entry's place, {image} the
path for a shell, {file} the path as it was given, {bitmap} the bitmap that is meant, as it was given. Any other field
is a way of advice.py.
"""

from __future__ import annotations

from .vmdk_refusals import VMDK_WORDINGS
from .wording import APPLY, BITMAP, COMMIT, CREATE, DELETE, OPEN, REBASE, RESTORE, Wording

__all__ = ["APPLY", "BITMAP", "BITMAP_CODES", "COMMIT", "OPEN", "REBASE", "WORDINGS", "Wording"]

# Those that are about one action of a list on a bitmap; argument f is its index.
BITMAP_CODES = range(160, 200)

REPAIR = "{repair}"  # only of what qemu-img 10.0.2 does mend: tests/unit/sandbox/test_advice.py
NEWER = "{newer}"


def _header(code: str, message: str, qemu: str = "") -> Wording:
    return Wording(code, "HeaderError", message, {OPEN: qemu} if qemu else {})


def _broken(code: str, message: str, way: str = RESTORE) -> Wording:
    return Wording(code, "InconsistentImageError", message + " " + way)


def _bitmap(code: str, message: str, qemu: str = "", kind: str = "BitmapError") -> Wording:
    return Wording(code, kind, message, {BITMAP: qemu} if qemu else {})


def _not_stored(code: str, message: str, qemu: str) -> Wording:
    # qemu names a node of its block graph here, by a number that it draws.
    return _bitmap(code, message, "Can't make bitmap '{bitmap}' persistent in '{file}': " + qemu)


def _each(text: str) -> dict[str, str]:
    return {CREATE: text, APPLY: "Failed to load snapshot: " + text, DELETE: text, COMMIT: text, REBASE: text}


WORDINGS: dict[int, Wording] = {
    1: Wording(
        "bad_call",
        "GuestProtocolError",
        "The guest does not know this call. Run 'make build', so that both sides match.",
    ),
    2: Wording(
        "no_memory",
        "GuestMemoryError",
        "The metadata wants {a} bytes of guest memory at once, more than there are. {qemu_img}",
    ),
    3: Wording(
        "read_failed",
        "ImageReadError",
        "Reading {c} bytes at offset {b} failed: {errno}. {of_errno}",
        _each("{errno}"),
    ),
    4: Wording(
        "write_failed",
        "ImageWriteError",
        "Writing {c} bytes at offset {b} failed: {errno}. {of_errno}",
        _each("{errno}"),
    ),
    5: Wording(
        "no_space",
        "NoSpaceError",
        "There is no room on the file system for {c} bytes at offset {b}. Free some space and run it again.",
        _each("No space left on device"),
    ),
    20: Wording(
        "not_qcow2",
        "NotQcow2Error",
        "This is not a qcow2 image. Name one, or state its format where an option does that: it is never guessed.",
        {OPEN: "Image is not in qcow2 format"},
    ),
    21: _header(
        "version", "qcow2 version {a} is not known, only 2 and 3 are. " + NEWER, "Unsupported qcow2 version {a}"
    ),
    22: _header(
        "cluster_size",
        "The header asks for clusters of 2^{a} bytes; 2^9 to 2^21 are possible. " + RESTORE,
        "Unsupported cluster size: 2^{a}",
    ),
    23: _header(
        "header_short", "The header says it has {a} bytes, which is too short. " + RESTORE, "qcow2 header too short"
    ),
    24: _header(
        "header_long",
        "The header says it has {a} bytes, which is more than a cluster. " + RESTORE,
        "qcow2 header exceeds cluster size",
    ),
    25: _header(
        "backing_offset", "The backing file's name lies outside the header. " + RESTORE, "Invalid backing file offset"
    ),
    26: _header("backing_name_long", "The backing file's name is too long. " + RESTORE, "Backing file name too long"),
    27: _header(
        "incompatible_features",
        "The image needs features that are not known here: {features}. " + NEWER,
        "Unsupported qcow2 feature(s): {features}",
    ),
    28: _header(
        "compression_bit_set",
        "The compression type is zlib, but its feature bit is set. " + RESTORE,
        "qcow2: Compression type incompatible feature bit must not be set",
    ),
    29: _header(
        "compression_bit_clear",
        "The compression type is not zlib, but its feature bit is clear. " + RESTORE,
        "qcow2: Compression type incompatible feature bit must be set",
    ),
    30: _header(
        "compression_type", "Compression type {a} is not known. " + NEWER, "qcow2: unknown compression type: {a}"
    ),
    31: _header(
        "corrupt",
        "The image is marked as corrupt: qemu found contradictions in it. " + REPAIR,
        "qcow2: Image is corrupt; cannot be opened read/write",
    ),
    32: _header(
        "dirty",
        "The image is marked as dirty: whoever wrote to it last did not close it, and refcounts may be wrong. {repair}",
    ),
    33: _header(
        "refcount_width",
        "The refcount order is {a}; 0 to 6 are possible. " + RESTORE,
        "Reference count entry width too large; may not exceed 64 bits",
    ),
    34: _header(
        "no_refcount_table", "There is no refcount table. " + REPAIR, "Image does not contain a reference count table"
    ),
    35: _header(
        "refcount_table_large", "The refcount table is over 8 MiB. " + RESTORE, "Reference count table too large"
    ),
    36: _header(
        "refcount_table_offset",
        "The refcount table's offset is invalid. " + RESTORE,
        "Reference count table offset invalid",
    ),
    37: _header("l1_large", "The active L1 table is over 32 MiB. " + RESTORE, "Active L1 table too large"),
    38: _header("l1_offset", "The active L1 table's offset is invalid. " + RESTORE, "Active L1 table offset invalid"),
    39: _header("l1_small", "The L1 table is too small for the disk. " + RESTORE, "L1 table is too small"),
    40: _header("snapshot_table_large", "There are too many snapshots. " + RESTORE, "Snapshot table too large"),
    41: _header(
        "snapshot_table_offset", "The snapshot table's offset is invalid. " + RESTORE, "Snapshot table offset invalid"
    ),
    42: _header(
        "snapshot_extra",
        "Entry {a} of the snapshot table has over 1024 bytes of extra data. {repair}",
        "Too much extra metadata in snapshot table entry {a}\n"
        "You can force-remove this extra metadata with qemu-img check -r all",
    ),
    43: _header(
        "snapshot_table_big",
        "The snapshot table is over 64 MiB; {a} snapshots hang over. {repair}",
        "Snapshot table is too big\nYou can force-remove all {a} overhanging snapshots with qemu-img check -r all",
    ),
    44: _header(
        "extension_large", "A header extension leaves the header cluster. " + RESTORE, "Header extension too large"
    ),
    45: _header(
        "data_file_missing",
        "The image keeps its data in another file, but does not name it. " + RESTORE,
        "'data-file' is required for this image",
    ),
    46: _header(
        "raw_without_data_file",
        "The image promises a raw data file, but has no data file. " + RESTORE,
        "data-file-raw requires a data file",
    ),
    47: _header(
        "encryption_method", "Encryption method {a} is not known. " + NEWER, "Unsupported encryption method {a}"
    ),
    48: _header(
        "no_crypto_header",
        "The image is LUKS-encrypted, but has no LUKS header. " + RESTORE,
        "Missing CRYPTO header for crypt method 2",
    ),
    49: _header("bitmaps_extension", "The bitmaps are damaged: {bitmaps}. {remove_damaged}", "{bitmaps}"),
    50: _header("virtual_size", "A disk of {a} bytes is too big for the format. " + RESTORE, "Image is too big"),
    51: _header(
        "extended_l2_cluster", "Clusters of 2^{a} bytes are too small for subclusters; 2^14 is the least. " + RESTORE
    ),
    52: _header("truncated", "The file has {c} bytes, but its {table} at offset {b_hex} ends behind them. {cut_off}"),
    80: _broken(
        "refcount_too_low",
        "The cluster at {e_hex} has refcount {d} but {f} references; one is entry {c} of the {table} at {b_hex}.",
        REPAIR,
    ),
    81: _broken(
        "overlap",
        "{entry} ({d_hex}) points at the cluster at offset {e_hex}, which is taken already ({target}).",
    ),
    82: _broken(
        "outside_file",
        "{entry} ({d_hex}) points at offset {e_hex}, which is outside the file.",
    ),
    83: _broken("reserved_bits", "{entry} ({d_hex}) has reserved bits set."),
    84: _broken("unaligned", "{entry} ({d_hex}) points at offset {e_hex}, inside a cluster."),
    85: _broken(
        "copied_flag",
        "{entry} ({d_hex}) has a wrong COPIED flag: the cluster at offset {e_hex} has refcount {f}.",
        REPAIR,
    ),
    86: _broken(
        "subclusters",
        "{entry} has the subcluster bitmap {d_hex}, which contradicts itself.",
    ),
    87: _broken(
        "shared_cluster",
        "{entry} ({d_hex}) maps the cluster at offset {e_hex}, which another entry of the same mapping has too.",
    ),
    88: _broken(
        "data_file_offset",
        "{entry} ({d_hex}) points at offset {e_hex} of the external data file, where another part of the disk belongs.",
    ),
    120: Wording(
        "snapshot_not_found",
        "SnapshotNotFoundError",
        "There is no snapshot {name} in the image. {list_snapshots}",
        {DELETE: "snapshot not found", APPLY: "Failed to load snapshot: No such file or directory"},
    ),
    121: Wording(
        "too_many_snapshots",
        "SnapshotError",
        "The image has 65536 snapshots already. {delete_snapshots}",
        {CREATE: "File too large"},
    ),
    122: Wording(
        "refcount_overflow",
        "SnapshotError",
        "The refcounts have {a} bits; one more reference to the cluster at offset {b_hex} does not fit. "
        "{delete_snapshots} {widen}",
        {CREATE: "Invalid argument\n{message}", APPLY: "Failed to load snapshot: Invalid argument\n{message}"},
    ),
    123: Wording(
        "data_file",
        "SnapshotError",
        "The image keeps its data in an external file: the format has no internal snapshots for that. Keep a copy "
        "of both files instead.",
        {
            CREATE: "Operation not supported",
            APPLY: "Failed to load snapshot: Operation not supported",
            DELETE: "snapshot not found",
        },
    ),
    124: Wording(
        "has_bitmaps",
        "SnapshotError",
        "The image has persistent bitmaps ({a}; the first is '{text}'), which would be wrong afterwards. "
        "{remove_bitmaps}",
        {APPLY: "Device has active dirty bitmaps"},
    ),
    125: Wording(
        "snapshot_l1_large",
        "SnapshotError",
        "The snapshot's L1 table is over 32 MiB. " + RESTORE,
        {
            DELETE: "Snapshot L1 table too large",
            APPLY: "Snapshot L1 table too large|Failed to load snapshot: File too large",
        },
    ),
    126: Wording(
        "snapshot_l1_offset",
        "SnapshotError",
        "The snapshot's L1 table has an invalid offset. " + RESTORE,
        {
            DELETE: "Snapshot L1 table offset invalid",
            APPLY: "Snapshot L1 table offset invalid|Failed to load snapshot: Invalid argument",
        },
    ),
    127: Wording(
        "resize_v2",
        "SnapshotError",
        "The disk has {a} bytes, the snapshot {b}, and a version 2 image with snapshots cannot be resized. {upgrade}",
        {
            APPLY: "Can't resize a v2 image which has snapshots|Failed to load snapshot: Operation not supported",
        },
    ),
    128: Wording(
        "resize_not_allowed",
        "SnapshotError",
        "The disk has {a} bytes, the snapshot {b}. {resize_allowed}, if a disk of that size is what you want.",
    ),
    129: Wording(
        "file_too_big",
        "SnapshotError",
        "The file would outgrow the largest offset of the format. {convert}",
        _each("File too large"),
    ),
    130: Wording(
        "snapshot_table_full",
        "SnapshotError",
        "The snapshot table would outgrow 64 MiB. {delete_snapshots}",
        {CREATE: "File too large"},
    ),
    131: Wording(
        "name_not_deletable",
        "SnapshotError",
        "The snapshot has an id over 127 bytes or a name over 255, which nothing can select. {convert}",
        {DELETE: "Can't find the snapshot"},
    ),
    160: _bitmap("bitmap_name_empty", "A bitmap's name cannot be empty. Give it one.", "Bitmap name cannot be empty"),
    161: _bitmap(
        "bitmap_granularity",
        "A granularity of {a} bytes is not possible. Take a power of two from 512 to 2147483648.",
        "Granularity must be power of 2 and at least 512",
    ),
    162: _bitmap(
        "bitmap_exists",
        "There is a bitmap '{text}' already. Take another name, or remove that one first.",
        "Bitmap already exists: {bitmap}",
    ),
    163: _not_stored(
        "bitmap_version_2",
        "A version 2 image has no place for bitmaps. {upgrade}",
        "Cannot store dirty bitmaps in qcow2 v2 files",
    ),
    164: _not_stored(
        "bitmap_too_large",
        "With a granularity of {a} bytes the bitmap would take {b} bytes, more than there may be. Take a larger one.",
        "Too much space will be occupied by the bitmap. Use larger granularity",
    ),
    165: _not_stored(
        "bitmap_name_long",
        "A bitmap's name has at most 1023 bytes. Shorten it.",
        "Name length exceeds maximum (1023 characters)",
    ),
    166: _not_stored(
        "too_many_bitmaps",
        "The image has 65535 bitmaps already. {remove_bitmaps}",
        "Maximum number of persistent bitmaps is already reached",
    ),
    167: _not_stored(
        "bitmap_directory_full",
        "The bitmap directory would have {a} bytes, more than there may be. {remove_bitmaps}",
        "Not enough space in the bitmap directory",
    ),
    168: _bitmap(
        "bitmap_not_found",
        "There is no bitmap '{text}' in the image. {list_bitmaps}",
        "Dirty bitmap '{bitmap}' not found",
        "BitmapNotFoundError",
    ),
    169: _bitmap(
        "bitmap_inconsistent",
        "Bitmap '{text}' is inconsistent: whoever used it last did not store it, or a program that knows no bitmaps "
        "has written to the image. {only_removed}",
        "Bitmap '{bitmap}' is inconsistent and cannot be used\n"
        "Try block-dirty-bitmap-remove to delete this bitmap from disk",
    ),
    170: _bitmap(
        "bitmap_sizes",
        "Bitmap '{text}' is of a disk of {b} bytes, this disk has {a}: they cannot be merged. Name an image of the "
        "same size.",
        "Bitmaps are of different sizes (destination size is {a}, source size is {b}) and can't be merged",
    ),
    171: _bitmap(
        "bitmap_ambiguous",
        "{a} bitmaps have the name '{text}', and are one to all that names it. {only_removed}",
    ),
    172: _bitmap(
        "bitmap_header_full",
        "The header's cluster has no room for the bitmaps extension. Name its backing file by a shorter path, "
        "if it has one. {convert}",
    ),
    173: _bitmap("bitmap_empty_disk", "A disk of no bytes has nothing that a bitmap could note. {resize}"),
    174: _bitmap(
        "bitmaps_overlap",
        "The bitmaps claim {a} clusters, and the file has {b}: some are claimed twice. {remove_damaged}",
    ),
    200: Wording(
        "encrypted",
        "CommitError",
        "The image is encrypted, and no keys are taken here. {qemu_img}",
    ),
    201: Wording(
        "compressed_cluster",
        "CommitError",
        "The compressed cluster at disk offset {b_hex} (entry {a_hex}) cannot be inflated to a whole cluster: the data "
        "is lost. Restore the image from a backup.",
        {COMMIT: "Input/output error"},
    ),
    202: Wording(
        "base_resize",
        "CommitError",
        "The base has a disk of {a} bytes, the top one of {b}. {resize_allowed}, if "
        "nothing else stands on the base that must keep its size.",
    ),
    203: Wording(
        "base_resize_v2",
        "CommitError",
        "The base has a disk of {a} bytes, the top one of {b}, and a version 2 image with snapshots cannot be resized. "
        "{upgrade}",
        {COMMIT: "Operation not supported"},
    ),
    204: Wording(
        "backing_name_room",
        "RebaseError",
        "There is no room in the first cluster for the name {name}. Name the backing file by a shorter path.",
        {REBASE: "No space left in the file header"},
    ),
    205: Wording(
        "file_not_empty",
        "RebaseError",
        "The file that was to become a new overlay has {a} bytes already. Look what else writes in its directory.",
    ),
    206: Wording(
        "compress_data_file",
        "RebaseError",
        "The image keeps its clusters in an external data file, where none can be compressed. {not_compressed}",
        {REBASE: "Operation not supported"},
    ),
    207: Wording(
        "backing_raw_data",
        "RebaseError",
        "The image promises that its external data file is the whole disk (data_file_raw), which would not be so with "
        "a backing file. Make an overlay of the image instead, or one of the backing file without data_file_raw.",
        {REBASE: "Invalid argument"},
    ),
    **VMDK_WORDINGS,
}

TABLES: dict[int, str] = {
    1: "header",
    2: "active L1 table",
    3: "L2 table",
    4: "refcount table",
    5: "refcount block",
    6: "snapshot table",
    7: "snapshot's L1 table",
    8: "data cluster",
    9: "bitmap directory",
    10: "bitmap table",
    11: "bitmap's data",
    12: "encryption header",
    13: "grain directory",
    14: "grain table",
}

OF_BITMAPS = frozenset({9, 10, 11})

# qemu-img's texts for enum bitmaps_fault.
BITMAPS_FAULTS: dict[int, str] = {
    1: "bitmaps_ext: Invalid extension length",
    2: "bitmaps_ext: Reserved field is not zero",
    3: "bitmaps_ext: invalid bitmap directory offset",
    4: "bitmaps_ext: Image has {b} bitmaps, exceeding the QEMU supported maximum of 65535",
    5: "bitmaps_ext: bitmap directory size ({b}) exceeds the maximum supported size (67107840)",
    6: "found bitmaps extension with zero bitmaps",
    7: "Requested bitmap directory size is zero",
    8: "Broken bitmap directory",
    9: "More bitmaps found than specified in header extension",
    10: "Less bitmaps found than specified in header extension",
    11: "Bitmap extra data is not supported",
    12: "Bitmap '{text}' doesn't satisfy the constraints",
    13: "Could not read bitmap_table table from image for bitmap '{text}'",
    14: "Bitmap '{text}' is smaller or larger than the disk needs",
    15: "The bitmap directory is outside the file",
}
