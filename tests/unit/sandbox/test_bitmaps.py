# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bitmaps: what is asked of the guest, what is made of its answers, and which of them are refused."""

from __future__ import annotations

import os
import pathlib
import struct
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import errors
from sandbox.images import bitmaps
from sandbox.images.bitmaps import Action, Bitmap, Extent, change_bitmap, list_bitmaps
from sandbox.images.image import Image
from sandbox.images.transaction import Transaction
from sandbox.vmm import kvm, machine

from .guest_answers import Guest, bitmap_record

SIZE = 1 << 20
ALL_ONES = (1 << 64) - 1
MERGE = 6  # enum bitmap_action_kind
PLAIN = Bitmap(b"b0", 65536, True, False, False, 65536 * 3, 3)
BITMAPS = (
    PLAIN,
    Bitmap(b"\x1b[31m\xff", 512, False, False, False, 0, 0),
    Bitmap(b"in use", 1 << 31, True, True, False, None, None),
    Bitmap(b"", 4096, False, False, True, None, None),
    Bitmap(b"n" * 1023, 1 << 31, True, False, False, SIZE, 1),
)


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    guest = Guest()
    guest.family = "bitmap"
    monkeypatch.setattr(machine, "run", guest.run)
    return guest


@pytest.fixture
def image(tmp_path: pathlib.Path) -> t.Iterator[Image]:
    (tmp_path / "disk").write_bytes(b"opaque")
    with Image.open(str(tmp_path / "disk"), writable=True) as image:
        yield image


@pytest.fixture
def other(tmp_path: pathlib.Path) -> t.Iterator[Image]:
    (tmp_path / "other").write_bytes(b"opaque too")
    with Image.open(str(tmp_path / "other")) as image:
        yield image


def records(found: t.Iterable[Bitmap]) -> bytes:
    return b"".join(map(bitmap_record, found))


