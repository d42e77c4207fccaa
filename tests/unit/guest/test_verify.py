# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest/qcow2/verify.c: images in order are accepted, and every contradiction is found and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import recipes as images
from tests.support.native import Guest
from tests.support.patch import Patch
from tests.support.patching import CRYPTO, extension, patched, put, with_extensions
from tests.support.qcow2 import COMPRESSED, COPIED, OFFSET_MASK, Qcow2
from tests.unit.guest.conftest import MAKES


@pytest.mark.parametrize("name", images.RECIPES)
@pytest.mark.parametrize("which", MAKES)
def test_an_image_in_order_is_accepted(
    make: Callable[[str], Guest], image: Callable[[str], Path], which: str, name: str
) -> None:
    guest = make(which)
    guest.load(image(name))
    answer = guest.verify()
    assert (answer.refusal, answer.arguments, answer.leaked, answer.modified) == ("", (0,) * 6, 0, False)


@dataclass
class Places:
    """Where things lie in an image. Tables by file offset."""

    l1: int
    l2: int  # the first active L2 table
    data: int  # entry of it with a data cluster that only the disk has
    shared: int  # entry of it with a data cluster that a snapshot has as well; -1: none
    table: int  # refcount table
    block: int
    snapshot_l1: int
    end: int
    cluster: int


