# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The header when the first bitmap comes and the last one goes: any extensions, a backing name anywhere; all the rest
says the same afterwards, and refused is only what does not fit."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import qemu
from tests.support.bitmaps import bitmaps_of
from tests.support.native import BitmapAction, Guest
from tests.support.patching import END, FEATURES, extension, patched, put
from tests.support.qcow2 import Qcow2
from tests.support.untouched import header_without_bitmaps

LONG = os.environ.get("AIRLOCK_LONG") == "1"
SIZES = (512, 4096, 8192)
OURS = 32  # bytes that the extension takes
ADD, REMOVE = BitmapAction("add"), BitmapAction("remove")


class Layout(NamedTuple):
    """A header. extensions: (type, data). gap: bytes between their end and the backing name; None: as far as it can."""

    cluster_size: int
    header_length: int
    extensions: list[tuple[int, bytes]]
    name: bytes
    gap: int | None

    def write(self, image: bytes) -> bytes:
        """The image with this header. ValueError when there is no room for it."""
        data = b"".join(extension(kind, content) for kind, content in self.extensions) + extension(END, b"")
        end = self.header_length + len(data)
        start = self.cluster_size - len(self.name) if self.gap is None else end + self.gap
        if start < end or start + len(self.name) > self.cluster_size:
            raise ValueError("no room")
        cluster = image[: self.header_length].ljust(self.header_length, b"\0") + data
        cluster = cluster.ljust(start, b"\0") + self.name
        changed = put(image, 0, cluster.ljust(self.cluster_size, b"\0"))
        place = start if self.name else 0
        return patched(
            changed, header_length=self.header_length, backing_file_offset=place, backing_file_size=len(self.name)
        )

    @property
    def smallest(self) -> int:
        """Bytes that all of it takes with a bitmaps extension, put together as closely as can be, feature names left
        out: they may be."""
        kept = [content for kind, content in self.extensions if kind != FEATURES]
        return max(112, self.header_length) + sum(8 + (len(c) + 7 & ~7) for c in kept) + OURS + 8 + len(self.name)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    cluster_size = draw(st.sampled_from(SIZES))
    names = st.tuples(st.just(FEATURES), st.integers(0, 9).map(lambda count: bytes(48 * count)))
    unknown = st.tuples(st.sampled_from([0x1234, 0x7FFFFFFF]), st.binary(max_size=60))
    extensions = draw(st.lists(unknown | names, max_size=4))
    backing = draw(st.integers(0, 300).map(lambda length: b"n" * length))
    gap = draw(st.sampled_from([None, 0, 1, 8, 24, 31, 32, 33, 40, 100]))
    return Layout(cluster_size, draw(st.sampled_from([104, 112, 120])), extensions, backing, gap)


@pytest.fixture(scope="module")
def empty(shared: Path) -> dict[int, bytes]:
    made = {}
    for size in SIZES:
        path = shared / f"header-{size}-{os.getpid()}.qcow2"
        qemu.create(str(path), 64 << 10, f"cluster_size={size}")
        made[size] = path.read_bytes()
        path.unlink()
    return made


def facts(path: Path, image: bytes) -> tuple[object, ...]:
    path.write_bytes(image)
    with Qcow2(str(path)) as reader:
        return header_without_bitmaps(reader)


@settings(max_examples=3000 if LONG else 250, suppress_health_check=list(HealthCheck))
@given(layout=layouts())
def test_the_first_comes_and_the_last_goes(
    library: Guest, empty: dict[int, bytes], tmp_path: Path, layout: Layout
) -> None:
    try:
        image = layout.write(empty[layout.cluster_size])
    except ValueError:
        return
    path = tmp_path / "image.qcow2"
    before = facts(path, image)
    library.load_bytes(image)
    answer = library.change_bitmap(b"b", ADD)
    if answer.refusal:
        assert answer.refusal == "BITMAP_HEADER_FULL"
        assert library.image() == image
        assert layout.smallest > layout.cluster_size
        return
    assert facts(path, library.image()) == before
    assert [bitmap.name for bitmap in bitmaps_of(str(path))] == [b"b"]
    assert library.change_bitmap(b"c", ADD).refusal == ""
    assert library.change_bitmap(b"b", REMOVE).refusal == ""
    assert facts(path, library.image()) == before
    assert [bitmap.name for bitmap in bitmaps_of(str(path))] == [b"c"]
    assert library.change_bitmap(b"c", REMOVE).refusal == ""
    assert facts(path, library.image()) == before
    with Qcow2(str(path)) as reader:
        assert reader.bitmaps_extension() is None
        assert reader.header["autoclear_features"] == 0
    verified = library.verify()
    assert (verified.refusal, verified.leaked) == ("", 0)


@pytest.fixture
def with_one(guest: Guest, image: Callable[[str], Path]) -> bytes:
    """A bitmap b in an image of 256 KiB."""
    guest.load(image("tiny"))
    assert guest.change_bitmap(b"b", ADD).refusal == ""
    return guest.image()