def extents(*found: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", *each) for each in found)


def call_of(guest: Guest, operation: str) -> t.Any:
    """The struct of the guest's last call; the caller keeps it alive."""
    ffi, _library = kvm.bindings()
    call = guest.calls[-1].call
    struct = ffi.new(f"struct call_{operation} *")
    assert ffi.sizeof(struct[0]) == len(call)
    ffi.memmove(struct, call, len(call))
    return struct


def number(verb: str) -> int:
    return int(kvm.bindings()[0].integer_const(f"CALL_BITMAP_{verb}"))


# ---- lists -------------------------------------------------------------------------------------------------


def test_list(guest: Guest, image: Image) -> None:
    guest.answers("bitmap_list", records(BITMAPS), bitmap_count=5, virtual_size=SIZE, extents_end=77)
    assert list_bitmaps(image) == (BITMAPS, SIZE, (), 0, guest.report, "")
    assert [each.inconsistent for each in BITMAPS] == [False, False, True, True, False]
    call = call_of(guest, "bitmap_list")
    assert (call.header.operation, call.header.disk_count, call.header.disk_size[0]) == (number("LIST"), 1, 6)
    assert (call.counts, call.extents_limit, call.name_length) == (1, 0, 0)
    assert guest.calls[-1][2:] == ([image.disk], (), machine.Limits(), None, None, 0)
    list_bitmaps(image, counts=False)
    assert call_of(guest, "bitmap_list").counts == 0


def test_extents(guest: Guest, image: Image) -> None:
    payload = records([PLAIN]) + extents((65536, 65536), (262144, 131072))
    guest.answers("bitmap_list", payload, bitmap_count=1, virtual_size=SIZE, extent_count=2, extents_end=SIZE)
    found = list_bitmaps(image, extents_of=b"b0", extents_start=100)
    assert found.extents == (Extent(65536, 65536), Extent(262144, 131072))
    assert found.extents_end == SIZE
    call = call_of(guest, "bitmap_list")
    assert (call.extents_start, call.extents_limit, call.name_length) == (100, 1 << 20, 2)
    assert bytes(call.name)[:3] == b"b0\0"
    list_bitmaps(image, extents_of=b"n" * 4000, extents_limit=5)
    call = call_of(guest, "bitmap_list")
    assert (call.extents_limit, call.name_length) == (5, 1024)


@pytest.mark.parametrize("wrong", [{"extents_limit": -1}, {"extents_limit": 1 << 21}, {"extents_start": -1}])
def test_extents_that_cannot_be_asked_for(wrong: dict[str, int], guest: Guest, image: Image) -> None:
    with pytest.raises(errors.ArgumentError):
        list_bitmaps(image, extents_of=b"b0", **wrong)
    assert guest.calls == []


def test_65535_bitmaps_and_a_million_extents_are_read(guest: Guest, image: Image) -> None:
    pairs = b"".join(struct.pack("<QQ", 1024 * index, 512) for index in range(1 << 20))
    payload = bitmap_record(PLAIN) * 65535 + pairs
    guest.answers(
        "bitmap_list", payload, bitmap_count=65535, virtual_size=1 << 30, extent_count=1 << 20, extents_end=1 << 30
    )
    found = list_bitmaps(image, extents_of=b"b0")
    assert (len(found.bitmaps), len(found.extents)) == (65535, 1 << 20)


# ---- answers that lie --------------------------------------------------------------------------------------


LIES = {
    "too many": (records([PLAIN]), {"bitmap_count": 65536}),
    "more than there are": (records([PLAIN]), {"bitmap_count": 2}),
    "fewer than there are": (records([PLAIN] * 2), {}),
    "cut off": (records([PLAIN])[:-1], {}),
    "cut off in the record": (records([PLAIN])[:31], {}),
    "too long": (records([PLAIN]) + b"\0", {}),
    "a name too long": (records([PLAIN._replace(name=b"n" * 1024)]), {}),
    "a name with a NUL": (records([PLAIN._replace(name=b"b\0")]), {}),
    "a name behind the end": (struct.pack("<QQIIII", 0, 0, 512, 0, 1023, 0), {}),
    "granularity 0": (records([PLAIN._replace(granularity=0)]), {}),
    "granularity 256": (records([PLAIN._replace(granularity=256)]), {}),
    "granularity 65537": (records([PLAIN._replace(granularity=65537)]), {}),
    "an unknown flag": (struct.pack("<QQIIII", 0, 0, 512, 8, 0, 0), {}),
    "bytes without bits": (records([PLAIN._replace(dirty_count=0)]), {}),
    "bits without bytes": (records([PLAIN._replace(dirty_bytes=0)]), {}),
    "fewer bytes than bits": (records([PLAIN._replace(dirty_count=4)]), {}),
    "more bytes than bits": (records([PLAIN._replace(dirty_count=2)]), {}),
    "bytes only": (records([PLAIN._replace(dirty_count=None)]), {}),
    "bits only": (records([PLAIN._replace(dirty_bytes=None)]), {}),
    "more than the disk": (records([PLAIN._replace(dirty_bytes=SIZE + 65536, dirty_count=17)]), {}),
    "bits of one in use": (records([PLAIN._replace(in_use=True)]), {}),
    "bits of a stale one": (records([PLAIN._replace(stale=True)]), {}),
    "extents not asked for": (records([PLAIN]) + extents((0, 512)), {"extent_count": 1}),
    "written to": (records([PLAIN]), {"header_modified": 1}),
    "a disk that is none": (b"", {"header_code": 168, "header_disk": 1}),
    "an unknown code": (b"", {"header_code": 199}),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_bitmaps_are_found(lie: str, guest: Guest, image: Image) -> None:
    payload, fields = LIES[lie]
    guest.answers("bitmap_list", payload, **{"bitmap_count": 1, "virtual_size": SIZE, "extents_end": SIZE, **fields})
    with pytest.raises(errors.GuestProtocolError):
        list_bitmaps(image)


@pytest.mark.parametrize(
    ("told", "count", "end"),
    [
        ([(0, 512)], 2, SIZE),
        ([(0, 512), (1024, 512)], 1, SIZE),
        ([(0, 512)] * 4, 4, SIZE),
        ([(0, 0)], 1, SIZE),
        ([(0, 512), (512, 512)], 2, SIZE),
        ([(0, 512), (256, 512)], 2, SIZE),
        ([(1024, 512), (0, 512)], 2, SIZE),
        ([(SIZE, 1)], 1, SIZE),
        ([(0, SIZE + 1)], 1, SIZE),
        ([(0, ALL_ONES)], 1, SIZE),
        ([(ALL_ONES, ALL_ONES)], 1, SIZE),
        ([(0, 512)], 1, SIZE + 1),
        ([(0, 512)], 1, 512),
        ([], 0, 0),
        ([(0, 512), (1024, 512), (2048, 512)], 3, 2048),
    ],
)
def test_lies_about_extents_are_found(
    told: list[tuple[int, int]], count: int, end: int, guest: Guest, image: Image
) -> None:
    payload = records([PLAIN]) + extents(*told)
    guest.answers("bitmap_list", payload, bitmap_count=1, virtual_size=SIZE, extent_count=count, extents_end=end)
    with pytest.raises(errors.GuestProtocolError):
        list_bitmaps(image, extents_of=b"b0", extents_limit=3)


def test_extents_before_the_start_are_a_lie(guest: Guest, image: Image) -> None:
    payload = records([PLAIN]) + extents((0, 512))
    guest.answers("bitmap_list", payload, bitmap_count=1, virtual_size=SIZE, extent_count=1, extents_end=SIZE)
    assert list_bitmaps(image, extents_of=b"b0", extents_start=511).extents == (Extent(0, 512),)
    with pytest.raises(errors.GuestProtocolError):
        list_bitmaps(image, extents_of=b"b0", extents_start=513)


WORD = st.one_of(st.integers(0, 2048), st.sampled_from([0xFFFF, 0x80000000, 0xFFFFFFFF]))
WORDS = st.lists(WORD, max_size=40).map(lambda words: struct.pack(f"<{len(words)}I", *words))


@given(
    payload=st.one_of(
        st.binary(max_size=200), st.lists(WORD, max_size=40).map(lambda w: struct.pack(f"<{len(w)}I", *w))
    ),
    count=st.integers(0, 6),
    size=st.sampled_from([0, 1, SIZE, ALL_ONES]),
)
def test_chance_is_refused_or_read(payload: bytes, count: int, size: int) -> None:
    try:
        found, end = bitmaps.decode_bitmaps(payload, count, size)
    except errors.GuestProtocolError:
        return
    assert len(found) == count
    assert end <= len(payload)
    assert all((each.dirty_bytes or 0) <= size for each in found)
    assert sum((32 + len(each.name) + 7) & ~7 for each in found) == end


# ---- changes -----------------------------------------------------------------------------------------------


def answer(guest: Guest, **fields: t.Any) -> None:
    guest.answers("bitmap_change", records([PLAIN]), bitmap_count=1, virtual_size=SIZE, **fields)


def test_change(guest: Guest, image: Image, other: Image) -> None:
    answer(guest, changed=1, freed_clusters=4, header_modified=1, header_leaked_clusters=2)
    actions = [
        Action.add(512),
        Action.merge(b"x"),
        Action.merge(b"yy", other),
        Action.merge(b"x", other),
        Action.clear(),
        Action.enable(),
        Action.disable(),
        Action.remove(),
    ]
    assert change_bitmap(image, b"b0", actions) == (True, (PLAIN,), SIZE, 4, 2, guest.report)
    call = call_of(guest, "bitmap_change")
    assert (call.header.operation, call.header.disk_count) == (number("CHANGE"), 2)
    assert list(call.header.disk_size[0:3]) == [6, 10, 0]
    assert (call.action_count, call.dry_run, call.counts, call.name_length) == (8, 0, 1, 2)
    assert bytes(call.name)[:3] == b"b0\0"
    assert bytes(call.text)[:4] == b"xyy\0"
    rows = [(row.kind, row.granularity, row.source_disk, row.source_at, row.source_length) for row in call.actions[0:9]]
    assert rows == [
        (1, 512, 0, 0, 0),
        (MERGE, 0, 0, 0, 1),
        (MERGE, 0, 1, 1, 2),
        (MERGE, 0, 1, 0, 1),
        (3, 0, 0, 0, 0),
        (4, 0, 0, 0, 0),
        (5, 0, 0, 0, 0),
        (2, 0, 0, 0, 0),
        (0, 0, 0, 0, 0),
    ]
    run = guest.calls[-1]
    assert (run.disks, run.writable, run.journal) == ([image.disk, other.disk], (0,), None)


def test_dry_run_writes_nothing(guest: Guest, other: Image) -> None:
    answer(guest, changed=1)
    assert change_bitmap(other, b"b0", [Action.clear()], dry_run=True, counts=False).changed is True
    call = call_of(guest, "bitmap_change")
    assert (call.dry_run, call.counts) == (1, 0)
    assert guest.calls[-1].writable == ()
    with pytest.raises(errors.ArgumentError, match="opened for reading"):
        change_bitmap(other, b"b0", [Action.clear()])
    answer(guest, changed=1, header_modified=1)
    with pytest.raises(errors.GuestProtocolError, match="wrote"):
        change_bitmap(other, b"b0", [Action.clear()], dry_run=True)


def test_a_source_of_the_same_group_is_only_read(guest: Guest, image: Image, tmp_path: pathlib.Path) -> None:
    answer(guest)
    (tmp_path / "third").write_bytes(b"opaque")
    with Image.open(str(tmp_path / "third"), writable=True) as third, Transaction([image, third]):
        change_bitmap(image, b"b0", [Action.merge(b"x", third)])
        assert guest.calls[-1].journal is image.journal
        assert guest.calls[-1].writable == (0,)
        os.fstat(third.disk.descriptor)  # still open
    with pytest.raises(errors.ArgumentError) as caught:
        change_bitmap(image, b"b0", [Action.merge(b"x", image)])
    assert caught.value.code == "bitmap_source_same"


def test_the_same_file_by_another_name_is_no_source(guest: Guest, image: Image, tmp_path: pathlib.Path) -> None:
    os.link(image.path, tmp_path / "link")
    with Image.open(str(tmp_path / "link"), force_share=True) as link, pytest.raises(errors.ArgumentError) as caught:
        change_bitmap(image, b"b0", [Action.merge(b"x", link)])
    assert caught.value.code == "bitmap_source_same"
    assert guest.calls == []


@pytest.mark.parametrize(
    ("actions", "code"),
    [
        ([], "argument"),
        ([Action.clear()] * 1025, "too_many_actions"),
        ([Action.merge(bytes([65 + i]) * 1024) for i in range(33)], "too_many_actions"),
        ([Action.add(-1)], "bitmap_granularity"),
        ([Action.add(1 << 32)], "bitmap_granularity"),
    ],
)
def test_what_no_call_can_hold(actions: list[Action], code: str, guest: Guest, image: Image) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        change_bitmap(image, b"b0", actions)
    assert caught.value.code == code
    assert guest.calls == []


def test_64_sources_are_one_too_many(guest: Guest, image: Image, tmp_path: pathlib.Path) -> None:
    answer(guest)
    (tmp_path / "source").write_bytes(b"opaque")
    opened = [Image.open(str(tmp_path / "source")) for _number in range(64)]
    change_bitmap(image, b"b0", [Action.merge(b"x", source) for source in opened[:63]])
    call = call_of(guest, "bitmap_change")
    assert (call.header.disk_count, call.actions[62].source_disk) == (64, 63)
    with pytest.raises(errors.ArgumentError) as caught:
        change_bitmap(image, b"b0", [Action.merge(b"x", source) for source in opened])
    assert caught.value.code == "too_many_sources"
    for source in opened:
        source.close()


def test_1024_actions_and_names_repeated_fit(guest: Guest, image: Image) -> None:
    answer(guest)
    change_bitmap(image, b"b0", [Action.merge(b"n" * 1023)] * 1023 + [Action.merge(b"m" * 4000)])
    call = call_of(guest, "bitmap_change")
    assert call.action_count == 1024
    assert (call.actions[1022].source_at, call.actions[1022].source_length) == (0, 1023)
    assert (call.actions[1023].source_at, call.actions[1023].source_length) == (1023, 1024)


@pytest.mark.parametrize(
    "lie", [{"bitmap_count": 2}, {"header_modified": 1}, {"header_modified": 1, "changed": 1, "bitmap_count": 0}]
)
def test_lies_about_changes_are_found(lie: dict[str, int], guest: Guest, image: Image) -> None:
    guest.answers("bitmap_change", records([PLAIN]), **{"bitmap_count": 1, "virtual_size": SIZE, **lie})
    with pytest.raises(errors.GuestProtocolError) as caught:
        change_bitmap(image, b"b0", [Action.clear()])
    assert caught.value.modified is bool(lie.get("header_modified"))
