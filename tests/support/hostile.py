# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hostile images: every known way to lie in a qcow2 file that a snapshot operation could meet.

Each row changes some bytes of a sound image and says which operations have to be refused. The rest has to do no harm.
Offsets in bytes, entries as they stand on disk.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from sandbox import errors, operations
from tests.waiting import PATIENCE

from . import qemu
from .patch import Entry, Patch
from .qcow2 import COMPRESSED, COPIED, OFFSET_MASK, Qcow2

MEGA = 1 << 20
CLUSTER = 4096

NOTHING: frozenset[str] = frozenset()
CHANGES = frozenset({"create", "apply", "delete"})
EVERYTHING = CHANGES | {"list"}
APPLY, DELETE, LIST = frozenset({"apply"}), frozenset({"delete"}), frozenset({"list"})


def sound_image(path: str, options: str = "") -> None:
    """6 MiB in 4 KiB clusters; data, a compressed cluster, two snapshots s1 and s2 that share some of it."""
    qemu.create(path, 6 * MEGA, options if "cluster_size" in options else f"cluster_size={CLUSTER}{options}")
    qemu.io(path, "write -P 1 0 32k", "write -P 2 1M 8k", "write -c -P 3 512k 4k", "write -P 7 3M 4k")
    qemu.snapshot(path, "-c", "s1")
    qemu.io(path, "write -P 4 0 8k", "write -z 16k 4k")
    qemu.snapshot(path, "-c", "s2")
    qemu.io(path, "write -P 5 8k 8k", "write -P 6 1536k 4k")


@dataclass(frozen=True)
class Row:
    """One lie. `number`: the row of the taxonomy. `refused`: operations that must not succeed. `options`: of the sound
    image."""

    number: int
    lie: Callable[[Patch], None]
    refused: frozenset[str] = CHANGES
    options: str = ""


LIMITS = operations.Limits(seconds=PATIENCE)


def operate(path: str, verb: str) -> errors.AirlockError | None:
    """One operation (create "new"; apply, delete "s1"; list) on an image; the error if it was refused."""
    try:
        with operations.Image.open(path, writable=verb != "list") as image:
            if verb == "list":
                operations.list_snapshots(image, LIMITS)
            elif verb == "create":
                operations.create_snapshot(image, b"new", qemu.DATE, LIMITS)
            elif verb == "apply":
                operations.apply_snapshot(image, operations.Selector.by_id_or_name(b"s1"), True, LIMITS)
            else:
                operations.delete_snapshot(image, operations.Selector.by_name(b"s1"), LIMITS)
    except errors.AirlockError as error:
        return error
    return None


def check_refusal(error: errors.AirlockError) -> None:
    """Asserts that it is a refusal and no accident, and that its message can be shown to anybody."""
    if isinstance(error, (errors.GuestCrashError, errors.GuestProtocolError, errors.TimeLimitError)):
        raise AssertionError(f"no refusal: {error!r}")
    if error.modified or not error.message.isprintable() or not 0 < len(error.message.encode()) <= 4096:
        raise AssertionError(f"modified {error.modified}, message {error.message!r}")


def header(**fields: int) -> Callable[[Patch], None]:
    return lambda patch: patch.header(**fields)


def _first(image: Qcow2) -> tuple[int, int]:
    """The active L1 entry 0 and its first L2 entry."""
    return image.active_l1()[0], image.l2(image.active_l1()[0])[0][0]


def l1_entry(make: Callable[[Qcow2], int], index: int = 0) -> Callable[[Patch], None]:
    def lie(patch: Patch) -> None:
        with patch.image() as image:
            value = make(image)
        patch.l1(index, value)

    return lie


def l2_entry(make: Callable[[Qcow2], int], index: int = 2, bitmap: int | None = None) -> Callable[[Patch], None]:
    def lie(patch: Patch) -> None:
        with patch.image() as image:
            value = make(image)
        patch.l2(0, index, value, bitmap)

    return lie


def backing(name: bytes, file_format: bytes = b"") -> Callable[[Patch], None]:
    """Names a backing file, without asking whether there is one."""

    def lie(patch: Patch) -> None:
        data = b""
        if file_format:
            data = struct.pack(">II", 0xE2792ACA, len(file_format)) + file_format.ljust(8, b"\0")
        data += bytes(8)
        patch.write(112, data + name)
        patch.header(backing_file_offset=112 + len(data), backing_file_size=len(name))

    return lie


def data_file(name: bytes, bits: int = 4) -> Callable[[Patch], None]:
    def lie(patch: Patch) -> None:
        patch.write(112, struct.pack(">II", 0x44415441, len(name)) + name + bytes(16))
        patch.header(incompatible_features=bits)

    return lie


