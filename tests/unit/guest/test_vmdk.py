# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest/vmdk/: headers, descriptors and tables that lie, and what is made of those that do not."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.native import Answer, Guest
from tests.support.vmdk import FLAG_COMPRESSED, FLAG_MARKERS, SECTOR, Recipe, Vmdk, filled

MEGA = 1 << 20
GRAIN = 65536
RECIPE = Recipe(4 * MEGA)
TEXT = RECIPE.descriptor()
LAYER_VMDK = 3


def info(guest: Guest, image: bytes) -> Answer:
    guest.load_bytes(image)
    return guest.call("vmdk_info")


def test_facts(guest: Guest) -> None:
    recipe = Recipe(4 * MEGA, 4096, 128, True, version=2, cid=0xABC, parent=b"../b \xff.vmdk", parent_cid=0xFEDCBA98)
    found = info(guest, recipe.image()).result
    assert (found.virtual_size, found.grain_size, found.version, found.zeroed_grains) == (4 * MEGA, 4096, 2, 1)
    assert (found.content_id, found.parent_content_id) == (0xABC, 0xFEDCBA98)
    assert bytes(found.backing_name)[: found.backing_name_length] == b"../b \xff.vmdk"


def test_no_parent(guest: Guest) -> None:
    assert info(guest, RECIPE.image()).result.backing_name_length == 0
    empty = TEXT.replace(b"\n\n#", b'\nparentFileNameHint=""\n\n#', 1)
    assert info(guest, RECIPE.image(empty)).result.backing_name_length == 0


def test_lines_of_windows_and_lines_that_mean_nothing(guest: Guest) -> None:
    text = TEXT.replace(b"version=1\n", b'version=1\nencoding="UTF-8"\n').replace(b"\n", b"\r\n")
    answer = info(guest, RECIPE.image(text))
    assert answer.refusal == ""
    assert answer.result.content_id == RECIPE.cid


HEADERS: list[tuple[str, tuple[int, ...], dict[str, object]]] = [
    ("NOT_VMDK", (), {"magic": b"QFI\xfb"}),
    ("VMDK_SUBFORMAT", (7,), {"magic": b"COWD"}),
    ("VMDK_VERSION", (0,), {"version": 0}),
    ("VMDK_VERSION", (4,), {"version": 4}),
    ("VMDK_SUBFORMAT", (3,), {"compression": 1}),
    ("VMDK_SUBFORMAT", (3,), {"compression": 2}),
    ("VMDK_SUBFORMAT", (3,), {"flags": FLAG_COMPRESSED}),
    ("VMDK_SUBFORMAT", (3,), {"flags": FLAG_MARKERS}),
    ("VMDK_SUBFORMAT", (4,), {"directory": (1 << 64) - 1}),
    ("VMDK_SUBFORMAT", (5,), {"descriptor": 0}),
    ("VMDK_HEADER", (1,), {"newlines": b"\n \n\n"}),
    *(("VMDK_HEADER", (2, size), {"capacity": size}) for size in (0, 1 << 54, (1 << 64) - 1)),
    *(("VMDK_HEADER", (3, size), {"grain": size}) for size in (0, 3, 100, 0x400000, 1 << 32, 1 << 63)),
    *(("VMDK_HEADER", (4, count), {"table_entries": count}) for count in (0, 513, 0xFFFFFFFF)),
    ("VMDK_HEADER", (5, (1 << 25) + 1), {"capacity": (1 << 34) + 1, "grain": 1}),
    *(("VMDK_HEADER", (6, sector), {"descriptor": sector}) for sector in (2, 1 << 63)),
    *(("VMDK_HEADER", (7, size), {"descriptor_size": size}) for size in (0, 21, 2048, 1 << 55)),
    *(("VMDK_HEADER", (8, sector), {"directory": sector}) for sector in (128, 1 << 32, 1 << 55, 1 << 63)),
    *(("VMDK_HEADER", (9, sector), {"redundant": sector}) for sector in (128, 1 << 32, 1 << 55)),
    *(("VMDK_HEADER", (10, sector), {"data": sector}) for sector in (129, 1 << 55, (1 << 64) - 1)),
]


