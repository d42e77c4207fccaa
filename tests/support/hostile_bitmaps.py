# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hostile images with bitmaps: every known way to lie about them, and what each bitmap operation may make of it.

Each row changes some bytes of a sound image. Offsets in bytes, entries as they stand on disk.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from sandbox import errors
from sandbox.images.bitmaps import Action, change_bitmap, list_bitmaps, require_sound
from sandbox.images.image import Image

from . import qemu
from .hostile import LIMITS
from .patch import Patch
from .qcow2 import BITMAPS_EXTENSION, OFFSET_MASK, BitmapEntry, Qcow2

CLUSTER = 4096
ONES = 1

NOTHING: frozenset[str] = frozenset()
READS = frozenset({"list", "extents"})
CHANGES = frozenset({"add", "remove", "remove the last", "clear", "enable", "disable", "merge"})
ALL = READS | CHANGES | {"dry run", "merge from it"}
USES = frozenset({"clear", "disable", "merge", "extents", "merge from it", "dry run"})  # what b0 is needed for


def with_bitmaps(path: str, options: str = "") -> None:
    """4 MiB in clusters of 4 KiB; an enabled bitmap with dirty bits, a disabled one, one of another granularity."""
    qemu.create(path, 4 << 20, f"cluster_size={CLUSTER}{options}")
    qemu.io(path, "write -P 1 0 64k", "write -P 2 2M 64k")
    qemu.must(["qemu-img", "bitmap", "--add", path, "b0"])
    qemu.must(["qemu-img", "bitmap", "--add", "-g", "512", path, "a second one"])
    qemu.io(path, "write -P 3 1M 64k", "write -P 4 0 4k")
    qemu.must(["qemu-img", "bitmap", "--add", "--disable", "-g", "1M", path, "frozen"])


@dataclass(frozen=True)
class Row:
    """One lie. refused: operations that must not succeed; the rest may be refused or do what is right, unless there is
    nothing to lie about: allowed, what must not be refused. options: of the sound image."""

    lie: Callable[[Patch], None]
    refused: frozenset[str] = CHANGES
    allowed: frozenset[str] = NOTHING
    options: str = ""


def operate_on_bitmaps(path: str, verb: str, other: str) -> errors.AirlockError | None:
    """One operation on an image; the error if it was refused. other: a sound image, for merges from the hostile one."""
    lists = {
        "add": (b"new", [Action.add()]),
        "remove": (b"b0", [Action.remove()]),
        "remove the last": (b"frozen", [Action.remove()]),
        "clear": (b"b0", [Action.clear()]),
        "enable": (b"frozen", [Action.enable()]),
        "disable": (b"b0", [Action.disable()]),
        "merge": (b"b0", [Action.merge(b"a second one"), Action.merge(b"frozen"), Action.merge(b"b0")]),
        "dry run": (b"b0", [Action.merge(b"a second one"), Action.enable()]),
    }
    try:
        if verb == "merge from it":
            with Image.open(path) as source, Image.open(other, writable=True) as image:
                change_bitmap(image, b"b0", [Action.merge(b"b0", source)], limits=LIMITS)
            return None
        with Image.open(path, writable=verb in CHANGES) as image:
            if verb == "list":
                require_sound(path, list_bitmaps(image, limits=LIMITS))  # it works, and tells of the damage
            elif verb == "extents":
                require_sound(path, list_bitmaps(image, extents_of=b"b0", limits=LIMITS))
            else:
                change_bitmap(image, *lists[verb], dry_run=verb == "dry run", limits=LIMITS)
    except errors.AirlockError as error:
        return error
    return None


# ---- lies ------------------------------------------------------------------------------------------------


def place_of(patch: Patch) -> tuple[int, int]:
    """Offset of the bitmaps extension's data, and of the directory."""
    with patch.image() as image:
        place = next(offset for offset, kind, _unused in image.extensions() if kind == BITMAPS_EXTENSION)
        return place + 8, int.from_bytes(image.read(place + 24, 8), "big")


def extension_field(offset: int, data: bytes) -> Callable[[Patch], None]:
    return lambda patch: patch.write(place_of(patch)[0] + offset, data)


