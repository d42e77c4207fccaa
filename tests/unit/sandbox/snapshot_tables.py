# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images with snapshot tables made by hand, for tests: what no qemu-img would write, but list."""

from __future__ import annotations

import pathlib
import struct
import subprocess
import typing as t

from sandbox.images.calls import Snapshot

CLUSTER = 65536
NO_ICOUNT = (1 << 64) - 1


def snapshot(
    identifier: bytes = b"1",
    name: bytes = b"s1",
    date: tuple[int, int] = (0, 0),
    vm_state_size: int = 0,
    vm_clock: int = 0,
    icount: int | None = 0,
) -> Snapshot:
    return Snapshot(identifier, name, *date, vm_state_size, vm_clock, icount, 1 << 20)


def entry(snapshot: Snapshot) -> bytes:
    """One entry of the table in the file, padded to a multiple of 8."""
    icount = NO_ICOUNT if snapshot.icount is None else snapshot.icount
    data = struct.pack(
        ">QIHHIIQIIQQQ",
        3 * CLUSTER,
        1,
        len(snapshot.id),
        len(snapshot.name),
        snapshot.date_seconds,
        snapshot.date_nanoseconds,
        snapshot.vm_clock,
        min(snapshot.vm_state_size, 0xFFFFFFFF),
        24,
        snapshot.vm_state_size,
        snapshot.disk_size,
        icount,
    )
    data += snapshot.id + snapshot.name
    return data + bytes(-len(data) % 8)


def make_image(path: pathlib.Path, snapshots: t.Sequence[Snapshot]) -> str:
    """An image of 1 MiB with this snapshot table behind its last cluster. To be read only: no refcount knows of it."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    table = b"".join(map(entry, snapshots))
    with open(path, "r+b") as file:
        offset = -(-file.seek(0, 2) // CLUSTER) * CLUSTER
        file.seek(offset)
        file.write(table + bytes(-len(table) % CLUSTER))
        file.seek(60)
        file.write(struct.pack(">IQ", len(snapshots), offset if snapshots else 0))
    return str(path)