@pytest.mark.parametrize(("refusal", "arguments", "fields"), HEADERS)
def test_lying_headers(guest: Guest, refusal: str, arguments: tuple[int, ...], fields: dict[str, object]) -> None:
    answer = info(guest, RECIPE.image(**fields))
    assert answer.refusal == refusal
    assert answer.arguments[: len(arguments)] == arguments


@pytest.mark.parametrize("length", [0, 3, 100, 511, 512, 10240])
def test_cut_off(guest: Guest, length: int) -> None:
    answer = info(guest, RECIPE.image()[:length])
    assert answer.refusal in ("NOT_VMDK", "VMDK_HEADER")


@pytest.mark.parametrize(
    "type_name", [b"monolithicFlat", b"vmfs", b"twoGbMaxExtentSparse", b"seSparse", b"fullDevice", b"custom"]
)
def test_descriptor_by_itself(guest: Guest, type_name: bytes) -> None:
    """Row 14 of the hostile images: its data would be in any file that it names."""
    text = TEXT.replace(b"monolithicSparse", type_name).replace(b"SPARSE", b"FLAT") + b'RW 1 FLAT "/etc/shadow" 0\n'
    named = type_name + b"disk.vmdk"
    answer = info(guest, text)
    assert (answer.refusal, answer.arguments[:2], answer.text) == ("VMDK_SUBFORMAT", (6, len(type_name)), named)
    embedded = info(guest, RECIPE.image(TEXT.replace(b"monolithicSparse", type_name)))
    assert (embedded.refusal, embedded.arguments[:2], embedded.text) == ("VMDK_SUBFORMAT", (1, len(type_name)), named)


def test_first_file_of_a_descriptor(guest: Guest) -> None:
    """What "qemu-img convert" would read, so it is told: of the first extent that has a name, as far as it fits."""
    for lines, name in (
        (b'RW 1 FLAT "/etc/passwd" 0\n', b"/etc/passwd"),
        (b'RW 1 ZERO\n \tRDONLY  2  FLAT  "/etc/shadow" 5\n', b"/etc/shadow"),
        (b'RW 1 FLAT "no end', b"no end"),
        (b'RW 1 FLAT ""\n', b""),
        (b"RW 1 FLAT\nRW", b""),
        (b"", b""),
        (b'RW 1 FLAT "%s"\n' % (b"x" * 2000), b"x" * 1020),
    ):
        answer = info(guest, b'createType="vmfs"\n' + lines)
        assert (answer.refusal, answer.text) == ("VMDK_SUBFORMAT", b"vmfs" + name)
    answer = info(guest, b'createType="%s"\n' % (b"t" * 2000))
    assert (answer.refusal, answer.arguments[1], answer.text) == ("VMDK_SUBFORMAT", 64, b"t" * 64)


def test_slice_without_a_descriptor(guest: Guest) -> None:
    """With room for one, as some programs write it, and without."""
    for image in (RECIPE.image(b""), RECIPE.image(descriptor=0, descriptor_size=0)):
        answer = info(guest, image)
        assert (answer.refusal, answer.arguments[0]) == ("VMDK_SUBFORMAT", 5)


def changed(old: bytes, new: bytes) -> bytes:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


