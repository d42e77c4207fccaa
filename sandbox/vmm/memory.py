# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory a guest gets: decided by what its files hold, which the host sees without looking into them.

The guest counts the references to each cluster, in one byte for each as a rule. A reference is an entry of 8 bytes, so
a sound file needs no more counters than an eighth of the bytes that it holds; what it claims besides, nobody refers to.
Nor has it more clusters than sectors. Memory that the guest does not use takes none of the host.
"""

from __future__ import annotations

import os
import typing as t

from ..host.disks import Disk
from . import boot

LEAST = 128 << 20  # what every guest has: enough to count 64 million clusters at a time, 4 TiB of the usual size
_COUNTED_IN_LEAST = 64 << 20
_ENTRY = 8  # bytes
_SECTOR = 512
_BLOCK = 512  # of st_blocks
_STEP = 2 << 20  # a large page
_SPARE = 64 << 20  # of what is free: left alone
_AT_ONCE = 8  # guests of a task may run, and each may be one that was taken over


def size_for(disks: t.Sequence[Disk], holdings: t.Sequence[int]) -> int:
    """Bytes for a guest that works on these. holdings: held() of each. Raises OSError."""
    counters = max((min(one // _ENTRY, disk.size // _SECTOR) for disk, one in zip(disks, holdings)), default=0)
    if counters <= _COUNTED_IN_LEAST:
        return LEAST
    page = os.sysconf("SC_PAGE_SIZE")
    wanted = min(LEAST + counters, _share(page), (_available(page) - _SPARE) // _AT_ONCE, boot.MEMORY_MAX)
    return max(LEAST, wanted // _STEP * _STEP)


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


def _share(page: int) -> int:
    """Bytes: a quarter of the host's memory is for all guests of a task."""
    return os.sysconf("SC_PHYS_PAGES") * page // (4 * _AT_ONCE)


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
