# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A small qcow2 reader for tests: it explains bytes, it never changes them.

Everything is read with tolerance: a test looks at damaged images too. What lies behind the end of the file reads as
zeros, a table that points nowhere is empty. Integers on disk are big-endian (docs/interop/qcow2.rst of QEMU).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

OFFSET_MASK = 0x00FFFFFFFFFFFE00
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
L2_LIMIT = 1 << 22  # entries of one table that the reader is willing to walk
_PIECE = 512  # entries

HEADER_FIELDS = (
    (0, 4, "magic"),
    (4, 4, "version"),
    (8, 8, "backing_file_offset"),
    (16, 4, "backing_file_size"),
    (20, 4, "cluster_bits"),
    (24, 8, "size"),
    (32, 4, "crypt_method"),
    (36, 4, "l1_size"),
    (40, 8, "l1_table_offset"),
    (48, 8, "refcount_table_offset"),
    (56, 4, "refcount_table_clusters"),
    (60, 4, "nb_snapshots"),
    (64, 8, "snapshots_offset"),
    (72, 8, "incompatible_features"),
    (80, 8, "compatible_features"),
    (88, 8, "autoclear_features"),
    (96, 4, "refcount_order"),
    (100, 4, "header_length"),
    (104, 1, "compression_type"),
)

AUTOCLEAR_BITMAPS = 1
BITMAPS_EXTENSION = 0x23852875

INCOMPATIBLE_DIRTY = 1
INCOMPATIBLE_CORRUPT = 2
INCOMPATIBLE_DATA_FILE = 4
INCOMPATIBLE_COMPRESSION = 8
INCOMPATIBLE_EXTENDED_L2 = 16


@dataclass(frozen=True)
class Snapshot:
    """One entry of the snapshot table: where it lies, and what it says. Sizes in bytes, times as stored."""

    index: int
    offset: int
    length: int
    l1_offset: int
    l1_size: int
    date: tuple[int, int]
    vm_clock: int
    vm_state_size: int
    extra: bytes
    id: bytes
    name: bytes

    @property
    def disk_size(self) -> int | None:
        """The virtual size in bytes when the snapshot was taken; None in entries of old writers."""
        return struct.unpack(">Q", self.extra[8:16])[0] if len(self.extra) >= 16 else None


@dataclass(frozen=True)
class BitmapEntry:
    """One entry of the bitmap directory: where it and its table lie, and what it says. Sizes in bytes."""

    offset: int
    length: int
    table: int
    table_entries: int
    flags: int
    kind: int
    granularity_bits: int
    extra: bytes
    name: bytes


