# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sound images with as many snapshots, or bitmaps, as their maker can get into them. No program would write them so."""

from __future__ import annotations

import array
import fcntl
import pathlib
import struct

import pytest

SNAPSHOTS = 65536
BITMAPS = 50000
DISK = 1 << 20
GRANULARITY = 65536


class Writer:
    """An image of which clusters are taken one after the other. refcounts: 32 bits each."""

    def __init__(self, cluster_bits: int) -> None:
        self.bits = cluster_bits
        self.size = 1 << cluster_bits
        self.data = bytearray(self.size)  # the header's cluster
        self.counts = array.array("I", [1])

    def add(self, content: bytes, count: int = 1) -> int:
        """Whole clusters with this content, each of them referred to `count` times; where they begin."""
        at = len(self.data)
        self.data += content + bytes(-len(content) % self.size)
        self.counts.extend([count] * (len(self.data) // self.size - len(self.counts)))
        return at

    def finish(
        self,
        path: pathlib.Path,
        snapshots: tuple[int, int] = (0, 0),
        extensions: bytes = b"",
        autoclear: int = 0,
        backing: bytes = b"",
    ) -> None:
        """snapshots: how many, and where their table is. backing: the name of a qcow2 file."""
        l1_entries = -(-DISK // (self.size * self.size // 8))
        l1_table = self.add(bytes(8 * l1_entries))
        per_block = self.size // 4
        taken = len(self.data) // self.size
        blocks = 0  # which are counted themselves, and so is the table
        while True:
            tables = -(-blocks * 8 // self.size)
            needed = -(-(taken + blocks + tables) // per_block)
            if needed <= blocks:
                break
            blocks = needed
        counts = self.counts + array.array("I", [1] * (blocks + tables))
        counts.byteswap()
        block_at = self.add(counts.tobytes() + bytes(blocks * self.size - 4 * len(counts)))
        table_at = self.add(b"".join(struct.pack(">Q", block_at + i * self.size) for i in range(blocks)))
        if backing:
            extensions = struct.pack(">II8s", 0xE2792ACA, 5, b"qcow2") + extensions
        extensions += bytes(8)
        header = struct.pack(
            ">4sIQIIQIIQQIIQQQQII",
            b"QFI\xfb",
            3,
            104 + len(extensions) if backing else 0,
            len(backing),
            self.bits,
            DISK,
            0,
            l1_entries,
            l1_table,
            table_at,
            tables,
            snapshots[0],
            snapshots[1],
            0,
            0,
            autoclear,
            5,
            104,
        )
        start = header + extensions + backing
        self.data[: len(start)] = start
        path.write_bytes(self.data)


def make_snapshots(path: pathlib.Path) -> None:
    """65,536 snapshots of one empty disk, 26 MiB. Names are of bytes that are no UTF-8, but for the first, "first"."""
    writer = Writer(16)
    l1_table = writer.add(bytes(8), SNAPSHOTS)
    table = bytearray()
    for number in range(SNAPSHOTS):
        name = b"\x80" * 255 if number else b"first"
        identifier = b"%060d" % number
        fixed = (l1_table, 1, len(identifier), len(name), 1600000000 + number, 7, 0, 0, 24, 0, DISK, 0)
        entry = struct.pack(">QIHHIIQIIQQQ", *fixed) + identifier + name
        table += entry + bytes(-len(entry) % 8)
    writer.finish(path, snapshots=(SNAPSHOTS, writer.add(table)))


def make_bitmaps(path: pathlib.Path, backing: bytes = b"") -> None:
    """50,000 empty bitmaps in 75 MiB. Their names have 1,023 bytes, but for "first". backing: of qcow2."""
    writer = Writer(9)
    directory = bytearray()
    tables = writer.add(bytes(BITMAPS * writer.size))
    for number in range(BITMAPS):
        name = b"%06d" % number + b"\x80" * 1017 if number else b"first"
        fixed = (tables + number * writer.size, 1, 0, 1, GRANULARITY.bit_length() - 1, len(name), 0)
        entry = struct.pack(">QIIBBHI", *fixed) + name
        directory += entry + bytes(-len(entry) % 8)
    at = writer.add(directory)
    extension = struct.pack(">IIIIQQ", 0x23852875, 24, BITMAPS, 0, len(directory), at)
    writer.finish(path, extensions=extension, autoclear=1, backing=backing)


def make_once(factory: pytest.TempPathFactory, worker: str) -> dict[str, pathlib.Path]:
    """`snapshots`, `bitmaps`, and `base`, on which bitmaps stands and which holds nothing: to be read only, and made
    once for all workers. worker: its id, as pytest-xdist gives it."""
    base = factory.getbasetemp()
    place = (base if worker == "master" else base.parent) / "huge-images"
    place.mkdir(exist_ok=True)
    images = {name: place / name for name in ("snapshots", "bitmaps", "base")}
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "done").exists():
            make_snapshots(images["snapshots"])
            make_bitmaps(images["bitmaps"], backing=b"base")
            Writer(16).finish(images["base"])
            (place / "done").touch()
    return images