def entry(image: bytes) -> int:
    """Where the directory's first entry stands."""
    place = image.index(struct.pack(">II", 0x23852875, 24))
    return int.from_bytes(image[place + 24 : place + 32], "big")


REFUSALS = {
    "no name": (b"", [ADD], "BITMAP_NAME_EMPTY"),
    "a long name": (b"n" * 1024, [ADD], "BITMAP_NAME_LONG"),
    "there already": (b"b", [ADD], "BITMAP_EXISTS"),
    "added twice": (b"x", [ADD, ADD], "BITMAP_EXISTS"),
    "not there": (b"x", [REMOVE], "BITMAP_NOT_FOUND"),
    "removed twice": (b"b", [REMOVE, REMOVE], "BITMAP_NOT_FOUND"),
    "cleared once gone": (b"b", [REMOVE, BitmapAction("clear")], "BITMAP_NOT_FOUND"),
    "merged from nothing": (b"b", [BitmapAction("merge", 0, b"x")], "BITMAP_NOT_FOUND"),
    "768 bytes": (b"x", [BitmapAction("add", 768)], "BITMAP_GRANULARITY"),
    "256 bytes": (b"x", [BitmapAction("add", 256)], "BITMAP_GRANULARITY"),
    "a disk that the call has not": (b"b", [BitmapAction("merge", 0, b"b", 2)], "BAD_CALL"),
}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(guest: Guest, with_one: bytes, name: str, dry_run: bool) -> None:
    bitmap, actions, refusal = REFUSALS[name]
    guest.load_bytes(with_one)
    answer = guest.change_bitmap(bitmap, *actions, dry_run=dry_run)
    assert (answer.refusal, answer.modified) == (refusal, False)
    assert guest.image() == with_one
    if refusal != "BAD_CALL":
        assert answer.arguments[5] == len(actions) - 1


@pytest.mark.parametrize("kind", ["clear", "enable", "disable", "merge"])
def test_what_is_in_use_can_only_be_removed(guest: Guest, with_one: bytes, kind: str) -> None:
    place = entry(with_one) + 12
    image = put(with_one, place, b"\0\0\0\3")
    guest.load_bytes(image)
    assert guest.change_bitmap(b"b", BitmapAction(kind, 0, b"b")).refusal == "BITMAP_INCONSISTENT"
    assert guest.change_bitmap(b"x", ADD, BitmapAction("merge", 0, b"b")).refusal == "BITMAP_INCONSISTENT"
    assert guest.bitmaps(b"b", 10).refusal == "BITMAP_INCONSISTENT"
    assert guest.image() == image
    guest.load_bytes(with_one)
    guest.load_other(image)
    assert guest.change_bitmap(b"b", BitmapAction("merge", 0, b"b", 1)).refusal == "BITMAP_INCONSISTENT"
    guest.load_bytes(image)
    assert guest.change_bitmap(b"b", REMOVE, ADD, BitmapAction(kind, 0, b"b")).refusal == ""
    assert guest.verify().leaked == 0


def test_sources_of_another_size(guest: Guest, with_one: bytes) -> None:
    guest.load_bytes(with_one)
    guest.load_other(patched(with_one, size=128 << 10))
    answer = guest.change_bitmap(b"b", BitmapAction("merge", 0, b"b", 1))
    assert answer.refusal == "BITMAP_SIZES"
    assert answer.arguments[:2] == (256 << 10, 128 << 10)
    assert guest.image() == with_one


@pytest.mark.parametrize(("start", "limit"), [(0, 1), (0, 2), (4096, 9), (8191, 9), (8192, 1), (1 << 63, 3)])
def test_a_part_of_the_ranges(guest: Guest, with_one: bytes, tmp_path: Path, start: int, limit: int) -> None:
    """Bits of 4 KiB: 0, 1, 4 and the last one, 63."""
    table = int.from_bytes(with_one[entry(with_one) :][:8], "big")
    data = (len(with_one) + 511) // 512 * 512
    image = put(with_one, data, struct.pack("<Q", 0b10011 | 1 << 63).ljust(512, b"\0"))
    image = put(image, table, struct.pack(">Q", data))
    guest.load_bytes(image)
    answer = guest.bitmaps(b"b", limit, start)
    assert answer.refusal == ""
    count = answer.result.extent_count
    numbers = struct.unpack_from(f"<{2 * count}Q", answer.payload, len(answer.payload) - 16 * count)
    ranges = [(0, 8192), (16384, 4096), (63 * 4096, 4096)]
    wanted = [(max(first, start), first + length) for first, length in ranges if first + length > start]
    told = wanted[:limit]
    assert numbers == tuple(n for first, end in told for n in (first, end - first))
    assert answer.result.extents_end == (wanted[limit][0] if len(wanted) > limit else 256 << 10)
