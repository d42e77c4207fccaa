# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images whose bitmaps are damaged, in each field of the extension, the directory, the tables."""

from __future__ import annotations

import os
import pathlib
import struct
from collections.abc import Callable

from sandbox.images.bitmaps import list_bitmaps
from sandbox.images.image import Image

from . import qemu
from .patch import Patch
from .qcow2 import BITMAPS_EXTENSION, Qcow2

NAMES = (b"first", b"second", b"third")


class Damaged:
    """An image with three bitmaps and a snapshot, and where their structures are."""

    def __init__(self, path: pathlib.Path, options: str) -> None:
        self.path = str(path)
        qemu.create(self.path, "8M", options)
        qemu.io(self.path, "write -P 7 0 1M")
        qemu.snapshot(self.path, "-c", "keep")
        for name in NAMES:
            qemu.must(["qemu-img", "bitmap", "--add", "-g", "512", self.path, name])
        qemu.io(self.path, "write -P 8 512k 64k", "write -P 9 7M 64k")
        os.truncate(self.path, -(-os.path.getsize(self.path) // 65536) * 65536)
        with Image.open(self.path) as image:
            self.bitmaps = list_bitmaps(image).bitmaps
        assert all(bitmap.dirty_count for bitmap in self.bitmaps)
        with Qcow2(self.path) as image:
            self.cluster = image.cluster_size
            self.length = image.length
            self.active_l1 = image.header["l1_table_offset"]
            ((at, _kind, _data),) = [each for each in image.extensions() if each[1] == BITMAPS_EXTENSION]
            self.extension = at + 8
            self.entries = [(entry.offset, entry.table) for entry in image.bitmap_directory()]
            self.directory = self.entries[0][0]
            (word,) = image.table(self.entries[1][1], 1)
            assert word
            self.data = word
            (self.guest_data,) = {entry for _i, entry, _b in list(image.used_l2(image.active_l1()[0]))[:1]}
        self.contents = self.shown()

    def shown(self) -> list[bytes]:
        """The disk, and as it was in the snapshot."""
        shown = []
        for more in ((), ("-l", "keep")):
            target = self.path + ".raw"
            qemu.must(["qemu-img", "convert", "-f", "qcow2", *more, "-O", "raw", self.path, target])
            shown.append(pathlib.Path(target).read_bytes())
        return shown

    def write(self, offset: int, data: bytes) -> None:
        with Patch(self.path) as patch:
            patch.write(offset, data)

    def bytes(self) -> bytes:
        return pathlib.Path(self.path).read_bytes()


def number(width: str, value: int) -> bytes:
    return struct.pack(">" + width, value)


Patcher = Callable[[Damaged], tuple[int, bytes]]


def extension(at: int, data: bytes) -> Patcher:
    return lambda image: (image.extension + at, data)


def entry(at: int, data: bytes, index: int = 1) -> Patcher:
    return lambda image: (image.entries[index][0] + at, data)


def table(value: Callable[[Damaged], int], index: int = 1, slot: int = 0) -> Patcher:
    return lambda image: (image.entries[index][1] + 8 * slot, number("Q", value(image)))


ALL, SECOND = NAMES, (b"second",)
# Each field of the extension, of an entry, of a table: the damage, and which bitmaps it costs; None: what can be read
# depends on what stands there.
DAMAGES: dict[str, tuple[Patcher, tuple[bytes, ...] | None]] = {
    "length of the extension": (extension(-4, number("I", 32)), ALL),
    "no bitmaps": (extension(0, number("I", 0)), ALL),
    "too many bitmaps": (extension(0, number("I", 65536)), ALL),
    "one bitmap more": (extension(0, number("I", 4)), ()),
    "one bitmap less": (extension(0, number("I", 2)), (b"third",)),
    "reserved field": (extension(4, number("I", 1)), ALL),
    "directory of no bytes": (extension(8, number("Q", 0)), ALL),
    "longer directory": (extension(8, number("Q", 128)), ()),
    "shorter directory": (extension(8, number("Q", 64)), (b"third",)),
    "directory cut in an entry": (extension(8, number("Q", 72)), ALL),
    "directory too large": (extension(8, number("Q", 1 << 40)), ALL),
    "directory not on a cluster": (extension(16, number("Q", 513)), ALL),
    "directory outside": (extension(16, number("Q", 1 << 40)), ALL),
    "directory at the end of numbers": (extension(16, number("Q", (1 << 64) - 4096)), ALL),
    "directory in the header": (extension(16, number("Q", 0)), ALL),
    "directory in the L1 table": (lambda image: (image.extension + 16, number("Q", image.active_l1)), ALL),
    "directory of zeros": (lambda image: (image.directory, bytes(96)), ALL),
    "directory of ones": (lambda image: (image.directory, b"\xff" * 96), ALL),
    "first entry of zeros": (entry(0, bytes(24), 0), None),
    "no table": (entry(0, number("Q", 0)), SECOND),
    "table not on a cluster": (entry(0, number("Q", 0x1001)), SECOND),
    "table outside": (entry(0, number("Q", 1 << 40)), SECOND),
    "table at the end of numbers": (entry(0, number("Q", (1 << 64) - 65536)), SECOND),
    "table in the L1 table": (lambda image: (image.entries[1][0], number("Q", image.active_l1)), SECOND),
    "table of another": (lambda image: (image.entries[1][0], number("Q", image.entries[2][1])), (b"second", b"third")),
    "table of no entries": (entry(8, number("I", 0)), SECOND),
    "table of more entries": (entry(8, number("I", 3)), SECOND),
    "table of very many": (entry(8, number("I", 0x8000001)), SECOND),
    "unknown flags": (entry(12, number("I", 4)), SECOND),
    "all flags": (entry(12, number("I", 0xFFFFFFFF)), SECOND),
    "unknown type": (entry(16, b"\x00"), SECOND),
    "small granularity": (entry(17, b"\x08"), SECOND),
    "large granularity": (entry(17, b"\x20"), SECOND),
    "long name": (entry(18, number("H", 0xFFFF)), ALL),
    "extra data": (entry(20, number("I", 8)), None),
    "extra data without end": (entry(20, number("I", 0xFFFFFFFF)), ALL),
    "reserved bits of a table": (table(lambda image: image.data | 2), SECOND),
    "high bits of a table": (table(lambda image: image.data | 1 << 60), SECOND),
    "all ones, and a place": (table(lambda image: image.data | 1), SECOND),
    "bits not on a cluster": (table(lambda image: image.data + 512), SECOND),
    "bits outside": (table(lambda image: 1 << 40), SECOND),
    "bits in the L1 table": (table(lambda image: image.active_l1), SECOND),
    "bits in the disk": (table(lambda image: image.guest_data & 0x00FFFFFFFFFFFE00), SECOND),
    "bits in the table": (table(lambda image: image.entries[1][1]), SECOND),
    "bits in the directory": (table(lambda image: image.directory), ALL),
    "bits of another": (table(lambda image: image.data, index=2), (b"second", b"third")),
}