def extension(data: bytes) -> Callable[[Patch], None]:
    return lambda patch: patch.write(112, data)


def snapshot_field(offset: int, data: bytes, index: int = 0) -> Callable[[Patch], None]:
    """Overwrites bytes of an entry of the snapshot table."""

    def lie(patch: Patch) -> None:
        with patch.image() as image:
            place = image.snapshots()[index].offset + offset
        patch.write(place, data)

    return lie


def snapshot_l1(make: Callable[[Qcow2], int]) -> Callable[[Patch], None]:
    def lie(patch: Patch) -> None:
        with patch.image() as image:
            place, value = image.snapshots()[0].l1_offset, make(image)
        patch.u64(place, value)

    return lie


def refcounts(value: int, *kinds: str) -> Callable[[Patch], None]:
    """Sets the refcount of every cluster that is referred to as one of these kinds."""

    def lie(patch: Patch) -> None:
        with patch.image() as image:
            clusters = {c for where, kind, _unused in image.references() if not kinds or kind in kinds for c in where}
        for cluster in clusters:
            patch.refcount(cluster, value)

    return lie


def table_entry(index: int, make: Callable[[Qcow2], int]) -> Callable[[Patch], None]:
    def lie(patch: Patch) -> None:
        with patch.image() as image:
            place, value = image.header["refcount_table_offset"] + index * 8, make(image)
        patch.u64(place, value)

    return lie


def _huge_l1(patch: Patch) -> None:
    """4 Mi entries, all of them the same L2 table."""
    with patch.image() as image:
        entry = _first(image)[0]
    place = (patch.length + CLUSTER - 1) // CLUSTER * CLUSTER
    patch.write(place, struct.pack(">Q", entry) * (4 << 20))
    patch.header(l1_size=4 << 20, l1_table_offset=place)