def places(path: Path) -> Places:
    with Qcow2(str(path)) as reader:
        l2 = [entry & OFFSET_MASK for entry in reader.active_l1() if entry & OFFSET_MASK][-1]
        entries = [entry for entry, _bitmap in reader.l2(l2)]
        sole = [i for i, entry in enumerate(entries) if entry & COPIED and not entry & COMPRESSED]
        both = [i for i, entry in enumerate(entries) if entry & OFFSET_MASK and not entry & (COPIED | COMPRESSED)]
        snapshots = reader.snapshots()
        return Places(
            l1=reader.header["l1_table_offset"],
            l2=l2,
            data=sole[0] if sole else -1,
            shared=both[0] if both else -1,
            table=reader.header["refcount_table_offset"],
            block=reader.refcount_blocks()[0],
            snapshot_l1=snapshots[0].l1_offset if snapshots else 0,
            end=-(-reader.length // reader.cluster_size) * reader.cluster_size,
            cluster=reader.cluster_size,
        )


Damage = Callable[[Patch, Places], object]


def entry(value: Callable[[Places], int]) -> Damage:
    """Puts a value into the L2 entry of a cluster that only the disk has."""
    return lambda patch, at: patch.u64(at.l2 + 8 * at.data, value(at))


def flip(bits: int) -> Damage:
    """Flips bits of that entry."""

    def change(patch: Patch, at: Places) -> None:
        with patch.image() as reader:
            old = reader.table(at.l2 + 8 * at.data, 1)[0]
        patch.u64(at.l2 + 8 * at.data, old ^ bits)

    return change


def lower(which: Callable[[Places], int]) -> Damage:
    """One less in the refcount of the cluster at this offset."""

    def change(patch: Patch, at: Places) -> None:
        with patch.image() as reader:
            cluster = which(at) // at.cluster
            count = reader.refcount(cluster)
        patch.refcount(cluster, count - 1)

    return change


def data_of(patch: Patch, at: Places) -> int:
    with patch.image() as reader:
        return reader.table(at.l2 + 8 * at.data, 1)[0] & OFFSET_MASK


def snapshot_field(offset: int, value: Callable[[Places], int]) -> Damage:
    def change(patch: Patch, at: Places) -> None:
        with patch.image() as reader:
            place = reader.snapshots()[0].offset
        patch.u64(place + offset, value(at))

    return change


L1, L2, TABLE, BLOCK, SNAPSHOTS, SNAPSHOT_L1, DATA = 2, 3, 4, 5, 6, 7, 8
HEADER, DIRECTORY, BITMAP_TABLE = 1, 9, 10
CONTRADICTIONS: dict[str, tuple[str, int, int | None, Damage]] = {
    "reserved bit of an L2 entry": ("RESERVED_BITS", L2, None, flip(1 << 61)),
    "low reserved bit of an L2 entry": ("RESERVED_BITS", L2, None, flip(1 << 1)),
    "data behind the file": ("OUTSIDE_FILE", L2, None, entry(lambda at: at.end | COPIED)),
    "data at the end of the format": ("OUTSIDE_FILE", L2, None, entry(lambda at: (1 << 56) - at.cluster | COPIED)),
    "data over the header": ("RESERVED_BITS", L2, None, entry(lambda at: COPIED | 2)),
    "data over the L1 table": ("OVERLAP", L2, L1, entry(lambda at: at.l1 | COPIED)),
    "data over a refcount block": ("OVERLAP", L2, BLOCK, entry(lambda at: at.block | COPIED)),
    "data over the refcount table": ("OVERLAP", L2, TABLE, entry(lambda at: at.table | COPIED)),
    "data over an L2 table": ("OVERLAP", L2, L2, entry(lambda at: at.l2 | COPIED)),
    "data over a snapshot's L1 table": ("OVERLAP", L2, SNAPSHOT_L1, entry(lambda at: at.snapshot_l1 | COPIED)),
    "COPIED is missing": ("COPIED_FLAG", L2, None, flip(COPIED)),
    "COPIED of a compressed cluster": ("COPIED_FLAG", L2, None, flip(COMPRESSED)),
    "compressed behind the file": ("OUTSIDE_FILE", L2, None, entry(lambda at: COMPRESSED | at.end)),
    "compressed up to behind the file": ("OUTSIDE_FILE", L2, None, entry(lambda at: COMPRESSED | 1 << 61 | at.end - 1)),
    "compressed over the header": ("OVERLAP", L2, HEADER, entry(lambda at: COMPRESSED | 100)),
    "reserved bit of an L1 entry": ("RESERVED_BITS", L1, None, lambda patch, at: patch.l1(0, at.l2 | 1)),
    "high reserved bit of an L1 entry": ("RESERVED_BITS", L1, None, lambda patch, at: patch.l1(0, 1 << 62)),
    "L2 table behind the file": ("OUTSIDE_FILE", L1, None, lambda patch, at: patch.l1(0, at.end)),
    "L2 table over the refcount table": ("OVERLAP", L1, TABLE, lambda patch, at: patch.l1(0, at.table)),
    "L2 table over the L1 table": ("OVERLAP", L1, L1, lambda patch, at: patch.l1(0, at.l1)),
    "L2 table twice": ("SHARED_CLUSTER", L1, None, lambda patch, at: patch.l1(0, at.l2)),
    "reserved bit of the refcount table": ("RESERVED_BITS", TABLE, None, lambda patch, at: patch.u64(at.table + 56, 1)),
    "refcount block behind the file": ("OUTSIDE_FILE", TABLE, None, lambda patch, at: patch.u64(at.table + 56, at.end)),
    "refcount block at the end of all": (
        "OUTSIDE_FILE", TABLE, None, lambda patch, at: patch.u64(at.table + 56, (1 << 64) - at.cluster)
    ),
    "refcount block twice": ("OVERLAP", TABLE, BLOCK, lambda patch, at: patch.u64(at.table + 56, at.block)),
    "refcount table is its own block": ("OVERLAP", TABLE, TABLE, lambda patch, at: patch.u64(at.table + 56, at.table)),
    "refcount of the header": ("REFCOUNT_TOO_LOW", HEADER, None, lower(lambda _at: 0)),
    "refcount of the L1 table": ("REFCOUNT_TOO_LOW", HEADER, None, lower(lambda at: at.l1)),
    "refcount of a block": ("REFCOUNT_TOO_LOW", TABLE, None, lower(lambda at: at.block)),
    "refcount of an L2 table": ("REFCOUNT_TOO_LOW", L1, None, lower(lambda at: at.l2)),
    "refcount of a snapshot's L1 table": ("REFCOUNT_TOO_LOW", SNAPSHOTS, None, lower(lambda at: at.snapshot_l1)),
    "refcount of data": (
        "REFCOUNT_TOO_LOW", L2, None, lambda patch, at: patch.refcount(data_of(patch, at) // at.cluster, 0)
    ),
    "L1 table over the header": ("OVERLAP", HEADER, HEADER, lambda patch, _at: patch.header(l1_table_offset=0)),
    "L1 table over the refcount table": (
        "OVERLAP", HEADER, TABLE, lambda patch, at: patch.header(l1_table_offset=at.table)
    ),
    "L1 table behind the file": (
        "OUTSIDE_FILE", HEADER, None, lambda patch, at: patch.header(l1_table_offset=at.end)
    ),
    "refcount table behind the file": (
        "OUTSIDE_FILE", HEADER, None, lambda patch, at: patch.header(refcount_table_offset=1 << 40)
    ),
    "a snapshot's L1 table over the header": ("OVERLAP", SNAPSHOTS, HEADER, snapshot_field(0, lambda _at: 0)),
    "a snapshot's L1 table over the active one": ("OVERLAP", SNAPSHOTS, L1, snapshot_field(0, lambda at: at.l1)),
    "a snapshot's L1 table not aligned": ("UNALIGNED", SNAPSHOTS, None, snapshot_field(0, lambda at: at.l1 + 8)),
    "a snapshot's L1 table behind the file": ("OUTSIDE_FILE", SNAPSHOTS, None, snapshot_field(0, lambda at: at.end)),
    "a snapshot's L1 table of 16 GiB": (
        "OUTSIDE_FILE", SNAPSHOTS, None, snapshot_field(8, lambda _at: 0x7FFFFFFF00010003)
    ),
}  # fmt: skip


def damaged(image: Callable[[str], Path], tmp_path: Path, name: str, damage: Damage) -> bytes:
    path = tmp_path / "damaged.qcow2"
    shutil.copyfile(image(name), path)
    with Patch(str(path)) as patch:
        damage(patch, places(path))
    return path.read_bytes()


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_contradiction_is_named(
    make: Callable[[str], Guest], image: Callable[[str], Path], tmp_path: Path, what: str
) -> None:
    refusal, table, other, damage = CONTRADICTIONS[what]
    broken = damaged(image, tmp_path, "shared", damage)
    for which in MAKES:
        guest = make(which)
        for verb, argument in (("create", b"fresh"), ("apply", b"one"), ("delete", b"one")):
            guest.load_bytes(broken)
            answer = getattr(guest, verb)(argument)
            if answer.refusal in ("SNAPSHOT_L1_LARGE", "SNAPSHOT_L1_OFFSET"):
                assert table == SNAPSHOTS  # said before all else when this very snapshot is meant
            else:
                assert (answer.refusal, answer.arguments[0]) == (refusal, table), (which, verb)
                assert other is None or answer.arguments[5] == other, (which, verb)
            assert not answer.modified
            assert guest.image() == broken


def test_subclusters(guest: Guest, image: Callable[[str], Path], tmp_path: Path) -> None:
    for bitmap in (1 << 32 | 1, 0xFFFFFFFFFFFFFFFF):
        broken = damaged(image, tmp_path, "extended", lambda patch, _at, b=bitmap: patch.l2(0, 0, 0, b))
        guest.load_bytes(broken)
        answer = guest.create(b"fresh")
        assert (answer.refusal, answer.arguments[0], answer.arguments[3]) == ("SUBCLUSTERS", L2, bitmap)


def test_the_zero_flag_is_reserved_in_version_2(guest: Guest, image: Callable[[str], Path], tmp_path: Path) -> None:
    guest.load_bytes(damaged(image, tmp_path, "v2", lambda patch, at: patch.u64(at.l2, 1)))
    assert guest.create(b"fresh").refusal == "RESERVED_BITS"


def bitmap_entry(patch: Patch, value: int) -> None:
    with patch.image() as reader:
        table = reader.bitmap_directory()[0].table
    patch.u64(table, value)


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        (lambda at: at.l1, "OVERLAP"),
        (lambda at: at.end, "OUTSIDE_FILE"),
        (lambda _at: 1 << 60, "RESERVED_BITS"),
        (lambda at: at.l2 | 1, "RESERVED_BITS"),
        (lambda _at: 2, "RESERVED_BITS"),
    ],
)
def test_entries_of_bitmaps(
    guest: Guest, image: Callable[[str], Path], tmp_path: Path, value: Callable[[Places], int], refusal: str
) -> None:
    broken = damaged(image, tmp_path, "bitmaps", lambda patch, at: bitmap_entry(patch, value(at)))
    guest.load_bytes(broken)
    answer = guest.create(b"fresh")
    assert (answer.refusal, answer.arguments[0], answer.modified) == (refusal, BITMAP_TABLE, False)
    assert guest.image() == broken


