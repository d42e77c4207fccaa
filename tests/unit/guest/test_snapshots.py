# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest/qcow2/snapshots.c: the table is read, searched and written as QEMU does it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.guests._limits import SNAPSHOT_ID_MAX, SNAPSHOT_NAME_MAX
from tests.support.native import Guest
from tests.support.patch import Entry
from tests.support.patching import patched, put

small_numbers = st.integers(0, 30).map(lambda number: b"%d" % number)
texts = st.one_of(st.binary(max_size=6), st.binary(max_size=300), st.sampled_from([b"1", b"2", b"a\0b", b"\0", b""]))
entries = st.builds(
    Entry,
    id=st.one_of(texts, small_numbers),
    name=texts,
    l1_offset=st.integers(0, 1 << 40).map(lambda cluster: cluster << 9),
    l1_size=st.integers(0, (1 << 32) - 1),
    date=st.tuples(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1)),
    vm_clock=st.integers(0, (1 << 64) - 1),
    vm_state_size=st.integers(0, (1 << 64) - 1),
    disk_size=st.integers(0, (1 << 64) - 1),
    icount=st.integers(0, (1 << 64) - 1),
    extra_size=st.sampled_from([0, 7, 8, 15, 16, 17, 23, 24, 25, 40, 1024]),
)
tables = st.lists(entries, max_size=6)


@pytest.fixture(scope="module")
def tiny(image: Callable[[str], Path]) -> bytes:
    return image("tiny").read_bytes()


def encoded(table: list[Entry]) -> bytes:
    data = bytearray()
    for entry in table:
        data += bytes(-len(data) % 8) + entry.encode()
    return bytes(data)


def with_table(image: bytes, table: list[Entry], gap: int = 0) -> bytes:
    """The image with this snapshot table behind its end."""
    offset = (len(image) + 511) // 512 * 512 + gap
    return put(patched(image, nb_snapshots=len(table), snapshots_offset=offset), offset, encoded(table))


def text(data: bytes, limit: int = 1 << 16) -> bytes:
    """What QEMU has of a text in memory: it ends at the first NUL."""
    return data.split(b"\0")[0][:limit]


def listed(entry: Entry) -> tuple[object, ...]:
    """The facts of an entry that a list shows."""
    small = entry.vm_state_size if entry.vm_state_size <= 0xFFFFFFFF else 0
    return (
        entry.vm_state_size if entry.extra_size >= 8 else small,
        entry.vm_clock,
        entry.icount if entry.extra_size >= 24 else (1 << 64) - 1,
        entry.disk_size if entry.extra_size >= 16 else 256 << 10,
        *entry.date,
        text(entry.id, SNAPSHOT_ID_MAX),
        text(entry.name, SNAPSHOT_NAME_MAX),
    )


@settings(max_examples=200)
@given(table=tables)
def test_a_table_is_read(library: Guest, tiny: bytes, table: list[Entry]) -> None:
    library.load_bytes(with_table(tiny, table))
    answer = library.call("snapshot_list")
    assert (answer.refusal, answer.result.snapshot_count) == ("", len(table))
    found, at = [], 0
    for _unused in table:
        record = library.ffi.cast("struct snapshot_record *", library.ffi.from_buffer(answer.payload) + at)
        middle = at + 48 + record.id_length
        end = middle + record.name_length
        numbers = (record.vm_state_size, record.vm_clock, record.icount, record.disk_size)
        date = (record.date_seconds, record.date_nanoseconds)
        found.append((*numbers, *date, answer.payload[at + 48 : middle], answer.payload[middle:end]))
        at = (end + 7) & ~7
    assert at == len(answer.payload)
    assert found == [listed(entry) for entry in table]


