# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing at a rate, by a clock that only sleeping moves; and flushes that go nowhere."""

from __future__ import annotations

import pathlib
import typing as t

import pytest

from sandbox.host.disks import open_disk
from sandbox.vmm import doorbell_copies, kvm
from sandbox.vmm.doorbell_copies import MovingServer
from sandbox.vmm.doorbell_rules import File

FFI, LIBRARY = kvm.bindings()
HEAP = LIBRARY.HEAP_ADDRESS
MEGA = 1 << 20


class Clock:
    """Stands in for time, and for the system call that sleeps."""

    CLOCK_MONOTONIC = 1

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: list[tuple[int, int, int]] = []

    def monotonic(self) -> float:
        return self.now

    def syscall(self, number: int, clock: t.Any, flags: t.Any, duration: t.Any, rest: t.Any) -> int:
        assert rest == FFI.NULL
        self.calls.append((number, int(clock), int(flags)))
        self.now += duration[0] + duration[1] / 1e9
        return 0


class Library:
    """The real one, but for sleeping and flushing."""

    def __init__(self, clock: Clock) -> None:
        self.syscall = clock.syscall
        self.flushes = 0
        self.started: list[tuple[int, int, int, int]] = []

    def __getattr__(self, name: str) -> t.Any:
        return getattr(LIBRARY, name)

    def sync_file_range(self, descriptor: int, offset: int, length: int, flags: int) -> int:
        self.started.append((descriptor, offset, length, flags))
        return int(LIBRARY.sync_file_range(descriptor, offset, length, flags))

    def fdatasync(self, _descriptor: int) -> int:
        self.flushes += 1
        return 0


class Bench:
    def __init__(self, directory: pathlib.Path, clock: Clock, rate: int, flushes: bool = True) -> None:
        (directory / "disk").write_bytes(bytes(range(256)) * (4 * MEGA // 256))
        self.disk = open_disk(str(directory / "disk"), True)
        self.memory = kvm.map_memory(LIBRARY.MEMORY_SIZE, kvm.MAP_PRIVATE_ANONYMOUS_NORESERVE)
        files = [File(self.disk.descriptor, True, False, 1 << 40)]
        self.server = MovingServer(self.memory, files, 1 << 40, rate=rate, flushes=flushes)
        self.library = Library(clock)
        self.server._library = self.library

    def close(self) -> None:
        self.disk.close()
        LIBRARY.munmap(self.memory, LIBRARY.MEMORY_SIZE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(doorbell_copies, "time", made)
    return made


@pytest.fixture
def bench(tmp_path: pathlib.Path, clock: Clock) -> t.Iterator[t.Callable[..., Bench]]:
    made: list[Bench] = []

    def make(rate: int, flushes: bool = True) -> Bench:
        made.append(Bench(tmp_path, clock, rate, flushes))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("rate", [100_000, MEGA, 3 * MEGA])
def test_writes_and_copies_keep_to_the_rate(rate: int, bench: t.Callable[..., Bench], clock: Clock) -> None:
    served = bench(rate).server
    for turn in range(4):
        assert served._write(0, 8 * MEGA + turn * 65536, 65536, HEAP) == 65536
    assert served._copy(0, 16 * MEGA, MEGA, 0, 0, 0) == MEGA
    passed = clock.now - 1000.0
    assert passed == pytest.approx((4 * 65536 + MEGA) / rate, abs=0.11)
    assert set(clock.calls) == {(230, 1, 0)}


def test_what_is_copied_is_right(bench: t.Callable[..., Bench], tmp_path: pathlib.Path) -> None:
    """In steps, and to the end of the source; a copy that cannot be made fails."""
    made = bench(MEGA)
    assert made.server._copy(0, 8 * MEGA, 3 * MEGA, 0, 0, 1000) == 3 * MEGA
    data = (tmp_path / "disk").read_bytes()
    assert data[8 * MEGA :] == data[1000 : 1000 + 3 * MEGA]
    assert made.server._copy(0, 0, 2 * MEGA, 0, 0, 10 * MEGA) == MEGA
    assert made.server._copy(0, 1 << 62, 4096, 0, 0, 0) < 0


def test_time_that_has_passed_is_no_credit_for_long(bench: t.Callable[..., Bench], clock: Clock) -> None:
    served = bench(MEGA).server
    clock.now += 3600
    served._write(0, 0, MEGA, HEAP)
    assert clock.now - 4600.0 == pytest.approx(0.9)


@pytest.mark.parametrize(("rate", "slept"), [(0, 0), (MEGA, 1)])
def test_without_a_rate_nobody_sleeps(rate: int, slept: int, bench: t.Callable[..., Bench], clock: Clock) -> None:
    bench(rate).server._write(0, 0, MEGA, HEAP)
    assert len(clock.calls) == slept


@pytest.mark.parametrize("flushes", [True, False])
def test_flushes(flushes: bool, bench: t.Callable[..., Bench]) -> None:
    made = bench(0, flushes)
    assert made.server._flush(0) == 0
    assert made.library.flushes == int(flushes)


@pytest.mark.parametrize("flushes", [True, False])
def test_the_disk_works_while_much_is_copied(flushes: bool, bench: t.Callable[..., Bench]) -> None:
    """Every 8 MiB the kernel is told to begin; where flushes go nowhere, it may take its time."""
    made = bench(0, flushes)
    for turn in range(7):
        assert made.server._copy(0, (8 + 3 * turn) * MEGA, 3 * MEGA, 0, 0, 0) == 3 * MEGA
    assert made.library.started == [(made.disk.descriptor, 0, 0, 2)] * (2 if flushes else 0)
