# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Changes single fields of a qcow2 file: how tests make old, odd and hostile images."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .qcow2 import COPIED, HEADER_FIELDS, OFFSET_MASK, Qcow2


@dataclass(frozen=True)
class Entry:
    """A snapshot table entry to be written. `extra_size` bytes of extra data are made of the three known fields
    (VM state size, disk size, icount) and of bytes 0xe5 behind them, cut wherever the size cuts."""

    id: bytes = b"1"
    name: bytes = b"s1"
    l1_offset: int = 0
    l1_size: int = 0
    date: tuple[int, int] = (1767323045, 0)
    vm_clock: int = 0
    vm_state_size: int = 0
    vm_state_size_32: int | None = None
    disk_size: int = 0
    icount: int = 0
    extra_size: int = 24
    declared_extra: int | None = None

    def encode(self) -> bytes:
        """The entry's bytes, without padding."""
        extra = struct.pack(">QQQ", self.vm_state_size, self.disk_size, self.icount)
        extra = extra.ljust(self.extra_size, b"\xe5")[: self.extra_size]
        small = self.vm_state_size if self.vm_state_size <= 0xFFFFFFFF else 0
        fixed = struct.pack(
            ">QIHHIIQII",
            self.l1_offset,
            self.l1_size,
            len(self.id),
            len(self.name),
            *self.date,
            self.vm_clock,
            small if self.vm_state_size_32 is None else self.vm_state_size_32,
            self.extra_size if self.declared_extra is None else self.declared_extra,
        )
        return fixed + extra + self.id + self.name


class Patch:
    """An image opened for byte surgery; a context manager. Offsets and lengths in bytes, indexes in entries."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_unused: object) -> None:
        self._file.close()

    def image(self) -> Qcow2:
        """The file as it is now."""
        return Qcow2(self.path)

    @property
    def length(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def write(self, offset: int, data: bytes) -> None:
        os.pwrite(self._file.fileno(), data, offset)

    def truncate(self, length: int) -> None:
        os.ftruncate(self._file.fileno(), length)

    def u64(self, offset: int, value: int) -> None:
        self.write(offset, struct.pack(">Q", value))

    def header(self, **fields: int) -> None:
        """Sets header fields by name."""
        places = {name: (offset, size) for offset, size, name in HEADER_FIELDS}
        for name, value in fields.items():
            offset, size = places[name]
            self.write(offset, value.to_bytes(size, "big"))

    def l1(self, index: int, value: int) -> None:
        """Sets an entry of the active L1 table."""
        with self.image() as image:
            self.u64(image.header["l1_table_offset"] + index * 8, value)

    def l2(self, l1_index: int, index: int, value: int, bitmap: int | None = None) -> None:
        """Sets an entry of an active L2 table; `bitmap` is the second word with extended L2."""
        with self.image() as image:
            table = image.active_l1()[l1_index] & OFFSET_MASK
            width = 16 if image.extended else 8
        self.u64(table + index * width, value)
        if bitmap is not None:
            self.u64(table + index * width + 8, bitmap)

    def refcount(self, cluster: int, value: int) -> None:
        """Sets a refcount; its block has to exist."""
        with self.image() as image:
            block, index = divmod(cluster, image.block_entries)
            offset, bits = image.refcount_blocks()[block], image.refcount_bits
            if not offset:
                raise ValueError(f"no refcount block for cluster {cluster}")
            place = offset + index * bits // 8
            if bits >= 8:
                self.write(place, value.to_bytes(bits // 8, "big"))
                return
            shift = index * bits % 8
            byte = image.read(place, 1)[0] & ~(((1 << bits) - 1) << shift) | value << shift
            self.write(place, bytes([byte]))

    def append(self, data: bytes, refcount: int = 1) -> int:
        """Puts data into new clusters at the end of the file and counts them; returns the offset."""
        with self.image() as image:
            size = image.cluster_size
        first = (self.length + size - 1) // size
        clusters = max(1, (len(data) + size - 1) // size)
        self.truncate((first + clusters) * size)
        self.write(first * size, data)
        for cluster in range(first, first + clusters):
            self.refcount(cluster, refcount)
        return first * size

    def snapshot_table(self, entries: Sequence[Entry], count: int | None = None) -> int:
        """Writes a new snapshot table and points the header at it; an old one is freed. Returns its offset."""
        data = bytearray()
        for entry in entries:
            data += bytes(-len(data) % 8) + entry.encode()
        with self.image() as image:
            old = [c for clusters, kind, _unused in image.references() if kind == "snapshot table" for c in clusters]
        for cluster in old:
            self.refcount(cluster, 0)
        offset = self.append(bytes(data))
        self.header(nb_snapshots=len(entries) if count is None else count, snapshots_offset=offset)
        return offset

    def paint(self, name: bytes, runs: Iterable[tuple[int, int]]) -> None:
        """Sets these bits, (first, count), of a bitmap that is empty."""
        with self.image() as image:
            entry = next(entry for entry in image.bitmap_directory() if entry.name == name)
            size = image.cluster_size
        value = 0
        for start, count in runs:
            value |= ((1 << count) - 1) << start
        data = value.to_bytes(entry.table_entries * size, "little")
        for i in range(entry.table_entries):
            if any(data[i * size : (i + 1) * size]):
                self.u64(entry.table + 8 * i, self.append(data[i * size : (i + 1) * size]))

    def settle(self) -> None:
        """Sets every refcount to the number of references, and every COPIED flag accordingly."""
        with self.image() as image:
            counts = image.reference_counts()
            last = -(-image.length // image.cluster_size)
            wrong = {c: counts[c] for c in {*counts, *range(last)} if image.refcount(c) != counts[c]}
        for cluster, count in wrong.items():
            self.refcount(cluster, count)
        with self.image() as image:
            tables = [(image.header["l1_table_offset"], image.header["l1_size"])]
            tables += [(s.l1_offset, s.l1_size) for s in image.snapshots()]
            for l1_offset, l1_size in tables:
                for i, entry in enumerate(image.table(l1_offset, l1_size)):
                    self._settle_l2(image, l1_offset + i * 8, entry)

    def _flag(self, image: Qcow2, place: int, entry: int) -> None:
        alone = image.refcount((entry & OFFSET_MASK) >> image.cluster_bits) == 1
        right = entry | COPIED if alone else entry & ~COPIED
        if right != entry:
            self.u64(place, right)

    def _settle_l2(self, image: Qcow2, place: int, l1_entry: int) -> None:
        if not l1_entry & OFFSET_MASK:
            return
        self._flag(image, place, l1_entry)
        width = 16 if image.extended else 8
        for j, entry, _unused in image.used_l2(l1_entry):
            if entry & OFFSET_MASK and not entry & 1 << 62:
                self._flag(image, (l1_entry & OFFSET_MASK) + j * width, entry)
