# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Snapshot tables of other writers: what an operation makes of their entries, and which of them a name selects."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.support import qemu
from tests.support.chains import Arena
from tests.support.patch import Entry, Patch
from tests.support.qcow2 import COPIED, Qcow2

LONG = os.environ.get("AIRLOCK_LONG") == "1"
MEGA = 1 << 20
MAX64 = (1 << 64) - 1


def make(arena: Arena, entries: Sequence[Entry], options: str = "") -> str:
    """An image of 1 MiB with data and these snapshots, each with an L1 table of its own that maps what the disk maps.
    Consistent: qemu-img check is clean."""
    path = arena.disk
    qemu.create(path, MEGA, options)
    qemu.io(path, "write -P 1 0 128k", "write -P 2 512k 64k")
    with Patch(path) as patch:
        with patch.image() as image:
            l1 = b"".join((entry & ~COPIED).to_bytes(8, "big") for entry in image.active_l1())
        entries = [replace(entry, l1_offset=patch.append(l1), l1_size=len(l1) // 8) for entry in entries]
        patch.snapshot_table(entries)
        patch.settle()
    return path


OLD_ENTRIES = {
    "no extra data": Entry(extra_size=0),
    "7 bytes": Entry(extra_size=7, vm_state_size=7),
    "8 bytes": Entry(extra_size=8),
    "15 bytes": Entry(extra_size=15, disk_size=MEGA),
    "16 bytes": Entry(extra_size=16, disk_size=MEGA),
    "23 bytes": Entry(extra_size=23, disk_size=MEGA, icount=MAX64),
    "24 bytes": Entry(disk_size=MEGA, icount=MAX64),
    "31 bytes": Entry(extra_size=31, disk_size=MEGA, icount=123),
    "1024 bytes": Entry(extra_size=1024, disk_size=MEGA),
    "VM state beyond 32 bits": Entry(disk_size=MEGA, vm_state_size=(1 << 32) + 5),
    "VM state sizes disagree": Entry(disk_size=MEGA, vm_state_size=9, vm_state_size_32=0),
    "32-bit VM state and no extra data": Entry(extra_size=0, vm_state_size_32=123456),
    "clock and date": Entry(disk_size=MEGA, vm_clock=MAX64, date=(0xFFFFFFFF, 0xFFFFFFFF)),
    "NUL in name": Entry(disk_size=MEGA, name=b"old\0rest"),
    "NUL in id": Entry(disk_size=MEGA, id=b"4\x004"),
    "id with letters": Entry(disk_size=MEGA, id=b"12abc"),
    "id of letters": Entry(disk_size=MEGA, id=b"abc"),
    "id with a sign": Entry(disk_size=MEGA, id=b"-5"),
    "id with blanks": Entry(disk_size=MEGA, id=b" 7"),
    "id with a plus": Entry(disk_size=MEGA, id=b"+8"),
    "id with tab and newline": Entry(disk_size=MEGA, id=b"\t\n 9 "),
    "id with leading zeros": Entry(disk_size=MEGA, id=b"0010"),
    "id in hex": Entry(disk_size=MEGA, id=b"0x10"),
    "largest id": Entry(disk_size=MEGA, id=b"18446744073709551615"),
    "id past the largest": Entry(disk_size=MEGA, id=b"99999999999999999999999"),
    "largest id less one": Entry(disk_size=MEGA, id=b"18446744073709551614"),
    "negative id past the largest": Entry(disk_size=MEGA, id=b"-99999999999999999999999"),
    "id of nothing": Entry(disk_size=MEGA, id=b""),
    "id of 127 bytes": Entry(disk_size=MEGA, id=b"1" * 127),
    "id of 128 bytes": Entry(disk_size=MEGA, id=b"x" * 128),
    "name of 255 bytes": Entry(disk_size=MEGA, name=b"n" * 255),
    "name of 256 bytes": Entry(disk_size=MEGA, name=b"n" * 256),
    "name of 65535 bytes": Entry(disk_size=MEGA, name=b"n" * 65535),
}


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("kind", OLD_ENTRIES)
def test_entries_are_normalised(arena: Arena, kind: str, compat: str) -> None:
    """A table is rewritten from what was understood of it, not copied: by create, and by the delete of a neighbour."""
    odd = OLD_ENTRIES[kind]
    neighbour = Entry(id=b"3", name=b"neighbour", disk_size=MEGA)
    make(arena, [odd, neighbour], f"compat={compat}")
    arena.agree("create", b"new")
    arena.agree("delete", b"neighbour")
    arena.agree("create", b"newer")


@pytest.mark.parametrize("kind", OLD_ENTRIES)
def test_entries_are_selected(arena: Arena, kind: str) -> None:
    """Apply by id, apply by name, delete: found or not, both find the same."""
    odd = OLD_ENTRIES[kind]
    make(arena, [Entry(id=b"77", name=b"other", disk_size=MEGA), odd])
    for argument in (odd.id.split(b"\0")[0], odd.name.split(b"\0")[0], odd.name[:255].split(b"\0")[0]):
        arena.agree("apply", argument, code=None)
    arena.agree("delete", odd.name[:255].split(b"\0")[0], code=None)
    arena.agree("delete", odd.id[:127].split(b"\0")[0], code=None)


def test_first_of_equal_names(arena: Arena) -> None:
    same = [Entry(id=b"%d" % number, name=b"same", disk_size=MEGA) for number in (5, 3, 9)]
    make(arena, same)
    arena.agree("apply", b"same")
    arena.agree("apply", b"3")
    arena.agree("delete", b"same")
    arena.agree("delete", b"same")


def test_a_name_that_is_an_id(arena: Arena) -> None:
    """Apply looks through all ids first; delete knows only names."""
    make(arena, [Entry(id=b"1", name=b"2", disk_size=MEGA), Entry(id=b"2", name=b"1", disk_size=MEGA, date=(5, 5))])
    arena.agree("apply", b"1")
    arena.agree("apply", b"2")
    arena.agree("delete", b"2")
    arena.agree("delete", b"2", code=1)


def test_equal_id_and_name(arena: Arena) -> None:
    make(arena, [Entry(disk_size=MEGA), Entry(disk_size=MEGA, date=(9, 9))])
    arena.agree("delete", b"s1")
    arena.agree("apply", b"1")


@pytest.mark.parametrize("length", [0, 1, 254, 255, 256, 300, 1024])
def test_length_of_a_new_name(arena: Arena, length: int) -> None:
    make(arena, [])
    arena.agree("create", b"n" * length)
    arena.agree("delete", b"n" * length, code=None)
    arena.agree("create", b"\xc3\xa4" * (length // 2))


@pytest.mark.parametrize("count", [65535, 65536])
def test_how_many_snapshots(arena: Arena, count: int) -> None:
    """One more fits into 65,535, none into 65,536. Snapshots without an L1 table take no clusters."""
    path = arena.disk
    qemu.create(path, MEGA)
    qemu.io(path, "write -P 1 0 64k")
    entries = [Entry(id=b"%d" % (i + 1), name=b"s%d" % i, disk_size=MEGA) for i in range(count)]
    with Patch(path) as patch:
        patch.snapshot_table(entries)
    arena.agree("create", b"one more", code=count - 65535)
    if LONG:  # qemu-img needs ten seconds for each
        arena.agree("delete", b"s40000")
        arena.agree("apply", b"s50000")


@pytest.mark.parametrize("options", ["", "cluster_size=512"])
def test_stale_bytes_between_entries(arena: Arena, options: str) -> None:
    """Nobody writes the padding: what was there before stays, where the cluster was not punched."""
    path = make(arena, [Entry(name=b"n" * 30, disk_size=MEGA)], options)
    with Patch(path) as patch:
        stale = patch.append(b"\xa5" * (4 << 10), refcount=0)
    with Qcow2(path) as image:
        assert image.refcount(stale >> image.cluster_bits) == 0
    for name in (b"a", b"bc", b"def"):
        arena.agree("create", name)


def test_random_tables(arena: Arena) -> None:
    """Tables of random entries, with random operations on them."""
    for seed in range(12):
        rng = random.Random(seed)
        entries = [
            Entry(
                id=bytes(rng.choices(b"0123456789a", k=rng.randrange(5))),
                name=bytes(rng.choices(b"abc\0\xff", k=rng.randrange(1, 5))),
                date=(rng.randrange(1 << 32), rng.randrange(1 << 32)),
                vm_clock=rng.randrange(1 << 64),
                vm_state_size=rng.randrange(1 << rng.choice((8, 40))),
                disk_size=MEGA,
                icount=rng.randrange(1 << 64),
                extra_size=rng.choice((0, 8, 16, 24, 24, 40)),
            )
            for _unused in range(rng.randrange(1, 9))
        ]
        make(arena, entries, f"cluster_size={1 << rng.choice((9, 12, 16))}")
        for _unused in range(6):
            entry = rng.choice(entries)
            verb = rng.choice(("create", "delete", "apply"))
            text = rng.choice((entry.id, entry.name)) if verb == "apply" else entry.name
            arena.agree(verb, text.split(b"\0")[0], code=None)
