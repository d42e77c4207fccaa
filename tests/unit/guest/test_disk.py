# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest/disk: requests are joined and batched, run in order, and each failure ends in the right refusal."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.native import Answer, Guest, Request

MEBI = 1 << 20
MEMORY = 64 * 1024
Step = tuple[str, int, int, int]  # operation ("RUN": disk_run()), place in memory, offset, length


@dataclass
class Run:
    answer: Answer
    memory: bytes
    size: int
    log: list[Request]


def run(
    guest: Guest, disk: bytes, steps: Iterable[Step], memory: bytes = b"", fail: tuple[int, int] | None = None
) -> Run:
    """Runs the steps on a disk of these bytes. fail: (request index, errno)."""
    kinds = {name: number for number, name in guest.operations.items()} | {"RUN": 0}
    guest.load_bytes(disk)
    if fail:
        guest.fail(*fail)
    script = guest.ffi.new("struct probe_io[]", [(kinds[name], place, at, length) for name, place, at, length in steps])
    room = guest.ffi.new("uint8_t[]", MEMORY)
    guest.ffi.memmove(room, memory, len(memory))
    size = guest.ffi.new("uint64_t *", len(disk))
    answer = guest.probe("disk", script, len(script), room, size)
    return Run(answer, bytes(guest.ffi.buffer(room)), size[0], guest.log())


def test_neighbours_are_joined(guest: Guest) -> None:
    done = run(guest, b"x" * 4096, [("READ", i * 512, i * 512, 512) for i in range(8)] + [("RUN", 0, 0, 0)])
    assert done.log == [Request("READ", 0, 0, 4096)]
    assert done.memory[:4096] == b"x" * 4096


@pytest.mark.parametrize(
    "second",
    [("READ", 1024, 512, 512), ("READ", 512, 1024, 512), ("WRITE", 512, 512, 512), ("DISCARD", 0, 512, 512)],
    ids=["gap in memory", "gap on disk", "another operation", "no memory"],
)
def test_others_are_not(guest: Guest, second: Step) -> None:
    done = run(guest, bytes(4096), [("READ", 0, 0, 512), second, ("RUN", 0, 0, 0)])
    assert [(r.operation, r.offset, r.length) for r in done.log] == [
        ("READ", 0, 512),
        (second[0], second[2], second[3]),
    ]


def test_a_request_is_bounded(guest: Guest) -> None:
    done = run(guest, b"", [("RESERVE", 0, 5, 40 * MEBI), ("RUN", 0, 0, 0)])
    assert [(r.offset - 5, r.length) for r in done.log] == [
        (0, 16 * MEBI),
        (16 * MEBI, 16 * MEBI),
        (32 * MEBI, 8 * MEBI),
    ]
    assert not done.answer.modified


def test_a_batch_is_bounded(guest: Guest) -> None:
    done = run(guest, bytes(600 * 1024), [("READ", 0, i * 1024, 512) for i in range(600)] + [("RUN", 0, 0, 0)])
    assert [sum(r.batch == n for r in done.log) for n in range(3)] == [255, 255, 90]


def test_nothing_queued_rings_no_bell(guest: Guest) -> None:
    done = run(guest, b"", [("RUN", 0, 0, 0), ("READ", 0, 0, 0), ("RUN", 0, 0, 0)])
    assert done.log == []


def test_behind_the_end_are_zeros(guest: Guest) -> None:
    done = run(guest, b"abc", [("READ", 0, 1, 8), ("READ", 16, 100, 8), ("RUN", 0, 0, 0)], memory=b"#" * 32)
    assert done.memory[:32] == b"bc" + bytes(6) + b"#" * 8 + bytes(8) + b"#" * 8


def test_flush_and_resize_come_after_what_is_queued(guest: Guest) -> None:
    steps = [("WRITE", 0, 0, 4), ("FLUSH", 0, 0, 0), ("DISCARD", 0, 4, 4), ("RESIZE", 0, 0, 100)]
    done = run(guest, b"", steps, memory=b"data")
    assert [r.operation for r in done.log] == ["WRITE", "FLUSH", "DISCARD", "RESIZE"]
    assert [r.batch for r in done.log] == [0, 0, 1, 1]
    assert done.size == 100
    assert guest.image() == b"data" + bytes(96)