def entry_field(offset: int, data: bytes, index: int = 0) -> Callable[[Patch], None]:
    def lie(patch: Patch) -> None:
        with patch.image() as image:
            place = image.bitmap_directory()[index].offset + offset
        patch.write(place, data)

    return lie


def table_entry(make: Callable[[Qcow2], int], index: int = 0, position: int = 0) -> Callable[[Patch], None]:
    """Entry `position` of the table of bitmap `index`."""

    def lie(patch: Patch) -> None:
        with patch.image() as image:
            table, value = image.bitmap_directory()[index].table, make(image)
        patch.u64(table + 8 * position, value)

    return lie


def table_at(make: Callable[[Qcow2], int], index: int = 0) -> Callable[[Patch], None]:
    """Bitmap `index` has its table where it has none."""

    def lie(patch: Patch) -> None:
        with patch.image() as image:
            value = make(image)
        entry_field(0, struct.pack(">Q", value), index)(patch)

    return lie


def directory_at(make: Callable[[Qcow2], int], with_content: bool = True) -> Callable[[Patch], None]:
    """The directory stands on something else; its content stands there as well, or what was there is taken for it."""

    def lie(patch: Patch) -> None:
        place, old = place_of(patch)
        with patch.image() as image:
            where, content = make(image), image.read(old, CLUSTER)
        if with_content:
            patch.write(where, content)
        patch.u64(place + 16, where)

    return lie


