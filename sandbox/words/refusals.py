# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the refusals of the guest mean in words that all can have, or those that are about snapshots: one entry for each
REFUSAL_ of guest/abi/refusals.h, by its name, which is the error's code as well. What only guests for bitmaps, or for
chains, refuse is in bitmap_refusals.py, chain_refusals.py and vmdk_refusals.py: a managed host is sent what it needs.

Data only; refused.from_refusal() fills it in. The fields of a message are those of refused._fields():
{a} .. {f} are the arguments as numbers, {b_hex} .. {e_hex} the same in hexadecimal, {text} a name out of the image,
{errno} what the system says of argument a, {table} and {target} names of tables, {entry} an entry's place, {image} the
path for a shell. Any other field is a way of advice.py.
"""

from __future__ import annotations

from ..guests._limits import BITMAPS_MAX, SNAPSHOT_ID_MAX, SNAPSHOT_NAME_MAX, SNAPSHOTS_MAX
from .wording import RESTORE, Wording

REPAIR = "{repair}"  # only of what qemu-img 10.0.2 does mend: tests/unit/sandbox/test_advice.py
NEWER = "{newer}"


def _header(message: str) -> Wording:
    return Wording("HeaderError", message)


def _broken(message: str, way: str = RESTORE) -> Wording:
    return Wording("InconsistentImageError", message + " " + way)


WORDINGS: dict[str, Wording] = {
    "bad_call": Wording(
        "GuestProtocolError",
        "The guest does not know this call, so that both sides do not match. {build}",
    ),
    "no_memory": Wording(
        "GuestMemoryError",
        "The metadata wants {a} bytes of guest memory at once, more than there are. {qemu_img}",
    ),
    "read_failed": Wording(
        "ImageReadError",
        "Reading {c} bytes at offset {b} failed: {errno}. {of_errno}",
    ),
    "write_failed": Wording(
        "ImageWriteError",
        "Writing {c} bytes at offset {b} failed: {errno}. {of_errno}",
    ),
    "no_space": Wording(
        "NoSpaceError",
        "There is no room on the file system for {c} bytes at offset {b}. Free some space and run it again.",
    ),
    "not_qcow2": Wording(
        "NotQcow2Error",
        "This is not a qcow2 image. Name one, or state its format where an option does that: it is never guessed.",
    ),
    "version": _header("qcow2 version {a} is not known, only 2 and 3 are. " + NEWER),
    "cluster_size": _header(
        "The header asks for clusters of 2^{a} bytes; 2^9 to 2^21 are possible. " + RESTORE,
    ),
    "header_short": _header("The header says it has {a} bytes, which is too short. " + RESTORE),
    "header_long": _header(
        "The header says it has {a} bytes, which is more than a cluster. " + RESTORE,
    ),
    "backing_offset": _header("The backing file's name lies outside the header. " + RESTORE),
    "backing_name_long": _header("The backing file's name is too long. " + RESTORE),
    "incompatible_features": _header(
        "The image needs features that are not known here: {features}. " + NEWER,
    ),
    "compression_bit_set": _header(
        "The compression type is zlib, but its feature bit is set. " + RESTORE,
    ),
    "compression_bit_clear": _header(
        "The compression type is not zlib, but its feature bit is clear. " + RESTORE,
    ),
    "compression_type": _header("Compression type {a} is not known. " + NEWER),
    "corrupt": _header(
        "The image is marked as corrupt: qemu found contradictions in it. " + REPAIR,
    ),
    "dirty": _header(
        "The image is marked as dirty: whoever wrote to it last did not close it, and refcounts may be wrong. {repair}",
    ),
    "refcount_width": _header(
        "The refcount order is {a}; 0 to 6 are possible. " + RESTORE,
    ),
    "no_refcount_table": _header("There is no refcount table. " + REPAIR),
    "refcount_table_large": _header("The refcount table is over 8 MiB. " + RESTORE),
    "refcount_table_offset": _header(
        "The refcount table's offset is invalid. " + RESTORE,
    ),
    "l1_large": _header("The active L1 table is over 32 MiB. " + RESTORE),
    "l1_offset": _header("The active L1 table's offset is invalid. " + RESTORE),
    "l1_small": _header("The L1 table is too small for the disk. " + RESTORE),
    "snapshot_table_large": _header("There are too many snapshots. " + RESTORE),
    "snapshot_table_offset": _header("The snapshot table's offset is invalid. " + RESTORE),
    "snapshot_extra": _header(
        "Entry {a} of the snapshot table has over 1024 bytes of extra data. {repair}",
    ),
    "snapshot_table_big": _header(
        "The snapshot table is over 64 MiB; {a} snapshots hang over. {repair}",
    ),
    "extension_large": _header("A header extension leaves the header cluster. " + RESTORE),
    "data_file_missing": _header(
        "The image keeps its data in another file, but does not name it. " + RESTORE,
    ),
    "raw_without_data_file": _header(
        "The image promises a raw data file, but has no data file. " + RESTORE,
    ),
    "encryption_method": _header("Encryption method {a} is not known. " + NEWER),
    "no_crypto_header": _header(
        "The image is LUKS-encrypted, but has no LUKS header. " + RESTORE,
    ),
    "bitmaps_extension": _header("The bitmaps are damaged: {bitmaps}. {remove_damaged}"),
    "virtual_size": _header("A disk of {a} bytes is too big for the format. " + RESTORE),
    "extended_l2_cluster": _header(
        "Clusters of 2^{a} bytes are too small for subclusters; 2^14 is the least. " + RESTORE
    ),
    "truncated": _header("The file has {c} bytes, but its {table} at offset {b_hex} ends behind them. {cut_off}"),
    "refcount_too_low": _broken(
        "The cluster at {e_hex} has refcount {d} but {f} references; one is entry {c} of the {table} at {b_hex}.",
        REPAIR,
    ),
    "overlap": _broken(
        "{entry} ({d_hex}) points at the cluster at offset {e_hex}, which is taken already ({target}).",
    ),
    "outside_file": _broken(
        "{entry} ({d_hex}) points at offset {e_hex}, which is outside the file.",
    ),
    "reserved_bits": _broken("{entry} ({d_hex}) has reserved bits set."),
    "unaligned": _broken("{entry} ({d_hex}) points at offset {e_hex}, inside a cluster."),
    "copied_flag": _broken(
        "{entry} ({d_hex}) has a wrong COPIED flag: the cluster at offset {e_hex} has refcount {f}.",
        REPAIR,
    ),
    "subclusters": _broken(
        "{entry} has the subcluster bitmap {d_hex}, which contradicts itself.",
    ),
    "shared_cluster": _broken(
        "{entry} ({d_hex}) maps the cluster at offset {e_hex}, which another entry of the same mapping has too.",
    ),
    "data_file_offset": _broken(
        "{entry} ({d_hex}) points at offset {e_hex} of the external data file, where another part of the disk belongs.",
    ),
    "snapshot_not_found": Wording(
        "SnapshotNotFoundError",
        "There is no snapshot {name} in the image. {list_snapshots}",
    ),
    "too_many_snapshots": Wording(
        "SnapshotError",
        f"The image has {SNAPSHOTS_MAX} snapshots already. {{delete_snapshots}}",
    ),
    "refcount_overflow": Wording(
        "SnapshotError",
        "The refcounts have {a} bits; one more reference to the cluster at offset {b_hex} does not fit. "
        "{delete_snapshots} {widen}",
    ),
    "data_file": Wording(
        "SnapshotError",
        "The image keeps its data in an external file: the format has no internal snapshots for that. Keep a copy "
        "of both files instead.",
    ),
    "has_bitmaps": Wording(
        "SnapshotError",
        "The image has persistent bitmaps ({a}; the first is '{text}'), which would be wrong afterwards. "
        "{remove_bitmaps}",
    ),
    "snapshot_l1_large": Wording(
        "SnapshotError",
        "The snapshot's L1 table is over 32 MiB. " + RESTORE,
    ),
    "snapshot_l1_offset": Wording(
        "SnapshotError",
        "The snapshot's L1 table has an invalid offset. " + RESTORE,
    ),
    "resize_v2": Wording(
        "SnapshotError",
        "The disk has {a} bytes, the snapshot {b}, and a version 2 image with snapshots cannot be resized. {upgrade}",
    ),
    "resize_not_allowed": Wording(
        "SnapshotError",
        "The disk has {a} bytes, the snapshot {b}. {resize_allowed}, if a disk of that size is what you want.",
    ),
    "file_too_big": Wording(
        "SnapshotError",
        "The file would outgrow the largest offset of the format. {convert}",
    ),
    "snapshot_table_full": Wording(
        "SnapshotError",
        "The snapshot table would outgrow 64 MiB. {delete_snapshots}",
    ),
    "name_not_deletable": Wording(
        "SnapshotError",
        f"The snapshot has an id over {SNAPSHOT_ID_MAX} bytes or a name over {SNAPSHOT_NAME_MAX}, which nothing can "
        "select. {convert}",
    ),
}

# enum table
TABLES: dict[str, str] = {
    "header": "header",
    "l1": "active L1 table",
    "l2": "L2 table",
    "refcount_table": "refcount table",
    "refcount_block": "refcount block",
    "snapshot_table": "snapshot table",
    "snapshot_l1": "snapshot's L1 table",
    "data": "data cluster",
    "bitmap_directory": "bitmap directory",
    "bitmap_table": "bitmap table",
    "bitmap_data": "bitmap's data",
    "crypto_header": "encryption header",
    "grain_directory": "grain directory",
    "grain_table": "grain table",
}

OF_BITMAPS = frozenset({"bitmap_directory", "bitmap_table", "bitmap_data"})

# qemu-img's texts for enum bitmaps_fault.
BITMAPS_FAULTS: dict[str, str] = {
    "length": "bitmaps_ext: Invalid extension length",
    "reserved": "bitmaps_ext: Reserved field is not zero",
    "offset": "bitmaps_ext: invalid bitmap directory offset",
    "count": f"bitmaps_ext: Image has {{b}} bitmaps, exceeding the QEMU supported maximum of {BITMAPS_MAX}",
    "directory_size": "bitmaps_ext: bitmap directory size ({b}) exceeds the maximum supported size (67107840)",
    "none": "found bitmaps extension with zero bitmaps",
    "empty_directory": "Requested bitmap directory size is zero",
    "broken": "Broken bitmap directory",
    "more": "More bitmaps found than specified in header extension",
    "less": "Less bitmaps found than specified in header extension",
    "extra": "Bitmap extra data is not supported",
    "entry": "Bitmap '{text}' doesn't satisfy the constraints",
    "table": "Could not read bitmap_table table from image for bitmap '{text}'",
    "data": "Bitmap '{text}' is smaller or larger than the disk needs",
    "outside": "The bitmap directory is outside the file",
}