EXTENT = b'RW 8192 SPARSE "disk.vmdk"\n'
DESCRIPTORS: dict[str, tuple[bytes, str, int | None]] = {
    "no end": (TEXT.ljust(20 * SECTOR, b"x"), "VMDK_DESCRIPTOR", 1),
    "no type": (changed(b"createType", b"createTyp"), "VMDK_DESCRIPTOR", 2),
    "type without quotation marks": (changed(b'"monolithicSparse"', b"monolithicSparse"), "VMDK_DESCRIPTOR", 2),
    "no CID but the parent's": (changed(b"\nCID=", b"\nCIC="), "VMDK_DESCRIPTOR", 8),
    "CID that is no number": (changed(b"CID=1", b"CID=x"), "VMDK_DESCRIPTOR", 3),
    "CID that is signed": (changed(b"CID=1", b"CID=-"), "VMDK_DESCRIPTOR", 3),
    "CID of nine digits": (changed(b"CID=1", b"CID=11"), "VMDK_DESCRIPTOR", 3),
    "CID without digits": (changed(b"CID=12345678", b"CID="), "VMDK_DESCRIPTOR", 3),
    "no parentCID": (changed(b"parentCID=ffffffff\n", b""), "VMDK_DESCRIPTOR", 3),
    "parent without quotation marks": (changed(b"\n\n#", b"\nparentFileNameHint=x\n\n#"), "VMDK_DESCRIPTOR", 4),
    "parent with three of them": (changed(b"\n\n#", b'\nparentFileNameHint="x"y"\n\n#'), "VMDK_DESCRIPTOR", 4),
    "long parent": (changed(b"\n\n#", b'\nparentFileNameHint="%s"\n\n#' % (b"x" * 1024)), "BACKING_NAME_LONG", None),
    "no extent": (changed(EXTENT, b""), "VMDK_DESCRIPTOR", 5),
    "extent without a name": (changed(EXTENT, b"RW 8192 SPARSE\n"), "VMDK_DESCRIPTOR", 5),
    "extent without a size": (changed(b"RW 8192", b"RW x"), "VMDK_DESCRIPTOR", 5),
    "extent of more sectors than there are numbers": (changed(b"8192", b"9" * 40), "VMDK_DESCRIPTOR", 5),
    "extent that may only be read": (changed(b"RW ", b"RDONLY "), "VMDK_DESCRIPTOR", 5),
    "two extents": (changed(EXTENT, EXTENT + EXTENT), "VMDK_DESCRIPTOR", 6),
    "second extent in a file of the host": (
        changed(EXTENT, EXTENT + b'RW 1 FLAT "/etc/shadow" 0\n'),
        "VMDK_DESCRIPTOR",
        6,
    ),
    "second extent behind blanks": (changed(EXTENT, EXTENT + b' \tRW 1 FLAT "/x" 0\n'), "VMDK_DESCRIPTOR", 6),
    "two ids": (changed(b"version=1\n", b"version=1\nCID=1\n"), "VMDK_DESCRIPTOR", 7),
    "two parents": (
        changed(b"\n\n#", b'\nparentFileNameHint="a"\nparentFileNameHint="b"\n\n#'),
        "VMDK_DESCRIPTOR",
        7,
    ),
    "parent in the midst of a line": (changed(b"#DDB", b'# parentFileNameHint="/etc/shadow"'), "VMDK_DESCRIPTOR", 8),
    "another id in a comment": (changed(b"# Disk", b"# CID=00000001"), "VMDK_DESCRIPTOR", 8),
    "parentCID ahead of CID": (
        changed(b"CID=12345678\nparentCID=ffffffff", b"parentCID=ffffffff\nCID=12345678"),
        "VMDK_DESCRIPTOR",
        8,
    ),
    "flat extent": (changed(b"SPARSE", b"FLAT"), "VMDK_SUBFORMAT", 2),
    "zero extent": (changed(b"SPARSE", b"ZERO"), "VMDK_SUBFORMAT", 2),
    "extent elsewhere": (changed(b"disk.vmdk", b"/etc/shadow"), "VMDK_EXTENT", None),
    "extent above": (changed(b"disk.vmdk", b"../disk.vmdk"), "VMDK_EXTENT", None),
    "extent elsewhere on Windows": (changed(b"disk.vmdk", b"c:\\disk.vmdk"), "VMDK_EXTENT", None),
    "extent that is a directory": (changed(b"disk.vmdk", b".."), "VMDK_EXTENT", None),
    "smaller extent": (changed(b"8192", b"8191"), "VMDK_EXTENT_SIZE", 8192),
}


@pytest.mark.parametrize("case", DESCRIPTORS)
def test_lying_descriptors(guest: Guest, case: str) -> None:
    text, refusal, argument = DESCRIPTORS[case]
    answer = info(guest, RECIPE.image(text))
    assert answer.refusal == refusal
    assert argument is None or answer.arguments[0] == argument
    assert not answer.modified


