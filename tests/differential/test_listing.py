# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table of snapshot -l, byte for byte, over everything that a snapshot table can say."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.support import qemu
from tests.support.chains import Arena
from tests.support.drivers import QemuDriver
from tests.support.patch import Entry, Patch

MAX64 = (1 << 64) - 1

QUIRKS = {
    "plain": Entry(),
    "empty name": Entry(name=b""),
    "empty id": Entry(id=b""),
    "id of 127 bytes": Entry(id=b"i" * 127),
    "id of 128 bytes": Entry(id=b"i" * 128),
    "id of 4000 bytes": Entry(id=b"i" * 4000),
    "name of 255 bytes": Entry(name=b"n" * 255),
    "name of 256 bytes": Entry(name=b"n" * 256),
    "name of 65535 bytes": Entry(name=b"n" * 65535),
    "NUL in the name": Entry(name=b"before\0after"),
    "NUL in the id": Entry(id=b"1\x002"),
    "NUL first": Entry(id=b"\0", name=b"\0x"),
    "control bytes": Entry(name=b"\x1b[31mred\x07\r\n\ttab"),
    "bytes that are not UTF-8": Entry(name=b"\xff\xfe\x80"),
    "wide characters": Entry(name="schnapp\u00fc\u4e2d".encode()),
    "UTF-8 cut at 255": Entry(name="\u00e4".encode() * 200),
    "date 0": Entry(date=(0, 0)),
    "date of the last second": Entry(date=(0xFFFFFFFF, 0xFFFFFFFF)),
    "date beyond 2038": Entry(date=(0x80000000, 999_999_999)),
    "clock of the end of time": Entry(vm_clock=MAX64),
    "clock of 9999 hours": Entry(vm_clock=(9999 * 3600 + 59 * 60 + 59) * 10**9 + 999_999_999),
    "clock of 10000 hours": Entry(vm_clock=10000 * 3600 * 10**9),
    "icount not recorded": Entry(icount=MAX64),
    "icount 2^63": Entry(icount=1 << 63),
    "icount 2^63 - 1": Entry(icount=(1 << 63) - 1),
    "icount beyond its column": Entry(icount=12345678901),
    "no extra data": Entry(extra_size=0, vm_state_size=77),
    "extra data of 7 bytes": Entry(extra_size=7, vm_state_size=78),
    "extra data of 8 bytes": Entry(extra_size=8, vm_state_size=79),
    "extra data of 16 bytes": Entry(extra_size=16, icount=5),
    "extra data of 23 bytes": Entry(extra_size=23, icount=5),
    "extra data of 25 bytes": Entry(extra_size=25, icount=5),
    "extra data of 1024 bytes": Entry(extra_size=1024, icount=5),
    "VM state sizes disagree": Entry(vm_state_size=9, vm_state_size_32=0),
    "32-bit VM state size only": Entry(vm_state_size=0, vm_state_size_32=5),
}

SIZES = [0, 1, 999, 1000, 1023, 1024, 1023999, 1024 * 999, 197120, 1 << 20, 10239, 10240, 10 * 1024 + 51, 99 << 20]
SIZES += [(1 << 32) - 1, 1 << 32, 1000 << 30, 999 << 40, 1 << 50, (1 << 63) - 1, 1 << 63, MAX64]


def compare_listing(arena: Arena, entries: list[Entry]) -> bytes:
    """Lists an image with these entries with both; returns qemu-img's table."""
    path = arena.disk
    qemu.create(path, "1M")
    with Patch(path) as patch:
        patch.snapshot_table(entries)
    expected = QemuDriver().listing(path)
    assert arena.driver.listing(path) == expected
    return expected


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The oracle's time zone, for the driver that runs in this process."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("quirk", QUIRKS)
def test_quirk(arena: Arena, quirk: str) -> None:
    assert compare_listing(arena, [Entry(name=b"first"), QUIRKS[quirk], Entry(name=b"last")]).count(b"\n") >= 5


def test_all_quirks_in_one_table(arena: Arena) -> None:
    compare_listing(arena, list(QUIRKS.values()))


def test_sizes(arena: Arena) -> None:
    rng = random.Random(1)
    sizes = SIZES + [rng.randrange(1 << rng.randrange(1, 65)) for _unused in range(400)]
    sizes += [unit * number // 1000 for unit in (1 << 10, 1 << 20, 1 << 60) for number in range(990, 1012)]
    compare_listing(arena, [Entry(name=b"%d" % size, vm_state_size=size) for size in sizes])


def test_random_fields(arena: Arena) -> None:
    rng = random.Random(2)
    entries = [
        Entry(
            id=bytes(rng.choices(range(32, 127), k=rng.randrange(12))),
            name=bytes(rng.choices(range(256), k=rng.randrange(40))),
            date=(rng.randrange(1 << 32), rng.randrange(1 << 32)),
            vm_clock=rng.randrange(1 << rng.randrange(1, 65)),
            vm_state_size=rng.randrange(1 << rng.randrange(1, 65)),
            icount=rng.randrange(1 << rng.randrange(1, 65)),
            extra_size=rng.choice((0, 8, 16, 24, 24, 24, 31, 64)),
        )
        for _unused in range(500)
    ]
    compare_listing(arena, entries)


def test_no_snapshots(arena: Arena) -> None:
    path = arena.disk
    qemu.create(path, "1M")
    assert arena.driver.listing(path) == QemuDriver().listing(path) == b""


def test_as_many_as_there_can_be(arena: Arena) -> None:
    entries = [Entry(id=b"%d" % (i + 1), name=b"s%d" % i) for i in range(65536)]
    assert compare_listing(arena, entries).count(b"\n") == 65538