def _huge_refcount_table(patch: Patch) -> None:
    """8 MiB of table, every entry the same block."""
    with patch.image() as image:
        block = image.refcount_blocks()[0]
    place = (patch.length + CLUSTER - 1) // CLUSTER * CLUSTER
    patch.write(place, struct.pack(">Q", block) * MEGA)
    patch.header(refcount_table_offset=place, refcount_table_clusters=8 * MEGA // CLUSTER)


def _far_l1(patch: Patch) -> None:
    patch.header(size=2 << 50, l1_size=4 << 20, l1_table_offset=1 << 44)


def _zero_snapshots(patch: Patch) -> None:
    """65,536 snapshots in a table of zeros: without extra data, id and name an entry takes 40 bytes."""
    place = (patch.length + CLUSTER - 1) // CLUSTER * CLUSTER
    patch.truncate(place + 65536 * 40)
    patch.header(nb_snapshots=65536, snapshots_offset=place)


def _shared_l1(patch: Patch) -> None:
    """65,535 snapshots whose L1 table is the active one."""
    with patch.image() as image:
        l1 = image.header["l1_table_offset"]
        size = image.header["l1_size"]
    entries = b"".join(
        entry.encode() + bytes(-len(entry.encode()) % 8)
        for entry in (Entry(id=b"%05d" % i, l1_offset=l1, l1_size=size, disk_size=6 * MEGA) for i in range(65535))
    )
    place = (patch.length + CLUSTER - 1) // CLUSTER * CLUSTER
    patch.write(place, entries)
    patch.header(nb_snapshots=65535, snapshots_offset=place)


def _sparse_tail(patch: Patch) -> None:
    patch.truncate(8 << 40)


def _shared_host_cluster(refcount: int, flag: int) -> Callable[[Patch], None]:
    def lie(patch: Patch) -> None:
        with patch.image() as image:
            entry = image.l2(image.active_l1()[0])[2][0]
        cluster = (entry & OFFSET_MASK) // CLUSTER
        patch.l2(0, 2, entry & OFFSET_MASK | flag)
        patch.l2(0, 100, entry & OFFSET_MASK | flag)
        patch.refcount(cluster, refcount)

    return lie


def compressed(offset: int, sectors: int) -> int:
    """A compressed L2 entry for 4 KiB clusters: bit 58 up counts additional sectors."""
    return COMPRESSED | sectors << 58 | offset


def _swap_version(patch: Patch) -> None:
    patch.write(0, b"QFI\xfb" + bytes(100) + b"\xff" * 400)


def _same_names(patch: Patch) -> None:
    with patch.image() as image:
        for snapshot in image.snapshots():
            patch.write(snapshot.offset + 40 + len(snapshot.extra), b"1\x1b[")


def _free_word(image: Qcow2) -> int:
    return -(-image.length // CLUSTER) * CLUSTER


ROWS: dict[str, Row] = {
    "backing file: a file of the host": Row(1, backing(b"/etc/passwd", b"raw"), NOTHING),
    "backing file: a FIFO": Row(2, backing(b"fifo", b"raw"), NOTHING),
    "backing file: a device": Row(3, backing(b"/dev/zero", b"raw"), NOTHING),
    "backing file: nbd": Row(4, backing(b"nbd://127.0.0.1:1/x", b"raw"), NOTHING),
    "backing file: json": Row(4, backing(b'json:{"driver":"file","filename":"/etc/shadow"}', b"raw"), NOTHING),
    "backing file: itself": Row(5, backing(b"ours.qcow2", b"qcow2"), NOTHING),
    "backing file: format left to probing": Row(8, backing(b"/etc/passwd"), NOTHING),
    "backing file: name behind the cluster": Row(
        27, header(backing_file_offset=1 << 40, backing_file_size=9), EVERYTHING
    ),
    "backing file: name of 4 GiB": Row(27, header(backing_file_offset=112, backing_file_size=0xFFFFFFFF), EVERYTHING),
    "data file: a file of the host": Row(12, data_file(b"/etc/passwd")),
    "data file: json": Row(12, data_file(b"json:{}")),
    "data file: no name": Row(12, header(incompatible_features=4), EVERYTHING),
    "raw data bit without data file": Row(13, header(autoclear_features=2), EVERYTHING),
    "raw disk that starts like qcow2": Row(17, _swap_version, EVERYTHING),
    "a boot sector in the header": Row(18, lambda patch: patch.write(510, b"\x55\xaa"), NOTHING),
    "version 0": Row(21, header(version=0), EVERYTHING),
    "version 1": Row(21, header(version=1), EVERYTHING),
    "version 4": Row(21, header(version=4), EVERYTHING),
    "unknown incompatible bit": Row(22, header(incompatible_features=1 << 17), EVERYTHING),
    "all incompatible bits": Row(22, header(incompatible_features=(1 << 64) - 1), EVERYTHING),
    "all autoclear bits but two": Row(23, header(autoclear_features=(1 << 64) - 4), NOTHING),
    "dirty": Row(24, header(incompatible_features=1)),
    "corrupt": Row(24, header(incompatible_features=2)),
    **{
        f"cluster_bits {bits}": Row(25, header(cluster_bits=bits), EVERYTHING)
        for bits in (0, 8, 22, 31, 63, 0xFFFFFFFF)
    },
    **{f"cluster_bits {bits}, a lie": Row(25, header(cluster_bits=bits)) for bits in (9, 11, 13, 16, 21)},
    **{f"refcount_order {order}": Row(26, header(refcount_order=order), EVERYTHING) for order in (7, 31, 0xFFFFFFFF)},
    **{f"refcount_order {order}, a lie": Row(26, header(refcount_order=order)) for order in (0, 3, 5, 6)},
    **{
        f"header_length {n}": Row(27, header(header_length=n), EVERYTHING)
        for n in (0, 72, 103, 4097, 65000, 0xFFFFFFFF)
    },
    "extension of 4 GiB": Row(28, extension(struct.pack(">II", 0x1234, 0xFFFFFFFF)), EVERYTHING),
    "extension without end": Row(28, extension(struct.pack(">II", 0x1234, 0) * 498), NOTHING),
    "extension past the cluster": Row(28, extension(struct.pack(">II", 0x1234, CLUSTER - 119)), EVERYTHING),
    "virtual size 2^63": Row(29, header(size=1 << 63), EVERYTHING),
    "virtual size 2^64 - 1": Row(29, header(size=(1 << 64) - 1), EVERYTHING),
    "L1 of 32 MiB far behind the end": Row(30, _far_l1),
    "L1 of 4 Mi equal entries": Row(31, _huge_l1),
    "L1 too small": Row(32, header(l1_size=0), EVERYTHING),
    "L1 too large": Row(32, header(l1_size=(4 << 20) + 1), EVERYTHING),
    "L1 of 4 Gi entries": Row(32, header(l1_size=0xFFFFFFFF), EVERYTHING),
    "L1 not aligned": Row(33, header(l1_table_offset=CLUSTER + 8), EVERYTHING),
    "L1 on the header": Row(33, header(l1_table_offset=0)),
    "L1 on the refcount table": Row(33, header(l1_table_offset=CLUSTER)),
    "L1 on a refcount block": Row(33, header(l1_table_offset=2 * CLUSTER)),
    "L1 on an L2 table": Row(33, lambda p: p.header(l1_table_offset=_first(p.image())[0] & OFFSET_MASK)),
    "L1 at the end of the offsets": Row(33, header(l1_table_offset=(1 << 56) - CLUSTER)),
    "L1 at 2^63": Row(33, header(l1_table_offset=1 << 63)),
    "L1 entry with a reserved bit": Row(34, l1_entry(lambda i: _first(i)[0] | 1 << 60)),
    "L1 entry with a low reserved bit": Row(34, l1_entry(lambda i: _first(i)[0] | 1)),
    "L1 entry not aligned": Row(34, l1_entry(lambda i: _first(i)[0] + 512)),
    "L1 entry behind the end": Row(34, l1_entry(lambda _unused: COPIED | 1 << 40)),
    "L1 entry names the header": Row(34, l1_entry(lambda _unused: COPIED | 512 << 3)),
    "L1 entry names L1": Row(34, l1_entry(lambda i: COPIED | i.header["l1_table_offset"])),
    "L2 entry with a reserved bit": Row(34, l2_entry(lambda i: _first(i)[1] | 1 << 59)),
    "L2 entry with a low reserved bit": Row(34, l2_entry(lambda i: i.l2(_first(i)[0])[2][0] | 1 << 4)),
    "L2 entry not aligned": Row(34, l2_entry(lambda i: i.l2(_first(i)[0])[2][0] + 512)),
    "L2 entry names L1": Row(35, l2_entry(lambda i: COPIED | i.header["l1_table_offset"])),
    "L2 entry names its own table": Row(35, l2_entry(lambda i: COPIED | _first(i)[0] & OFFSET_MASK)),
    "L2 entry names the refcount block": Row(35, l2_entry(lambda _unused: COPIED | 2 * CLUSTER)),
    "L2 entry names the snapshot table": Row(35, l2_entry(lambda i: COPIED | i.header["snapshots_offset"])),
    "L2 entry behind the end": Row(36, l2_entry(lambda _unused: COPIED | 1 << 45)),
    "L2 entry at the last offset": Row(36, l2_entry(lambda _unused: COPIED | (1 << 56) - CLUSTER)),
    "L2 entry names a free cluster": Row(36, l2_entry(lambda i: COPIED | _free_word(i))),
    "two guest clusters, one host cluster, refcount 1": Row(37, _shared_host_cluster(1, COPIED)),
    "two guest clusters, one host cluster, refcount 2": Row(37, _shared_host_cluster(2, 0)),
    "COPIED set on a shared cluster": Row(38, l2_entry(lambda i: i.l2(_first(i)[0])[5][0] | COPIED, 5)),
    "COPIED missing": Row(38, l2_entry(lambda i: i.l2(_first(i)[0])[2][0] & ~COPIED)),
    "COPIED missing in L1": Row(38, l1_entry(lambda i: _first(i)[0] & ~COPIED)),
    "compressed cluster behind the end": Row(39, l2_entry(lambda _unused: compressed(1 << 44, 3))),
    "compressed cluster over the header": Row(39, l2_entry(lambda _unused: compressed(512, 1))),
    "compressed cluster of 8 KiB over others": Row(39, l2_entry(lambda i: compressed(_first(i)[0] & OFFSET_MASK, 15))),
    "subclusters allocated and zero": Row(
        41, l2_entry(lambda i: i.l2(_first(i)[0])[0][0], 0, 0x1_0000_0001), options="cluster_size=16384,extended_l2=on"
    ),
    "subclusters allocated in nothing": Row(
        41, l2_entry(lambda _unused: 0, 9, 0xFF), options="cluster_size=16384,extended_l2=on"
    ),
    "refcount table names itself": Row(42, table_entry(0, lambda i: i.header["refcount_table_offset"])),
    "refcount table names the header": Row(42, table_entry(1, lambda _unused: 1 << 9)),
    "refcount table names L1": Row(42, table_entry(0, lambda i: i.header["l1_table_offset"])),
    "refcount block not aligned": Row(42, table_entry(0, lambda i: i.refcount_blocks()[0] + 512)),
    "refcount block behind the end": Row(42, table_entry(1, lambda _unused: 1 << 50)),
    "refcount table with reserved bits": Row(42, table_entry(0, lambda i: i.refcount_blocks()[0] | 1)),
    "two entries, one refcount block": Row(43, table_entry(1, lambda i: i.refcount_blocks()[0])),
    "refcount table of 8 MiB, one block": Row(43, _huge_refcount_table),
    "refcount table too large": Row(43, header(refcount_table_clusters=8 * MEGA // CLUSTER + 1), EVERYTHING),
    "no refcount table": Row(43, header(refcount_table_clusters=0), EVERYTHING),
    "refcount table not aligned": Row(43, header(refcount_table_offset=CLUSTER + 512), EVERYTHING),
    "refcount table behind the end": Row(43, header(refcount_table_offset=1 << 48)),
    "refcount table at 2^63": Row(43, header(refcount_table_offset=1 << 63)),
    "all refcounts 0": Row(44, refcounts(0)),
    "header counted 0": Row(44, refcounts(0, "header")),
    "L1 tables counted 0": Row(44, refcounts(0, "L1")),
    "refcount block counted 0": Row(44, refcounts(0, "refcount block")),
    "snapshot table counted 0": Row(44, refcounts(0, "snapshot table")),
    "shared data counted 1": Row(45, refcounts(1, "data")),
    "shared L2 tables counted 1": Row(45, refcounts(1, "L2")),
    "compressed clusters counted 1": Row(45, refcounts(1, "compressed")),
    "data counted to the maximum": Row(46, refcounts(0xFFFF, "data"), frozenset({"create", "apply"})),
    "a tail of 8 TiB": Row(47, _sparse_tail, NOTHING),
    "65,536 snapshots of zeros": Row(48, _zero_snapshots, frozenset({"create"})),
    "65,535 snapshots, one L1": Row(49, _shared_l1),
    "snapshot extra data of 4 GiB": Row(50, snapshot_field(36, b"\xff" * 4), EVERYTHING),
    "snapshot extra data of 1025 bytes": Row(50, snapshot_field(36, b"\0\0\4\1"), EVERYTHING),
    "snapshot id and name of 64 KiB": Row(50, snapshot_field(12, b"\xff" * 4, 1), EVERYTHING),
    "snapshot table behind the end": Row(50, header(snapshots_offset=1 << 40), EVERYTHING),
    "snapshot table not aligned": Row(
        50, lambda p: p.header(snapshots_offset=p.image().header["snapshots_offset"] + 8), EVERYTHING
    ),
    "snapshot table on the header": Row(50, header(snapshots_offset=0)),
    "65,537 snapshots": Row(50, header(nb_snapshots=65537), EVERYTHING),
    "4 Gi snapshots": Row(50, header(nb_snapshots=0xFFFFFFFF), EVERYTHING),
    "one snapshot more than there is": Row(50, header(nb_snapshots=3), NOTHING),
    "names that command the terminal": Row(51, _same_names, APPLY | DELETE),
    "snapshot L1 on the header": Row(52, snapshot_field(0, bytes(8))),
    "snapshot L1 entry names the header": Row(52, snapshot_l1(lambda _unused: COPIED | 512 << 3)),
    "snapshot L1 entry names the active L1": Row(53, snapshot_l1(lambda i: i.header["l1_table_offset"])),
    "snapshot L1 entry behind the end": Row(53, snapshot_l1(lambda _unused: 1 << 42)),
    "snapshot L1 entry not aligned": Row(53, snapshot_l1(lambda i: i.active_l1()[0] + 512)),
    "snapshot L1 not aligned": Row(54, snapshot_field(0, (CLUSTER + 512).to_bytes(8, "big"))),
    "snapshot L1 behind the end": Row(54, snapshot_field(0, (1 << 50).to_bytes(8, "big"))),
    "snapshot L1 at 2^63": Row(54, snapshot_field(0, (1 << 63).to_bytes(8, "big"))),
    "snapshot L1 of 4 Mi entries": Row(54, snapshot_field(8, (4 << 20).to_bytes(4, "big"))),
    "snapshot L1 of 4 Gi entries": Row(54, snapshot_field(8, b"\xff" * 4)),
    "snapshot of a disk of 1 TiB": Row(55, snapshot_field(48, (1 << 40).to_bytes(8, "big")), NOTHING),
    "snapshot of a disk of 1 PiB": Row(55, snapshot_field(48, (1 << 50).to_bytes(8, "big")), APPLY),
    "snapshot of a disk of 2^63": Row(55, snapshot_field(48, (1 << 63).to_bytes(8, "big")), APPLY),
    "VM state of 2^64 - 1": Row(56, snapshot_field(40, b"\xff" * 8), NOTHING),
    "AES": Row(65, header(crypt_method=1), NOTHING),
    "LUKS without its header": Row(65, header(crypt_method=2), EVERYTHING),
    "encryption 3": Row(65, header(crypt_method=3), EVERYTHING),
}