def directory_of(entries: list[bytes], size: int | None = None) -> Callable[[Patch], None]:
    """Another directory, counted, at the end of the file."""

    def lie(patch: Patch) -> None:
        place, old = place_of(patch)
        patch.refcount(old // CLUSTER, 0)
        data = b"".join(entry + bytes(-len(entry) % 8) for entry in entries)
        where = patch.append(data)
        patch.write(place, struct.pack(">IIQQ", len(entries), 0, len(data) if size is None else size, where))

    return lie


def entry_bytes(
    name: bytes, table: int, entries: int = 1, flags: int = 2, bits: int = 16, name_size: int | None = None
) -> bytes:
    size = len(name) if name_size is None else name_size
    return struct.pack(">QIIBBHI", table, entries, flags, 1, bits, size, 0) + name


def after(*lies: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """One lie after the other."""

    def lie(patch: Patch) -> None:
        for one in lies:
            one(patch)

    return lie


def named(name: bytes) -> Callable[[Patch], None]:
    """b0 gets another name; its entry is made anew, at the directory's end."""

    def lie(patch: Patch) -> None:
        with patch.image() as image:
            old = image.bitmap_directory()
            kept = [image.read(entry.offset, entry.length) for entry in old[1:]]
        first = old[0]
        new = entry_bytes(name, first.table, first.table_entries, first.flags, first.granularity_bits)
        directory_of([*kept, new])(patch)

    return lie


def data_of(image: Qcow2, index: int) -> int:
    """The first cluster of bits of a bitmap."""
    entry: BitmapEntry = image.bitmap_directory()[index]
    return next(word & OFFSET_MASK for word in image.table(entry.table, entry.table_entries) if word & OFFSET_MASK)


def guest_data(image: Qcow2) -> int:
    return image.l2(image.active_l1()[0])[1][0] & OFFSET_MASK


def counted(make: Callable[[Qcow2], int], value: int) -> Callable[[Patch], None]:
    """The cluster at an offset is counted so often."""

    def lie(patch: Patch) -> None:
        with patch.image() as image:
            cluster = make(image) >> image.cluster_bits
        patch.refcount(cluster, value)

    return lie


def bits(data: bytes, index: int = 0, at: int = 0) -> Callable[[Patch], None]:
    """Other bits in the first cluster of a bitmap."""

    def lie(patch: Patch) -> None:
        with patch.image() as image:
            place = data_of(image, index)
        patch.write(place + at, data)

    return lie


def many(
    count: int, table: Callable[[Patch], int], granularity_bits: int = 9, entries: int = 1
) -> Callable[[Patch], None]:
    """So many bitmaps, all with one table."""

    def lie(patch: Patch) -> None:
        where = table(patch)
        names = (b"%08d" % i for i in range(count))
        directory_of([entry_bytes(name, where, entries, 2, granularity_bits) for name in names])(patch)

    return lie


def _ten_thousand(patch: Patch) -> None:
    """10,000 bitmaps of 512 bytes granularity on a disk of 64 GiB: 160 GB once they are loaded."""
    entries = b"".join(entry_bytes(b"%08d" % i, 1 << 20, 4096, 2, 9) for i in range(10000))
    place, _unused = place_of(patch)
    where = -(-patch.length // CLUSTER) * CLUSTER
    patch.write(where, entries)
    patch.write(place, struct.pack(">IIQQ", 10000, 0, len(entries), where))
    patch.header(size=64 << 30)


def stale(*lies: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """The same in an image that a program without bitmaps has written to."""
    return after(*lies, lambda patch: patch.header(autoclear_features=0))


def _second_extension(patch: Patch) -> None:
    """The header has another extension for bitmaps, of none."""
    place, _unused = place_of(patch)
    patch.write(place + 24, struct.pack(">IIIIQQII", BITMAPS_EXTENSION, 24, 1, 0, 32, 1 << 13, 0, 0))


def _l1(image: Qcow2) -> int:
    return image.header["l1_table_offset"]


def _table_of_second(image: Qcow2) -> int:
    return image.bitmap_directory()[1].table


def _directory(image: Qcow2) -> int:
    return image.bitmap_directory()[0].offset


TARGETS: dict[str, Callable[[Qcow2], int]] = {
    "the header": lambda _unused: 0,
    "the L1 table": _l1,
    "an L2 table": lambda image: image.active_l1()[0] & OFFSET_MASK,
    "guest data": guest_data,
    "the refcount table": lambda image: image.header["refcount_table_offset"],
    "a refcount block": lambda image: image.refcount_blocks()[0],
    "the snapshot table": lambda image: image.header["snapshots_offset"],
    "a snapshot's L1 table": lambda image: image.snapshots()[0].l1_offset,
    "the directory": _directory,
    "the table of another": _table_of_second,
    "the bits of another": lambda image: data_of(image, 1),
    "a free cluster": lambda image: -(-image.length // CLUSTER) * CLUSTER - CLUSTER,
    "a place behind the end": lambda _unused: 1 << 45,
    "the last offset": lambda _unused: (1 << 56) - CLUSTER,
    "the end of all numbers": lambda _unused: (1 << 64) - CLUSTER,
    "half a cluster": lambda image: data_of(image, 0) + 512,
}

NOWHERE = ("a place behind the end", "the last offset", "the end of all numbers", "half a cluster")


def _freed(patch: Patch) -> None:
    """A cluster that nobody refers to, counted 0, at the end of the file."""
    patch.refcount(patch.append(bytes(CLUSTER)) // CLUSTER, 0)


ROWS: dict[str, Row] = {
    **{
        f"a table entry names {name}": Row(after(_freed, table_entry(make)))
        for name, make in TARGETS.items()
        if name != "the header"
    },
    **{f"a table is {name}": Row(after(_freed, table_at(make))) for name, make in TARGETS.items()},
    **{
        f"the directory is {name}": Row(after(_freed, directory_at(make)))
        for name, make in TARGETS.items()
        if name not in ("the directory", "the header", *NOWHERE)
    },
    **{
        f"{name} is taken for the directory": Row(directory_at(TARGETS[name], with_content=False))
        for name in ("the header", "the L1 table", "guest data", "a refcount block", *NOWHERE)
    },
    "bits of two bitmaps, counted twice": Row(
        after(table_entry(lambda image: data_of(image, 1)), counted(lambda image: data_of(image, 1), 2))
    ),
    "guest data as bits, counted twice": Row(after(table_entry(guest_data), counted(guest_data, 2))),
    "bits counted 0": Row(counted(lambda image: data_of(image, 0), 0)),
    "table counted 0": Row(counted(_table_of_second, 0)),
    "directory counted 0": Row(counted(_directory, 0)),
    "bits counted more often": Row(counted(lambda image: data_of(image, 0), 7), NOTHING, ALL),
    "table entry with a high reserved bit": Row(table_entry(lambda image: data_of(image, 0) | 1 << 60)),
    "table entry with a low reserved bit": Row(table_entry(lambda image: data_of(image, 0) | 2)),
    "table entry of all ones, and a cluster": Row(table_entry(lambda image: data_of(image, 0) | ONES)),
    "table entry 2^64 - 1": Row(table_entry(lambda _unused: (1 << 64) - 1)),
    "all ones": Row(
        after(counted(lambda image: data_of(image, 0), 0), table_entry(lambda _unused: ONES)), NOTHING, ALL
    ),
    "a bitmap of one name in different clusters": Row(bits(b"\xff" * CLUSTER, 1), NOTHING, ALL),
    "bits behind the disk's end": Row(bits(b"\xff" * 64, 0, CLUSTER - 64), NOTHING, ALL),
    "65,535 bitmaps behind the end": Row(extension_field(0, struct.pack(">IIQQ", 65535, 0, 65535 * 32, 1 << 40)), ALL),
    "65,536 bitmaps": Row(extension_field(0, struct.pack(">IIQQ", 65536, 0, 65536 * 32, 1 << 20)), ALL),
    "4 Gi bitmaps": Row(extension_field(0, b"\xff" * 4), ALL),
    "no bitmaps": Row(extension_field(0, struct.pack(">I", 0)), ALL),
    "reserved field": Row(extension_field(4, b"\0\0\0\1"), ALL),
    "directory not aligned": Row(extension_field(23, b"\x08"), ALL),
    "directory of 1 TiB": Row(extension_field(8, (1 << 40).to_bytes(8, "big")), ALL),
    "directory of the largest size": Row(extension_field(8, (67107840).to_bytes(8, "big")), ALL),
    "directory empty": Row(extension_field(8, bytes(8)), ALL),
    "directory cut within a name": Row(extension_field(8, (30).to_bytes(8, "big")), ALL),
    "fewer bitmaps than it says": Row(extension_field(0, struct.pack(">I", 4)), ALL),
    "more bitmaps than it says": Row(extension_field(0, struct.pack(">I", 2)), ALL),
    "extension of 16 bytes": Row(extension_field(-4, struct.pack(">I", 16)), ALL),
    "two extensions": Row(_second_extension, CHANGES),
    "10,000 bitmaps on 64 GiB": Row(_ten_thousand),
    "65,535 bitmaps, one table": Row(many(65535, lambda patch: patch.append(bytes(CLUSTER)))),
    "65,535 bitmaps, one free table": Row(many(65535, lambda _unused: 1 << 30)),
    "table of no entries": Row(entry_field(8, bytes(4)), ALL),
    "table of one entry too many": Row(entry_field(8, struct.pack(">I", 2)), ALL - READS),
    "table of 2^27 entries": Row(entry_field(8, struct.pack(">I", 1 << 27)), ALL),
    "table of 2^27 + 1 entries": Row(entry_field(8, struct.pack(">I", (1 << 27) + 1)), ALL),
    "table of 4 Gi entries": Row(entry_field(8, b"\xff" * 4), ALL),
    "granularity 2^8": Row(entry_field(17, b"\x08"), ALL),
    "granularity 2^31": Row(entry_field(17, b"\x1f"), NOTHING, ALL),
    "granularity 2^32": Row(entry_field(17, b"\x20"), ALL),
    "granularity 2^255": Row(entry_field(17, b"\xff"), ALL),
    "extra data": Row(entry_field(20, b"\0\0\0\4"), ALL),
    "extra data of 4 GiB": Row(entry_field(20, b"\xff" * 4), ALL),
    "type 0": Row(entry_field(16, b"\0"), ALL),
    "type 2": Row(entry_field(16, b"\x02"), ALL),
    "flag 2": Row(entry_field(12, b"\0\0\0\4"), ALL),
    "flag 31": Row(entry_field(12, b"\x80\0\0\0"), ALL),
    "no name": Row(entry_field(18, bytes(2)), ALL),
    "name of 1,024 bytes": Row(entry_field(18, struct.pack(">H", 1024)), ALL),
    "name of 65,535 bytes": Row(entry_field(18, b"\xff" * 2), ALL),
    "name of 1,023 bytes": Row(named(b"n" * 1023), NOTHING, frozenset({"list", "add", "remove the last", "enable"})),
    "name that commands the terminal": Row(named(b"\x1b]0;\x07\r\n\x7f\x9b"), NOTHING, frozenset({"list", "add"})),
    "name that is no text": Row(named(b"\xff\xfe\x80"), NOTHING, frozenset({"list", "add"})),
    "name with a NUL": Row(named(b"b0\0b1"), NOTHING),
    "name of NULs": Row(named(bytes(8)), NOTHING),
    "in use": Row(entry_field(12, b"\0\0\0\3"), USES, frozenset({"list", "add", "remove", "remove the last"})),
    "in use, table of another size": Row(entry_field(8, struct.pack(">II", 2, 3)), USES),
    "in use, entry names guest data": Row(after(entry_field(12, b"\0\0\0\3"), table_entry(guest_data))),
    "in use, table behind the end": Row(after(entry_field(12, b"\0\0\0\3"), table_at(TARGETS["the last offset"]))),
    "stale": Row(stale(), USES | {"enable"}, frozenset({"list", "add", "remove", "remove the last"})),
    "stale, and no bitmaps": Row(stale(extension_field(0, bytes(4))), USES | {"enable"}, frozenset({"list", "add"})),
    "stale, directory is guest data": Row(
        stale(directory_at(guest_data, with_content=False)), USES | {"enable"}, frozenset({"list", "add"})
    ),
    "stale, entries name guest data": Row(
        stale(table_entry(guest_data)), USES | {"enable"}, frozenset({"list", "add", "remove"})
    ),
    "stale, table is the L1 table": Row(stale(table_at(_l1)), USES | {"enable"}, frozenset({"list", "add", "remove"})),
    "stale, directory behind the end": Row(
        stale(directory_at(TARGETS["the last offset"], with_content=False)),
        USES | {"enable"},
        frozenset({"list", "add"}),
    ),
    "stale, table at the end of all numbers": Row(
        stale(table_at(TARGETS["the end of all numbers"])),
        USES | {"enable"},
        frozenset({"list", "add", "remove", "remove the last"}),
    ),
    "in use, table at the end of all numbers": Row(
        after(entry_field(12, b"\0\0\0\3"), table_at(TARGETS["the end of all numbers"]))
    ),
    "stale, extension of nonsense": Row(
        stale(extension_field(0, b"\xff" * 24)), USES | {"enable"}, frozenset({"list", "add"})
    ),
    "stale, bits of two bitmaps": Row(
        stale(table_entry(lambda image: data_of(image, 1))),
        USES | {"enable"},
        frozenset({"list", "add", "remove", "remove the last"}),
    ),
}


def twins(patch: Patch, index: int = 1, name: bytes = b"b0") -> None:
    """Another bitmap is called b0, too: QEMU cannot open such an image at all."""
    with patch.image() as image:
        entries = image.bitmap_directory()
        kept = [image.read(entry.offset, entry.length) for entry in entries]
    twin = entries[index]
    kept[index] = entry_bytes(name, twin.table, twin.table_entries, twin.flags, twin.granularity_bits)
    directory_of(kept)(patch)


def _one_cluster_of_bits(patch: Patch) -> None:
    """A thousand bitmaps with a table each, and one cluster of bits that is all dirty."""
    with patch.image() as image:
        data = data_of(image, 0)
    patch.write(data, b"\xff" * CLUSTER)
    tables = patch.append(b"".join(struct.pack(">Q", data).ljust(CLUSTER, b"\0") for _unused in range(1000)))
    names = (entry_bytes(b"%04d" % i, tables + i * CLUSTER, 1, 2, 9) for i in range(1000))
    directory_of(list(names))(patch)


def _one_table(patch: Patch) -> None:
    """Ten thousand bitmaps of a disk of 64 GiB with one table, which says that all is dirty: 20 TB of bits."""
    table = patch.append(struct.pack(">Q", ONES) * 4096)
    directory_of([entry_bytes(b"%05d" % i, table, 4096, 2, 9) for i in range(10000)])(patch)
    patch.header(size=64 << 30)


ROWS["1,000 bitmaps, one cluster of bits"] = Row(_one_cluster_of_bits)
ROWS["10,000 bitmaps, one table of all ones"] = Row(_one_table)
ROWS["two of one name"] = Row(twins, USES, frozenset({"list", "remove"}))