class Qcow2:
    """A qcow2 file, mapped for reading. Use as a context manager."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, "rb") as file:
            self.length = os.fstat(file.fileno()).st_size
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.length else None
        self.header = {name: int.from_bytes(self.read(offset, size), "big") for offset, size, name in HEADER_FIELDS}
        if self.header["version"] < 3:
            self.header.update(
                incompatible_features=0, compatible_features=0, autoclear_features=0, refcount_order=4, header_length=72
            )
        if self.header["header_length"] <= 104:
            self.header["compression_type"] = 0  # an extension may stand there
        self.cluster_bits = min(max(self.header["cluster_bits"], 9), 30)
        self.cluster_size = 1 << self.cluster_bits
        self.size = self.header["size"]
        self.extended = bool(self.header["incompatible_features"] & INCOMPATIBLE_EXTENDED_L2)
        self.l2_entries = self.cluster_size // (16 if self.extended else 8)
        self.refcount_bits = 1 << min(self.header["refcount_order"], 6)
        self.block_entries = self.cluster_size * 8 // self.refcount_bits
        self._blocks: list[int] | None = None

    def __enter__(self) -> Qcow2:
        return self

    def __exit__(self, *_unused: object) -> None:
        if self._map is not None:
            self._map.close()

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`; zeros behind the end of the file."""
        if self._map is None or offset >= self.length:
            return bytes(length)
        return self._map[offset : offset + length].ljust(length, b"\0")

    def table(self, offset: int, entries: int) -> tuple[int, ...]:
        """`entries` 64-bit integers at `offset`."""
        entries = max(0, min(entries, L2_LIMIT))
        return struct.unpack(f">{entries}Q", self.read(offset, entries * 8))

    def used_entries(self, offset: int, entries: int) -> Iterator[tuple[int, int]]:
        """Those of table() that are not 0, as (index, entry)."""
        for first, words in self._used_pieces(offset, entries):
            yield from ((first + i, word) for i, word in enumerate(words) if word)

    def _used_pieces(self, offset: int, entries: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The pieces of a table that are not all zeros, as (index of the first entry, entries)."""
        entries = max(0, min(entries, L2_LIMIT))
        data = self.read(offset, entries * 8)
        zeros = bytes(_PIECE * 8)
        for first in range(0, entries, _PIECE):
            piece = data[first * 8 : (first + _PIECE) * 8]
            if not zeros.startswith(piece):
                yield first, struct.unpack(f">{len(piece) // 8}Q", piece)

    # Tables

    def active_l1(self) -> tuple[int, ...]:
        return self.table(self.header["l1_table_offset"], self.header["l1_size"])

    def l2(self, l1_entry: int) -> list[tuple[int, int]]:
        """The L2 table that an L1 entry names: pairs of (entry, subcluster bitmap; 0 without extended L2)."""
        words = self.table(l1_entry & OFFSET_MASK, self.cluster_size // 8)
        if self.extended:
            return list(zip(words[::2], words[1::2]))
        return [(word, 0) for word in words]

    def used_l2(self, l1_entry: int) -> Iterator[tuple[int, int, int]]:
        """Those of l2() that are not all zeros, as (index, entry, subcluster bitmap)."""
        for first, words in self._used_pieces(l1_entry & OFFSET_MASK, self.cluster_size // 8):
            if self.extended:
                pairs = enumerate(zip(words[::2], words[1::2]), first // 2)
                yield from ((i, entry, bitmap) for i, (entry, bitmap) in pairs if entry or bitmap)
            else:
                yield from ((i, entry, 0) for i, entry in enumerate(words, first) if entry)

    def refcount_blocks(self) -> list[int]:
        """Offsets of the refcount blocks, 0 where there is none."""
        if self._blocks is None:
            entries = self.header["refcount_table_clusters"] * self.cluster_size // 8
            table = self.table(self.header["refcount_table_offset"], entries)
            self._blocks = [entry & OFFSET_MASK for entry in table]
        return self._blocks

    def refcount(self, cluster: int) -> int:
        """What the refcount structure says of a cluster index."""
        block, index = divmod(cluster, self.block_entries)
        blocks = self.refcount_blocks()
        if block >= len(blocks) or not blocks[block]:
            return 0
        bits = self.refcount_bits
        if bits < 8:
            byte = self.read(blocks[block] + index * bits // 8, 1)[0]
            return (byte >> (index * bits % 8)) & ((1 << bits) - 1)
        return int.from_bytes(self.read(blocks[block] + index * bits // 8, bits // 8), "big")

    def snapshots(self) -> list[Snapshot]:
        """The snapshot table, as far as it can be walked."""
        found: list[Snapshot] = []
        offset = self.header["snapshots_offset"]
        for index in range(min(self.header["nb_snapshots"], 65536)):
            offset = (offset + 7) & ~7
            if offset + 40 > self.length:
                break
            fields = struct.unpack(">QIHHIIQII", self.read(offset, 40))
            l1_offset, l1_size, id_size, name_size, seconds, nanoseconds, clock, state, extra_size = fields
            extra_size = min(extra_size, 1 << 16)
            extra = self.read(offset + 40, extra_size)
            text = self.read(offset + 40 + extra_size, id_size + name_size)
            length = 40 + extra_size + id_size + name_size
            found.append(
                Snapshot(
                    index=index,
                    offset=offset,
                    length=length,
                    l1_offset=l1_offset,
                    l1_size=l1_size,
                    date=(seconds, nanoseconds),
                    vm_clock=clock,
                    vm_state_size=int.from_bytes(extra[:8], "big") if extra_size >= 8 else state,
                    extra=extra,
                    id=text[:id_size],
                    name=text[id_size:],
                )
            )
            offset += length
        return found

    def extensions(self) -> list[tuple[int, int, bytes]]:
        """The header extensions as (offset, type, data), the end marker left out."""
        found = []
        offset = self.header["header_length"]
        end = self.header["backing_file_offset"] or self.cluster_size
        while offset + 8 <= end:
            kind, length = struct.unpack(">II", self.read(offset, 8))
            if kind == 0 or offset + 8 + length > end:
                break
            found.append((offset, kind, self.read(offset + 8, length)))
            offset += 8 + (length + 7 & ~7)
        return found

    # References

    def compressed_range(self, entry: int) -> tuple[int, int]:
        """Host byte offset and length of a compressed cluster; the length is an upper bound, in whole sectors."""
        bits = 62 - (self.cluster_bits - 8)
        offset = entry & ((1 << bits) - 1)
        sectors = ((entry & (COMPRESSED - 1)) >> bits) + 1
        return offset, sectors * 512 - (offset & 511)

    def _covered(self, offset: int, length: int) -> range:
        if length == 0:
            return range(0)
        return range(offset // self.cluster_size, (offset + length - 1) // self.cluster_size + 1)

    def _mapping_references(self, l1: tuple[int, ...], title: str) -> Iterator[tuple[range, str, str]]:
        for i, l1_entry in enumerate(l1):
            if not l1_entry & OFFSET_MASK:
                continue
            yield self._covered(l1_entry & OFFSET_MASK, self.cluster_size), "L2", f"{title} L2[{i}]"
            for j, entry, _unused in self.used_l2(l1_entry):
                if entry & COMPRESSED:
                    where = self._covered(*self.compressed_range(entry))
                    yield where, "compressed", f"{title} compressed [{i}][{j}]"
                elif entry & OFFSET_MASK and not self.header["incompatible_features"] & INCOMPATIBLE_DATA_FILE:
                    yield self._covered(entry & OFFSET_MASK, self.cluster_size), "data", f"{title} data [{i}][{j}]"

    def references(self) -> Iterator[tuple[range, str, str]]:
        """Each reference as (host cluster indexes, kind, who refers). Kinds: header, refcount table,
        refcount block, L1, L2, data, compressed, snapshot table, bitmap directory, bitmap table, bitmap data."""
        yield range(1), "header", "header"
        table_bytes = self.header["refcount_table_clusters"] * self.cluster_size
        yield self._covered(self.header["refcount_table_offset"], table_bytes), "refcount table", "refcount table"
        for i, block in enumerate(self.refcount_blocks()):
            if block:
                yield self._covered(block, self.cluster_size), "refcount block", f"refcount block {i}"
        yield self._covered(self.header["l1_table_offset"], self.header["l1_size"] * 8), "L1", "active L1"
        yield from self._mapping_references(self.active_l1(), "active")
        snapshots = self.snapshots()
        if snapshots:
            start, last = self.header["snapshots_offset"], snapshots[-1]
            yield self._covered(start, last.offset + last.length - start), "snapshot table", "snapshot table"
        for snapshot in snapshots:
            title = f"snapshot {snapshot.index} {snapshot.name[:20]!r}"
            yield self._covered(snapshot.l1_offset, snapshot.l1_size * 8), "L1", f"{title} L1"
            yield from self._mapping_references(self.table(snapshot.l1_offset, snapshot.l1_size), title)
        yield from self._bitmap_references()

    def bitmaps_extension(self) -> tuple[int, int, int] | None:
        """Number of bitmaps, size and offset of their directory, whether it is valid or stale."""
        for _unused, kind, data in self.extensions():
            if kind == BITMAPS_EXTENSION and len(data) >= 24:
                count, _unused, size, offset = struct.unpack(">IIQQ", data[:24])
                return count, size, offset
        return None

    def bitmap_directory(self) -> list[BitmapEntry]:
        """The bitmaps' directory, whether it is valid or stale, as far as it can be walked."""
        found: list[BitmapEntry] = []
        count, size, offset = self.bitmaps_extension() or (0, 0, 0)
        end = min(offset + size, self.length)
        while len(found) < min(count, 65536) and offset + 24 <= end:
            fields = struct.unpack(">QIIBBHI", self.read(offset, 24))
            table, entries, flags, kind, granularity_bits, name_size, extra_size = fields
            extra = self.read(offset + 24, min(extra_size, 1 << 16))
            name = self.read(offset + 24 + len(extra), name_size).partition(b"\0")[0]  # as QEMU reads it
            length = (24 + len(extra) + name_size + 7) & ~7
            found.append(BitmapEntry(offset, length, table, entries, flags, kind, granularity_bits, extra, name))
            offset += length
        return found

    def _bitmap_references(self) -> Iterator[tuple[range, str, str]]:
        extension = self.bitmaps_extension()
        if not extension or not self.header["autoclear_features"] & AUTOCLEAR_BITMAPS:
            return
        yield self._covered(extension[2], extension[1]), "bitmap directory", "bitmap directory"
        for bitmap in self.bitmap_directory():
            title = f"bitmap {bitmap.name[:20]!r}"
            yield self._covered(bitmap.table, bitmap.table_entries * 8), "bitmap table", f"{title} table"
            for i, entry in self.used_entries(bitmap.table, bitmap.table_entries):
                if entry & OFFSET_MASK:
                    yield self._covered(entry & OFFSET_MASK, self.cluster_size), "bitmap data", f"{title} [{i}]"

    def owners(self) -> dict[int, list[str]]:
        """Cluster index -> who refers to it."""
        owners: dict[int, list[str]] = {}
        for clusters, _unused, who in self.references():
            if len(clusters) > 1 << 20:
                continue
            for cluster in clusters:
                owners.setdefault(cluster, []).append(who)
        return owners

    def reference_counts(self) -> Counter[int]:
        """Cluster index -> number of references."""
        counts: Counter[int] = Counter()
        for clusters, _unused, _unused in self.references():
            counts.update(clusters)
        return counts

    def would_overflow(self, l1: tuple[int, ...]) -> bool:
        """Does one more reference to everything that `l1` maps pass the refcount's width?"""
        more: Counter[int] = Counter()
        for clusters, _unused, _unused in self._mapping_references(l1, ""):
            more.update(clusters)
        limit = (1 << self.refcount_bits) - 1
        return any(self.refcount(cluster) + count > limit for cluster, count in more.items())
