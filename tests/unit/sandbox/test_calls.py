# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers of a guest that lies are refused; calls have the agreed form."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import errors
from sandbox.images import calls
from sandbox.vmm import kvm

from .guest_answers import record, records
from .snapshot_tables import snapshot


def test_snapshots_come_out_as_they_went_in() -> None:
    wanted = (
        snapshot(b"1", b"first", (1, 2), 3, 4, 5),
        snapshot(b"", b"", icount=None),
        snapshot(b"9" * 127, b"n" * 255, ((1 << 32) - 1,) * 2, (1 << 64) - 1, (1 << 64) - 1, (1 << 64) - 2),
        snapshot(b"\x1b", b"\xff\n"),
    )
    assert calls.snapshots(records(wanted), 4) == wanted
    assert calls.snapshots(b"", 0) == ()


def test_65536_snapshots_are_read() -> None:
    one = record(snapshot(b"1", b"name"))
    assert len(calls.snapshots(one * 65536, 65536)) == 65536


@pytest.mark.parametrize("count", [65537, (1 << 32) - 1])
def test_more_than_that_are_not(count: int) -> None:
    with pytest.raises(errors.GuestProtocolError, match="snapshots"):
        calls.snapshots(b"", count)


GOOD = records([snapshot(b"1", b"one"), snapshot(b"2", b"two")])


@pytest.mark.parametrize(
    ("payload", "count"),
    [
        (GOOD, 1),
        (GOOD, 3),
        (GOOD[:-1], 2),
        (GOOD + b"\0", 2),
        (GOOD + bytes(8), 2),
        (b"", 1),
        (GOOD[:40], 1),
        (record(snapshot(b"1" * 128)), 1),
        (record(snapshot(name=b"n" * 256)), 1),
        (record(snapshot(b"1\0")), 1),
        (record(snapshot(name=b"\0")), 1),
        (struct.pack("<QQQQIIHHI", 0, 0, 0, 0, 0, 0, 127, 255, 0), 1),
        (struct.pack("<QQQQIIHHI", 0, 0, 0, 0, 0, 0, 65535, 65535, 0) + bytes(1000), 1),
    ],
)
def test_a_payload_that_does_not_fit_is_refused(payload: bytes, count: int) -> None:
    with pytest.raises(errors.GuestProtocolError):
        calls.snapshots(payload, count)


@given(st.binary(max_size=400), st.integers(0, 5))
def test_chance_is_refused_or_read_to_its_end(payload: bytes, count: int) -> None:
    try:
        found = calls.snapshots(payload, count)
    except errors.GuestProtocolError:
        return
    assert len(found) == count


@pytest.mark.parametrize("data", [b"", bytes(100), bytes(8192), b"\xff" * 8192])
@pytest.mark.parametrize(
    "operation",
    ["snapshot_list", "image_info", "snapshot_compare", "snapshot_create", "snapshot_apply", "snapshot_delete"],
)
def test_a_result_of_another_form_is_refused(operation: str, data: bytes) -> None:
    with pytest.raises(errors.GuestProtocolError):
        calls.result(operation, data)


def test_text_in_a_result_is_bounded() -> None:
    ffi, _library = kvm.bindings()
    data = struct.pack("<IIII", ffi.integer_const("ABI_VERSION"), 0, 0, 1025) + bytes(8192)
    with pytest.raises(errors.GuestProtocolError, match="1025 bytes of text"):
        calls.result("snapshot_list", data)


@pytest.mark.parametrize(("length", "limit"), [(11, 10), (10, 20), ((1 << 32) - 1, 127)])
def test_a_text_longer_than_its_field_is_refused(length: int, limit: int) -> None:
    with pytest.raises(errors.GuestProtocolError):
        calls.text(b"123456789", length, limit, "a name")


def test_call_has_the_agreed_bytes() -> None:
    selector = calls.Selector.by_id(b"7", b"seven")
    call = calls.build("snapshot_apply", [123, 456], {"snapshot": selector, "resize_allowed": 1})
    header = struct.pack("<IIII64Q", 1, 5, 2, 0, 123, 456, *[0] * 62)
    wanted = struct.pack("<IHH128s256sII", 3, 1, 5, b"7", b"seven", 1, 0)
    assert call == header + wanted


@pytest.mark.parametrize(
    ("selector", "possible"),
    [
        (calls.Selector.by_name(b"n" * 255), True),
        (calls.Selector.by_name(b"n" * 256), False),
        (calls.Selector.by_id_or_name(b"n" * 255), True),
        (calls.Selector.by_id_or_name(b"n" * 100000), False),
        (calls.Selector.by_id(b"1" * 128), False),
        (calls.Selector.by_id(b"1", b"n" * 256), False),
    ],
)
def test_what_no_snapshot_can_be_called(selector: calls.Selector, possible: bool) -> None:
    assert selector.can_match() == possible
    if possible:
        calls.build("snapshot_delete", [0], {"snapshot": selector})