@pytest.mark.parametrize(
    ("operation", "modified"),
    [("READ", False), ("RESERVE", False), ("FLUSH", False), ("WRITE", True), ("DISCARD", True), ("RESIZE", True)],
)
def test_what_counts_as_a_change(guest: Guest, operation: str, modified: bool) -> None:
    assert run(guest, b"", [(operation, 0, 0, 8), ("RUN", 0, 0, 0)]).answer.modified is modified


def test_the_same_length_is_no_change(guest: Guest) -> None:
    assert not run(guest, bytes(8), [("RESIZE", 0, 0, 8)]).answer.modified


REFUSALS = [
    ("READ", errno.EIO, "READ_FAILED"),
    ("WRITE", errno.EIO, "WRITE_FAILED"),
    ("WRITE", errno.ENOSPC, "WRITE_FAILED"),
    ("DISCARD", errno.EIO, "WRITE_FAILED"),
    ("RESIZE", errno.EFBIG, "WRITE_FAILED"),
    ("FLUSH", errno.EIO, "WRITE_FAILED"),
    ("RESERVE", errno.ENOSPC, "NO_SPACE"),
    ("RESERVE", errno.EDQUOT, "NO_SPACE"),
    ("RESERVE", errno.EIO, "WRITE_FAILED"),
]


@pytest.mark.parametrize(("operation", "error", "refusal"), REFUSALS)
@pytest.mark.parametrize("before", [0, 1, 254, 255, 300])
def test_a_failure_is_told(guest: Guest, operation: str, error: int, refusal: str, before: int) -> None:
    steps = [("READ", 0, i * 1024, 512) for i in range(before)]
    steps += [(operation, 0, 8192, 0 if operation == "FLUSH" else 64), ("READ", 0, 0, 8), ("RUN", 0, 0, 0)]
    done = run(guest, bytes(16384), steps, fail=(before, error))
    assert (done.answer.refusal, done.answer.arguments[0]) == (refusal, error)
    assert done.answer.modified is (operation in ("WRITE", "DISCARD", "RESIZE"))
    if operation in ("READ", "WRITE", "DISCARD", "RESERVE"):
        assert done.answer.arguments[1:3] == (8192, 64)
    # Nothing behind the failure is done, but for letting go of what was reserved.
    left = [r.operation for r in done.log[before + 1 :]]
    assert left == (["RESIZE"] if refusal == "NO_SPACE" else [])
    assert guest.image() == bytes(16384)


pieces = st.lists(
    st.tuples(
        st.sampled_from(["READ", "WRITE", "DISCARD", "RUN"]),
        st.just(0),
        st.integers(0, 60),
        st.integers(0, 8),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(steps=pieces)
def test_batches_change_nothing_but_the_number_of_bells(library: Guest, steps: list[Step]) -> None:
    """Each step has memory of its own: it must stay as it is until the batch is run."""
    units = [(name, i * 512, at * 64, length * 64) for i, (name, _place, at, length) in enumerate(steps)]
    units.append(("RUN", 0, 0, 0))
    memory = bytearray(range(256)) * (MEMORY // 256)
    disk = bytearray(b"disk" * 512)
    done = run(library, bytes(disk), units, memory=bytes(memory))
    for name, place, at, length in units:
        if name == "READ":
            memory[place : place + length] = bytes(disk[at : at + length]).ljust(length, b"\0")
        elif name == "WRITE" and length:
            disk.extend(bytes(max(0, at + length - len(disk))))
            disk[at : at + length] = memory[place : place + length]
        elif name == "DISCARD":
            end = min(at + length, len(disk))
            disk[at:end] = bytes(max(0, end - at))
    assert library.image() == bytes(disk)
    assert done.memory == bytes(memory)
    assert done.size == len(disk)