def normalised(entry: Entry) -> bytes:
    """An entry as QEMU writes it back: all known extra fields, unknown ones kept, texts up to their NUL."""
    numbers = listed(entry)
    whole = Entry(
        id=text(entry.id),
        name=text(entry.name),
        l1_offset=entry.l1_offset,
        l1_size=entry.l1_size,
        date=entry.date,
        vm_clock=entry.vm_clock,
        vm_state_size=numbers[0],  # type: ignore[arg-type]
        icount=numbers[2],  # type: ignore[arg-type]
        disk_size=numbers[3],  # type: ignore[arg-type]
        extra_size=max(24, entry.extra_size),
    )
    return whole.encode()


@settings(max_examples=200)
@given(table=tables)
def test_a_table_is_written_back(library: Guest, tiny: bytes, table: list[Entry]) -> None:
    start = with_table(tiny, table)
    target = (len(start) + 511) // 512 * 512
    expected = bytearray()
    for entry in table:
        expected += b"\xaa" * (-len(expected) % 8) + normalised(entry)
    # What lay there before stays in the gaps between entries.
    library.load_bytes(start.ljust(target, b"\0") + b"\xaa" * (len(expected) + 100))
    size = library.ffi.new("uint64_t *")
    assert library.probe("snapshots", target, size).refusal == ""
    assert size[0] == len(expected)
    assert library.image()[target:] == bytes(expected) + b"\xaa" * 100


@settings(max_examples=200)
@given(
    table=tables, wanted=st.one_of(texts, st.integers(0, 30).map(lambda number: b"%d" % number)), pick=st.integers(0)
)
def test_a_snapshot_is_found(library: Guest, tiny: bytes, table: list[Entry], wanted: bytes, pick: int) -> None:
    library.load_bytes(with_table(tiny, table))
    if table and pick % 2:
        wanted = text(table[pick % len(table)].name)
    wanted = text(wanted, SNAPSHOT_NAME_MAX)
    ids = [text(entry.id) for entry in table]
    names = [text(entry.name) for entry in table]
    by_id = ids.index(wanted) if wanted in ids else -1
    by_name = names.index(wanted) if wanted in names else -1
    found = library.ffi.new("int64_t *")

    def find(kind: int, identifier: bytes, name: bytes) -> int:
        selector = library.ffi.new("struct selector *")
        selector.kind, selector.id_length, selector.name_length = kind, len(identifier), len(name)
        library.ffi.memmove(selector.id, identifier, min(len(identifier), len(selector.id)))
        library.ffi.memmove(selector.name, name, len(name))
        answer = library.probe("find", selector, found)
        return -2 if answer.refusal == "NAME_NOT_DELETABLE" else found[0] if answer.refusal == "" else -3

    lib = library.lib
    assert find(lib.SELECT_BY_ID_OR_NAME, b"", wanted) == (by_id if by_id >= 0 else by_name)
    cut = [name[:SNAPSHOT_NAME_MAX] for name in names]
    first = cut.index(wanted) if wanted in cut else -1
    too_long = first >= 0 and (len(names[first]) > SNAPSHOT_NAME_MAX or len(ids[first]) > SNAPSHOT_ID_MAX)
    assert find(lib.SELECT_BY_NAME, b"", wanted) == (-2 if too_long else first)
    if len(wanted) <= SNAPSHOT_ID_MAX:
        assert find(lib.SELECT_BY_ID, wanted, b"") == by_id
        both = [i for i, identifier in enumerate(ids) if identifier == wanted and names[i] == wanted]
        assert find(lib.SELECT_BY_ID, wanted, wanted) == (both[0] if both and wanted else by_id if not wanted else -1)


@pytest.mark.parametrize("kind", [0, 4, 0xFFFFFFFF])
def test_an_unknown_selector_is_a_bad_call(guest: Guest, tiny: bytes, kind: int) -> None:
    guest.load_bytes(tiny)
    assert guest.call("snapshot_compare", snapshot={"kind": kind}).refusal == "BAD_CALL"


@pytest.mark.parametrize("lengths", [(65535, 0), (0, 65535), (0, 257)])
def test_lengths_of_a_selector_are_bounded(guest: Guest, tiny: bytes, lengths: tuple[int, int]) -> None:
    guest.load_bytes(with_table(tiny, [Entry()]))
    selector = {"kind": 1, "id_length": lengths[0], "name_length": lengths[1]}
    assert guest.call("snapshot_compare", snapshot=selector).refusal == "BAD_CALL"
    assert guest.call("snapshot_create", name_length=256).refusal == "BAD_CALL"