@pytest.mark.parametrize(
    ("offset", "length"),
    [(1 << 40, 512), ((1 << 64) - 512, 1024), ((1 << 64) - 512, 512), (0, 1 << 63), (512, (1 << 64) - 1)],
)
def test_the_header_of_an_encrypted_image_lies_inside(
    guest: Guest, image: Callable[[str], Path], offset: int, length: int
) -> None:
    start = patched(image("tiny").read_bytes(), crypt_method=2)
    guest.load_bytes(with_extensions(start, extension(CRYPTO, offset.to_bytes(8, "big") + length.to_bytes(8, "big"))))
    answer = guest.create(b"fresh")
    assert (answer.refusal, answer.arguments[0], answer.modified) in [
        ("OUTSIDE_FILE", HEADER, False),
        ("OVERLAP", HEADER, False),
    ]


def test_leaks_are_counted_and_left_alone(guest: Guest, image: Callable[[str], Path], tmp_path: Path) -> None:
    def leak(patch: Patch, at: Places) -> None:
        patch.append(b"lost")
        patch.append(b"lost twice", refcount=2)
        patch.refcount(at.l2 // at.cluster, 7)

    start = damaged(image, tmp_path, "tiny", leak)
    guest.load_bytes(start)
    assert (guest.verify().refusal, guest.verify().leaked) == ("", 3)
    assert guest.create(b"fresh").leaked == 3
    assert guest.delete(b"fresh").leaked == 3
    assert guest.verify().leaked == 3


def test_leaks_behind_the_file_are_counted(guest: Guest, image: Callable[[str], Path], tmp_path: Path) -> None:
    """Also in blocks that count nothing but what lies there; of 2 MiB clusters one block counts 2 TiB."""
    for name in ("tiny", "large"):
        path = tmp_path / "behind.qcow2"
        shutil.copyfile(image(name), path)
        with Patch(str(path)) as patch:
            with patch.image() as reader:
                last, entries = -(-reader.length // reader.cluster_size), reader.block_entries
                table = reader.header["refcount_table_offset"]
            patch.refcount(last + 5, 1)
            block = patch.append(b"\x00\x01" * 3)
            patch.u64(table + 8 * 5, block)
        guest.load(path)
        answer = guest.verify()
        assert entries * 5 > last + 5
        assert (answer.refusal, answer.leaked) == ("", 4), name


@pytest.mark.parametrize("which", MAKES)
@pytest.mark.parametrize("first", ["compressed", "plain"])
def test_compressed_clusters_share_with_each_other_only(
    make: Callable[[str], Guest], image: Callable[[str], Path], tmp_path: Path, which: str, first: str
) -> None:
    """A plain cluster in a place that compressed ones have: a write to one would be seen in the others."""
    path = tmp_path / "both.qcow2"
    shutil.copyfile(image("tiny"), path)
    with Patch(str(path)) as patch:
        with patch.image() as reader:
            l2 = reader.active_l1()[0] & OFFSET_MASK
            data = reader.table(l2, 64)[5] & OFFSET_MASK
        both = [data, COMPRESSED | data]
        patch.u64(l2 + 8 * 5, both[first == "compressed"])
        patch.u64(l2 + 8 * 6, both[first == "plain"])
        patch.refcount(data // 512, 2)
    guest = make(which)
    guest.load(path)
    before = guest.image()
    answer = guest.create(b"fresh")
    assert (answer.refusal, answer.arguments[:3], answer.modified) == ("SHARED_CLUSTER", (L2, l2, 6), False)
    assert guest.image() == before


def name_twice(path: Path, snapshot: bool, table: bool) -> None:
    """Lets two entries of one mapping name the same L2 table or data cluster; refcounts and flags agree with that."""
    with Patch(str(path)) as patch:
        with patch.image() as reader:
            active = {entry & OFFSET_MASK for entry in reader.active_l1()}
            first = reader.snapshots()[0]
            place, entries = first.l1_offset, reader.table(first.l1_offset, first.l1_size)
            if not snapshot:
                place, entries = reader.header["l1_table_offset"], reader.active_l1()
            own = [i for i, one in enumerate(entries) if one and (not snapshot or one & OFFSET_MASK not in active)]
            l2 = entries[own[-1]] & OFFSET_MASK
            data = [i for i, one in enumerate(reader.table(l2, 64)) if one & OFFSET_MASK]
            copied = reader.table(l2 + 8 * data[0], 1)[0]
        if table:
            patch.u64(place + 8 * (own[-1] + 1), l2)
        else:
            patch.u64(l2 + 8 * data[1], copied)
        patch.settle()


@pytest.mark.parametrize("which", MAKES)
@pytest.mark.parametrize("table", [True, False], ids=["L2 table", "data"])
@pytest.mark.parametrize("snapshot", [True, False], ids=["snapshot", "disk"])
def test_a_mapping_that_names_a_cluster_twice(
    make: Callable[[str], Guest], image: Callable[[str], Path], tmp_path: Path, snapshot: bool, table: bool, which: str
) -> None:
    """Refcounts that agree do not make it right: what is written to one place would be read in the other."""
    path = tmp_path / "twice.qcow2"
    shutil.copyfile(image("shared"), path)
    name_twice(path, snapshot, table)
    guest = make(which)
    for verb, argument in (("create", b"fresh"), ("apply", b"one"), ("delete", b"one")):
        guest.load(path)
        answer = getattr(guest, verb)(argument)
        if snapshot and verb != "apply" and answer.refusal == "":
            assert guest.verify().refusal == ""  # is the same afterwards, or gone
        else:
            assert (answer.refusal, answer.modified) == ("SHARED_CLUSTER", False), verb
            assert guest.image() == path.read_bytes()


BROKEN, MORE, LESS, EXTRA, ENTRY = 8, 9, 10, 11, 12  # enum bitmaps_fault
DIRECTORIES: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "cut in an entry": (BROKEN, lambda entry: entry[:18] + b"\xff\xff" + entry[20:]),
    "extra data behind the end": (BROKEN, lambda entry: entry[:20] + b"\xff\xff\xff\xff" + entry[24:]),
    "extra data": (EXTRA, lambda entry: entry[:18] + b"\x00\x01\x00\x00\x00\x04" + entry[24:]),
    "no table": (ENTRY, lambda entry: bytes(8) + entry[8:]),
    "a table that is not aligned": (ENTRY, lambda entry: entry[:7] + b"\x01" + entry[8:]),
    "an empty table": (ENTRY, lambda entry: entry[:8] + bytes(4) + entry[12:]),
    "a table of 32 GiB": (ENTRY, lambda entry: entry[:8] + b"\xff" * 4 + entry[12:]),
    "unknown flags": (ENTRY, lambda entry: entry[:12] + b"\x80" + entry[13:]),
    "another type": (ENTRY, lambda entry: entry[:16] + b"\x02" + entry[17:]),
    "too fine": (ENTRY, lambda entry: entry[:17] + b"\x08" + entry[18:]),
    "too coarse": (ENTRY, lambda entry: entry[:17] + b"\xff" + entry[18:]),
}


def bitmaps_place(image: bytes) -> tuple[int, int]:
    """Offset in the file of the bitmaps extension's data, and of the directory."""
    start = image.index(b"\x23\x85\x28\x75\x00\x00\x00\x18") + 8
    return start, int.from_bytes(image[start + 16 : start + 24], "big")


@pytest.mark.parametrize("what", DIRECTORIES)
def test_a_broken_directory_of_bitmaps(guest: Guest, image: Callable[[str], Path], what: str) -> None:
    fault, change = DIRECTORIES[what]
    start = image("bitmaps").read_bytes()
    directory = bitmaps_place(start)[1]
    broken = put(start, directory, change(start[directory : directory + 32]))
    for verb, argument in (("create", b"fresh"), ("apply", b"one"), ("delete", b"one")):
        guest.load_bytes(broken)
        answer = getattr(guest, verb)(argument)
        assert (answer.refusal, answer.arguments[0]) == ("BITMAPS_EXTENSION", fault)
        assert guest.image() == broken
        assert fault != ENTRY or answer.text == b"first"


@pytest.mark.parametrize(("count", "size", "fault"), [(1, 64, MORE), (3, 64, LESS), (2, 63, BROKEN), (2, 40, BROKEN)])
def test_a_directory_of_another_length(
    guest: Guest, image: Callable[[str], Path], count: int, size: int, fault: int
) -> None:
    start = image("bitmaps").read_bytes()
    place = bitmaps_place(start)[0]
    guest.load_bytes(put(start, place, count.to_bytes(4, "big") + bytes(4) + size.to_bytes(8, "big")))
    answer = guest.create(b"fresh")
    assert (answer.refusal, answer.arguments[0]) == ("BITMAPS_EXTENSION", fault)
