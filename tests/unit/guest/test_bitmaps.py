# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lists of bitmap actions in the native guest against the model, on bits that no writer would leave so."""

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
from tests.support.bitmaps import bitmaps, tail_is_clean
from tests.support.native import BitmapAction, Guest, bitmap_records
from tests.support.qcow2 import Qcow2
from tests.unit.guest.bitmap_model import Bitmap, RefusedError, after, runs_of, store

LONG = os.environ.get("AIRLOCK_LONG") == "1"
NAMES = (b"a", b"b", b"c" * 300)
SIZES = (512, 4096 * 3 + 512, 65536 * 3 - 512, 300 * 1024)
GRANULARITIES = (512, 1024, 4096, 65536, 1 << 20)
SLOW = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@st.composite
def runs(draw: st.DrawFn, bits: int) -> frozenset[int]:
    """Runs that begin and end at words and clusters, or near them."""
    edges = [edge for edge in (0, 1, 7, 8, 63, 64, 65, 127, 128, bits // 2, bits - 1, bits) if 0 <= edge <= bits]
    place = st.sampled_from(edges) | st.integers(0, bits)
    found: set[int] = set()
    for start, end in draw(st.lists(st.tuples(place, place), max_size=4)):
        found.update(range(start, end))
    return frozenset(found)


@st.composite
def sets_of_bitmaps(draw: st.DrawFn, size: int) -> list[Bitmap]:
    found = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3)):
        granularity = draw(st.sampled_from(GRANULARITIES))
        found.append(Bitmap(name, granularity, draw(st.booleans()), draw(runs(-(-size // granularity)))))
    return found


@st.composite
def actions(draw: st.DrawFn) -> BitmapAction:
    kind = draw(st.sampled_from(("merge", "merge", "merge", "add", "remove", "clear", "enable", "disable")))
    if kind == "add":
        return BitmapAction(kind, draw(st.sampled_from((0, *GRANULARITIES))))
    if kind == "merge":
        return BitmapAction(kind, 0, draw(st.sampled_from(NAMES)), draw(st.sampled_from((0, 0, 1))))
    return BitmapAction(kind)


@st.composite
def stories(
    draw: st.DrawFn,
) -> Story:
    """A disk's size, its bitmaps, those of another image, and lists."""
    size = draw(st.sampled_from(SIZES))
    lists = st.tuples(st.sampled_from(NAMES), st.lists(actions(), min_size=1, max_size=5))
    others = draw(sets_of_bitmaps(size))
    return size, draw(sets_of_bitmaps(size)), others, draw(st.lists(lists, min_size=1, max_size=3))


@pytest.fixture(scope="module")
def empty(shared: Path) -> Callable[[int], bytes]:
    """empty(size): an image without bitmaps."""
    made: dict[int, bytes] = {}

    def get(size: int) -> bytes:
        if size not in made:
            path = shared / f"empty-{size}-{id(made)}.qcow2"
            qemu.create(str(path), size, "cluster_size=512")
            made[size] = path.read_bytes()
            path.unlink()
        return made[size]

    return get


def meaning(path: Path) -> list[tuple[object, ...]]:
    with Qcow2(str(path)) as image:
        return [(b.name, b.granularity, b.recording, b.dirty) for b in bitmaps(image)]


def expected(model: list[Bitmap]) -> list[tuple[object, ...]]:
    return [(b.name, b.granularity, b.recording, runs_of(b.dirty)) for b in model]


def check_records(guest: Guest, model: list[Bitmap], size: int) -> None:
    """The list, its counts, and the dirty ranges of each bitmap."""
    answer = guest.bitmaps()
    records, end = bitmap_records(answer.payload, answer.result.bitmap_count)
    assert end == len(answer.payload)
    assert [(r.name, r.granularity, bool(r.flags & 1), r.dirty_count) for r in records] == [
        (b.name, b.granularity, b.recording, len(b.dirty)) for b in model
    ]
    for bitmap, record in zip(model, records):
        ranges = guest.bitmaps(bitmap.name, 1 << 20)
        numbers = list(struct.unpack_from(f"<{2 * ranges.result.extent_count}Q", ranges.payload, end))
        wanted = [n * bitmap.granularity for run in runs_of(bitmap.dirty) for n in run]
        if wanted:
            wanted[-1] = min(wanted[-1], size - wanted[-2])
        assert numbers == wanted
        assert record.dirty_bytes == sum(wanted[1::2])
        assert ranges.result.extents_end == size


Story = tuple[int, list[Bitmap], list[Bitmap], list[tuple[bytes, list[BitmapAction]]]]


def modelled(before: list[Bitmap], name: bytes, wanted: list[BitmapAction], size: int, others: list[Bitmap]) -> Outcome:
    try:
        return Outcome(after(before, name, wanted, size, others), ("", 0))
    except RefusedError as refused:
        return Outcome(before, refused.args)


class Outcome(NamedTuple):
    """bitmaps: afterwards. refusal: its name and the index of the action; "" for success."""

    bitmaps: list[Bitmap]
    refusal: tuple[object, ...]


def play(guest: Guest, path: Path, story: Story, image: bytes, other: bytes) -> None:
    """Each list of a story is foreseen, carried out, and held against the model."""
    size, model, others, lists = story
    for name, wanted in lists:
        guest.load_bytes(image)
        guest.load_other(other)
        foreseen = guest.change_bitmap(name, *wanted, dry_run=True)
        assert guest.image() == image
        answer = guest.change_bitmap(name, *wanted)
        before, (model, refusal) = model, modelled(model, name, wanted, size, others)
        assert (answer.refusal, foreseen.refusal) == (refusal[0], refusal[0])
        if refusal[0]:
            assert answer.arguments[5] == foreseen.arguments[5] == refusal[1]
            assert guest.image() == image
            continue
        assert answer.result.changed == foreseen.result.changed == (model != before)
        assert (guest.image() == image) == (model == before)
        assert answer.payload == foreseen.payload
        guest.store(path)
        assert meaning(path) == expected(model)
        assert tail_is_clean(str(path))
        verified = guest.verify()
        assert (verified.refusal, verified.leaked) == ("", 0)
        check_records(guest, model, size)
        image = guest.image()


@pytest.fixture(params=["plain", "wide windows", "payload windows"])
def kind(make: Callable[[str], Guest], request: pytest.FixtureRequest) -> Guest:
    return make(request.param)


@settings(max_examples=1000 if LONG else 50, **SLOW)
@given(story=stories())
def test_lists(kind: Guest, empty: Callable[[int], bytes], tmp_path: Path, story: Story) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(empty(story[0]))
    other = store(kind, path, story[2])
    path.write_bytes(empty(story[0]))
    play(kind, path, story, store(kind, path, story[1]), other)


words = st.integers(1, 6)


@settings(max_examples=300)
@given(data=st.data(), count=words)
def test_bits(library: Guest, data: st.DataObject, count: int) -> None:
    """Strings of bits against Python's numbers."""
    top = 64 * count
    edge = st.sampled_from([0, 1, 63, 64, 65, top - 1, top]).filter(lambda n: n <= top) | st.integers(0, top)
    value, more = (data.draw(st.integers(0, (1 << top) - 1) | st.sampled_from([0, (1 << top) - 1])) for _unused in "ab")
    start, end = sorted((data.draw(edge), data.draw(edge)))
    array = library.ffi.new("uint64_t[]", count)

    def fill(number: int) -> None:
        library.ffi.buffer(array)[:] = number.to_bytes(8 * count, "little")

    def read() -> int:
        return int.from_bytes(library.ffi.buffer(array)[:], "little")

    fill(value)
    for wanted in (0, 1):
        there = [bit for bit in range(start, end) if value >> bit & 1 == wanted]
        assert library.lib.probe_bits_next(array, start, end, wanted) == (there[0] if there else end)
    mask = ((1 << end - start) - 1) << start
    library.lib.probe_bits_change(array, start, end, 1)
    assert read() == value | mask
    library.lib.probe_bits_change(array, start, end, 0)
    assert read() == value & ~mask
    fill(value)
    added = library.ffi.new("uint64_t[]", [more >> 64 * i & (1 << 64) - 1 for i in range(count)])
    assert library.lib.probe_bits_merge(array, added, 8 * count) == bin(value | more).count("1")
    assert read() == value | more
    assert library.lib.probe_bits_all_clear(array, 8 * count) == (read() == 0)


def test_all_of_a_name_are_removed(guest: Guest, image: Callable[[str], Path]) -> None:
    """They stand between others, which stay as they are."""
    guest.load(image("tiny"))
    for name in (b"aaa", b"bbbb", b"ccc", b"ddd", b"eeeeeeeee"):
        assert guest.change_bitmap(name, BitmapAction("add", 65536)).refusal == ""
    there = guest.image()
    for name in (b"ccc", b"ddd"):
        assert name in there
        there = there.replace(name, b"aaa")
    guest.load_bytes(there)
    answer = guest.change_bitmap(b"aaa", BitmapAction("remove"))
    assert (answer.refusal, answer.result.changed) == ("", 1)
    listed = guest.bitmaps()
    left, _end = bitmap_records(listed.payload, listed.result.bitmap_count)
    assert [(one.name, one.granularity, one.dirty_bytes) for one in left] == [
        (b"bbbb", 65536, 0),
        (b"eeeeeeeee", 65536, 0),
    ]
    verified = guest.verify()
    assert (verified.refusal, verified.leaked) == ("", 0)