def test_extent_without_a_name(guest: Guest) -> None:
    """As mkimg of FreeBSD writes it. It names no file, and none would be opened for it."""
    answer = info(guest, RECIPE.image(changed(b"disk.vmdk", b"")))
    assert (answer.refusal, answer.result.descriptor_sectors) == ("", 20)


@given(st.integers(0, 21 * SECTOR - 1), st.binary(min_size=1, max_size=64))
@settings(max_examples=300)
def test_any_damage_is_refused_or_harmless(library: Guest, offset: int, damage: bytes) -> None:
    """Nothing outside the rules of the doorbell, whatever the header and the descriptor say."""
    image = bytearray(RECIPE.image())
    image[offset : offset + len(damage)] = damage
    answer = info(library, bytes(image))
    assert answer.refusal or answer.result.virtual_size % SECTOR == 0


# ---- before the first write ----------------------------------------------------------------------------------------


def commit(guest: Guest, base: bytes, top: bytes, **fields: Any) -> Answer:
    """From disk 1 to disk 0, without a change of the top."""
    guest.load_bytes(base)
    guest.load_other(top)
    layers = [{"format": LAYER_VMDK, "disk": 1}, {"format": LAYER_VMDK, "disk": 0}]
    return guest.call("commit", layer_count=2, base=1, layers=layers, **fields)


def top_of(base: Recipe, *grains: bytes) -> bytes:
    """An overlay of that image which holds these grains, the first ones of the disk."""
    recipe = Recipe(base.size, GRAIN, parent=b"base.vmdk", parent_cid=base.cid)
    image = bytearray(recipe.image())
    first = len(image) // SECTOR
    struct.pack_into(f"<{len(grains)}I", image, tables_of(image)[0], *(first + 128 * i for i in range(len(grains))))
    return bytes(image) + b"".join(grains)


def tables_of(image: bytes | bytearray, copy: str = "directory") -> list[int]:
    """Offsets of the grain tables."""
    (place,) = struct.unpack_from("<Q", image, 56 if copy == "directory" else 48)
    (first,) = struct.unpack_from("<I", image, place * SECTOR)
    return [first * SECTOR]


