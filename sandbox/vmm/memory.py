# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory a guest gets: what it asks for, within what its files account for by what they hold, and within what
all guests of the process may have together. docs/architecture.md has the reasons."""

from __future__ import annotations

import _thread
import contextlib
import os
import time
import typing as t

from ..host import ending
from ..host.disks import Disk
from . import boot

LEAST = 128 << 20  # what every guest has: enough to count 64 million clusters at a time, 4 TiB of the usual size
_ENTRY = 8  # bytes
_SECTOR = 512
_BLOCK = 512  # of st_blocks
_STEP = 2 << 20  # a large page
_SPARE = 64 << 20  # of what is free: left alone
_WAIT_SECONDS = 0.02

short: dict[str, tuple[int, int]] = {}  # by the image's path: windows of counters, bytes of memory that were too few

_lock = _thread.allocate_lock()
_taken: list[int] = []  # by guests that run
_limit = [0]


def set_limit(size: int) -> None:
    """Bytes for all guests together; 0: a quarter of the host's. Raises ValueError below LEAST."""
    if 0 != size < LEAST:
        raise ValueError
    _limit[0] = size


@contextlib.contextmanager
def reserved(disks: t.Sequence[Disk], holdings: t.Sequence[int], wanted: int) -> t.Iterator[int]:
    """Bytes for a guest that works on these and asked for `wanted`; waits until other guests have left enough.

    holdings: held() of each. Raises OSError, EndedError.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    limit = max(LEAST, _limit[0] or os.sysconf("SC_PHYS_PAGES") * page // 4)
    counters = max((min(one // _ENTRY, disk.size // _SECTOR) for disk, one in zip(disks, holdings)), default=0)
    size = _whole(min(wanted + _STEP, LEAST + counters, limit, boot.MEMORY_MAX))
    while True:
        with _lock:
            taken = sum(_taken)
            if not taken or taken + size <= limit:
                if size > LEAST:
                    size = _whole(min(size, _available(page) - taken - _SPARE))
                _taken.append(size)
                break
        ending.check()
        time.sleep(_WAIT_SECONDS)
    try:
        yield size
    finally:
        with _lock:
            _taken.remove(size)


def _whole(size: int) -> int:
    return max(LEAST, size // _STEP * _STEP)


def held(disk: Disk) -> int:
    """Bytes that a disk has allocated. Raises OSError.

    Blocks that files share, or one file with itself, count once for each reference (ioctl_ficlonerange(2)), so that a
    file may seem to hold more than there is.
    """
    if disk.is_block:
        return disk.size
    system = os.fstatvfs(disk.descriptor)
    there = system.f_blocks * system.f_frsize  # 0: it does not tell
    found = os.fstat(disk.descriptor).st_blocks * _BLOCK
    return min(found, there) if there else found


def _available(page: int) -> int:
    """Bytes that programs can have without anything being swapped out, as the kernel reckons."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass  # /proc is hidden
    return os.sysconf("SC_AVPHYS_PAGES") * page