def strtoul(data: bytes) -> int:
    """What QEMU's arithmetic with ids stands on."""
    function = ctypes.CDLL(None).strtoul
    function.restype = ctypes.c_ulong
    return int(function(ctypes.c_char_p(data), None, 10))


numbers = st.one_of(
    st.integers(0, 1 << 70).map(lambda number: b"%d" % number),
    st.sampled_from(
        [
            *(b"", b"-1", b"-5", b"+7", b" \t\n\v\f\r9", b"0x10", b"12ab", b"-", b"+-3", b"- 3", b"\xa09", b"007"),
            *(b"18446744073709551614", b"18446744073709551615", b"18446744073709551616", b"-18446744073709551616"),
            *(b"-18446744073709551615", b"99999999999999999999", b"1" * 200, b"1\x002"),
        ]
    ),
)


@settings(max_examples=300)
@given(ids=st.lists(numbers, max_size=4))
def test_the_next_id(library: Guest, tiny: bytes, ids: list[bytes]) -> None:
    library.load_bytes(with_table(tiny, [Entry(id=one) for one in ids]))
    identifier = library.ffi.new("uint8_t[]", SNAPSHOT_ID_MAX)
    length = library.ffi.new("uint32_t *")
    assert library.probe("next_id", identifier, length).refusal == ""
    expected = (max([strtoul(one) for one in ids], default=0) + 1) % (1 << 64)
    assert bytes(identifier)[: length[0]] == b"%d" % expected


def test_extra_data_is_bounded(guest: Guest, tiny: bytes) -> None:
    table = [Entry(), Entry(declared_extra=1025), Entry()]
    guest.load_bytes(with_table(tiny, table))
    answer = guest.call("snapshot_list")
    assert (answer.refusal, answer.arguments[0]) == ("SNAPSHOT_EXTRA", 1)
    table[1] = Entry(declared_extra=0xFFFFFFFF)
    guest.load_bytes(with_table(tiny, table))
    assert guest.call("snapshot_list").refusal == "SNAPSHOT_EXTRA"


def test_a_table_that_is_cut_off(guest: Guest, tiny: bytes) -> None:
    whole = with_table(tiny, [Entry(name=b"n" * 200), Entry(name=b"m" * 200)])
    for less in range(1, len(encoded([Entry(name=b"n" * 200), Entry(name=b"m" * 200)])), 7):
        guest.load_bytes(whole[:-less])
        answer = guest.call("snapshot_list")
        assert answer.refusal == "TRUNCATED"
        assert answer.arguments[:3] == (6, (len(tiny) + 511) // 512 * 512, len(whole) - less)


def test_a_table_over_64_mib(guest: Guest, tiny: bytes) -> None:
    """Entries of 66 KiB: qemu-img lists what lies within the limit, we say how many hang over."""
    one = Entry(id=b"i" * 65535, name=b"n" * 65535, extra_size=1024)
    guest.load_bytes(with_table(tiny, [one] * 520))
    answer = guest.call("snapshot_list")
    assert answer.refusal == "SNAPSHOT_TABLE_BIG"
    size = len(one.encode())
    within = next(n for n in range(520) if n * ((size + 7) & ~7) + size > 64 << 20)
    assert answer.arguments[0] == 520 - within


def test_65536_snapshots(guest: Guest, tiny: bytes) -> None:
    table = [Entry(id=b"%d" % i, name=b"s%d" % i, disk_size=256 << 10) for i in range(1, 65537)]
    guest.load_bytes(with_table(tiny, table))
    assert guest.listing() == [(entry.id, entry.name) for entry in table]
    answer = guest.create(b"one more")
    assert (answer.refusal, answer.modified) == ("TOO_MANY_SNAPSHOTS", False)