def test_commit(guest: Guest) -> None:
    """A new grain at the end of the file, in both tables; the id changes, always to the same."""
    top = top_of(RECIPE, b"\x11" * GRAIN)
    base = RECIPE.image()
    answer = commit(guest, base, top)
    assert answer.refusal == ""
    first = guest.image()
    assert len(first) == len(base) + GRAIN
    assert first[len(base) :] == b"\x11" * GRAIN
    for copy in ("directory", "redundant"):
        assert struct.unpack_from("<II", first, tables_of(base, copy)[0]) == (len(base) // SECTOR, 0)
    assert first[SECTOR : len(TEXT) + SECTOR] != TEXT
    commit(guest, first, top)
    assert guest.image() == first


def damaged(sector: int, copy: str = "directory", index: int = 0) -> bytes:
    """A base with two grains, and this entry in one of its tables."""
    image = bytearray(RECIPE.image())
    end = len(image) // SECTOR
    for each in ("directory", "redundant"):
        struct.pack_into("<II", image, tables_of(image, each)[0], end, end + 128)
    struct.pack_into("<I", image, tables_of(image, copy)[0] + 4 * index, sector)
    return bytes(image) + bytes(2 * GRAIN)


END = len(RECIPE.image()) // SECTOR


@pytest.mark.parametrize(
    ("base", "refusal"),
    [
        (damaged(1), "VMDK_OUTSIDE"),  # without zeroed grains it is the descriptor
        (damaged(21), "VMDK_OUTSIDE"),
        (damaged(END + 256), "VMDK_OUTSIDE"),
        (damaged(END + 255), "VMDK_OUTSIDE"),
        (damaged(0xFFFFFFFF), "VMDK_OUTSIDE"),
        (damaged(END + 128, index=5), "VMDK_OVERLAP"),
        (damaged(END + 127, index=0), "VMDK_OVERLAP"),
    ],
)
def test_grains_that_cannot_be(guest: Guest, base: bytes, refusal: str) -> None:
    answer = commit(guest, base, top_of(RECIPE, b"\x11" * GRAIN))
    assert answer.refusal == refusal
    assert not answer.modified
    assert guest.image() == base


def test_grains_that_are_not_on_a_border(guest: Guest) -> None:
    """Other programs begin with their data right behind the tables."""
    top = top_of(RECIPE, b"\x11" * GRAIN)
    assert commit(guest, damaged(END + 77, index=1) + bytes(GRAIN), top).refusal == "VMDK_OVERLAP"
    assert commit(guest, damaged(END + 128 + 77, index=1) + bytes(GRAIN), top).refusal == ""


def test_more_tables_than_the_file_has_room_for(guest: Guest) -> None:
    """4 TiB in 700 KiB: one table for all of the disk. Whoever went over it would be at it for days."""
    large = Recipe(1 << 42, GRAIN, parent=b"base.vmdk", parent_cid=RECIPE.cid)
    image = bytearray(RECIPE.image(large.descriptor()))
    table = tables_of(image)[0] // SECTOR
    directory = len(image) // SECTOR
    image += struct.pack("<I", table) * (large.size // (512 * GRAIN))
    struct.pack_into("<Q", image, 12, large.size // SECTOR)
    for place, value in ((48, directory), (56, directory), (64, len(image) // SECTOR)):
        struct.pack_into("<Q", image, place, value)
    answer = commit(guest, RECIPE.image(), bytes(image))
    assert answer.refusal == "VMDK_OVERLAP"
    assert not answer.modified


@pytest.mark.parametrize("copy", ["directory", "redundant"])
@pytest.mark.parametrize(
    ("sector", "refusal"),
    [
        (0, "VMDK_NO_TABLE"),
        (1, "VMDK_OVERLAP"),
        (20, "VMDK_OVERLAP"),
        (21, "VMDK_OVERLAP"),
        (26, "VMDK_OVERLAP"),
        (END, "VMDK_OUTSIDE"),
        (0xFFFFFFFF, "VMDK_OUTSIDE"),
    ],
)
def test_tables_that_cannot_be(guest: Guest, copy: str, sector: int, refusal: str) -> None:
    base = bytearray(RECIPE.image())
    (place,) = struct.unpack_from("<Q", base, 56 if copy == "directory" else 48)
    struct.pack_into("<I", base, place * SECTOR, sector)
    answer = commit(guest, bytes(base), top_of(RECIPE, b"\x11" * GRAIN))
    assert answer.refusal == refusal
    assert guest.image() == base


def one_copy(what: str) -> bytes:
    """A base with one copy of its tables: both fields name one directory, or both directories the same table."""
    if what == "directory":
        (place,) = struct.unpack_from("<Q", RECIPE.image(), 56)
        return RECIPE.image(redundant=place)
    image = bytearray(RECIPE.image())
    redundant, directory = struct.unpack_from("<QQ", image, 48)
    image[redundant * SECTOR : redundant * SECTOR + 4] = image[directory * SECTOR : directory * SECTOR + 4]
    return bytes(image)


@pytest.mark.parametrize("what", ["directory", "tables"])
def test_one_copy_of_the_tables(guest: Guest, what: str) -> None:
    base = one_copy(what)
    assert commit(guest, base, top_of(RECIPE, b"\x11" * GRAIN)).refusal == ""
    after = Vmdk(guest.image())
    assert after.shown() == (b"\x11" * GRAIN).ljust(RECIPE.size, b"\0") == after.shown(redundant=True)
    assert len(after.bytes) == len(base) + GRAIN


def test_directory_inside_the_other_one(guest: Guest) -> None:
    """Not one copy, and not two."""
    large = Recipe(8192 * MEGA)
    (place,) = struct.unpack_from("<Q", large.image(), 56)
    base = large.image(redundant=place + 1)
    assert commit(guest, base, top_of(large, b"\x11" * GRAIN)).refusal in ("VMDK_OVERLAP", "VMDK_NO_TABLE")
    assert guest.image() == base


@pytest.mark.parametrize("sector", [0, 20, 200])
def test_directories_that_cannot_be(guest: Guest, sector: int) -> None:
    base = RECIPE.image(directory=sector) + bytes(MEGA)
    answer = commit(guest, base, top_of(RECIPE, b"\x11" * GRAIN))
    assert answer.refusal in ("VMDK_OVERLAP", "VMDK_OUTSIDE", "VMDK_NO_TABLE")
    assert guest.image() == base


@pytest.mark.parametrize(("sector", "refusal"), [(1, "VMDK_OVERLAP"), (0x7FFFFFFF, "VMDK_OUTSIDE"), (0, "")])
def test_top_is_looked_through_first(guest: Guest, sector: int, refusal: str) -> None:
    """What is wrong with its last table, far behind the first ones, is found before the first write."""
    base = Recipe(16384 * MEGA)
    top = bytearray(top_of(base, b"\x11" * GRAIN))
    (place,) = struct.unpack_from("<Q", top, 56)
    struct.pack_into("<I", top, place * SECTOR + 4 * (base.tables - 1), sector)
    answer = commit(guest, base.image(), bytes(top), records_id=int(sector != 0))  # disk 1 is not written to here
    assert answer.refusal == refusal
    assert (guest.image() == base.image()) == (refusal != "")


def test_parent_that_has_changed(guest: Guest) -> None:
    other = Recipe(RECIPE.size, cid=RECIPE.cid + 1)
    answer = commit(guest, other.image(), top_of(RECIPE, b"\x11" * GRAIN))
    assert (answer.refusal, answer.arguments[:2]) == ("VMDK_PARENT_CHANGED", (RECIPE.cid, RECIPE.cid + 1))


def test_base_that_is_too_small(guest: Guest) -> None:
    larger = Recipe(RECIPE.size + SECTOR, cid=RECIPE.cid)
    answer = commit(guest, RECIPE.image(), top_of(larger, b"\x11" * GRAIN), resize_allowed=1)
    assert (answer.refusal, answer.arguments[:2]) == ("BASE_VMDK_RESIZE", (RECIPE.size, RECIPE.size + SECTOR))


def test_version_that_may_only_be_read(guest: Guest) -> None:
    old = Recipe(RECIPE.size, version=3)
    assert info(guest, old.image()).refusal == ""
    assert commit(guest, old.image(), top_of(old, b"\x11" * GRAIN)).refusal == "VMDK_READ_ONLY"


def test_id_of_few_digits(guest: Guest) -> None:
    """It keeps as many, in the base and in what records it."""
    text = TEXT.replace(b"CID=12345678", b"CID=5a7")
    base = RECIPE.image(text)
    recipe = Recipe(RECIPE.size, cid=0x5A7)
    assert commit(guest, base, top_of(recipe, b"\x11" * GRAIN)).refusal == ""
    after = guest.image()[SECTOR : SECTOR + len(text)]
    assert after != text
    assert len(after.rstrip(b"\0")) == len(text)


SMALL = Recipe(64 << 10, 512, 64, zeroed_grains=True)


@given(
    st.sampled_from(("base", "top")),
    st.lists(st.tuples(st.integers(0, 60 * SECTOR), st.integers(0, 0xFFFFFFFF) | st.integers(0, 300)), max_size=4),
)
@settings(max_examples=400)
def test_a_commit_between_damaged_images(library: Guest, which: str, damage: list[tuple[int, int]]) -> None:
    """Refused before the first write, or done as the images say; and never anything outside the rules."""
    grains = [bytes([number]) * 512 for number in range(1, 100)]
    images = {
        "base": bytearray(filled(SMALL, grains[:40])),
        "top": bytearray(
            filled(Recipe(SMALL.size, 512, 64, True, parent=b"base", parent_cid=SMALL.cid, cid=7), grains[40:])
        ),
    }
    for offset, value in damage:
        struct.pack_into("<I", images[which], offset // 4 * 4, value)
    base, top = bytes(images["base"]), bytes(images["top"])
    answer = commit(library, base, top)
    after = library.image()
    if answer.refusal:
        assert not answer.modified
        assert after == base
    else:
        assert Vmdk(after).shown() == Vmdk(top).shown(Vmdk(base).shown())
