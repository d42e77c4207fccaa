# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The floor: the same metadata bytes of the same file, read and written back by a plain loop, one fdatasync at the end.

Nothing that rewrites every L2 table and refcount block of an image can be faster than this, whatever it computes.
"""

from __future__ import annotations

import os
import struct
import typing as t

_HEADER = struct.Struct(">4sIQIIQIIQQI")  # magic .. refcount_table_clusters
_OFFSET = 0x00FFFFFFFFFFFE00


class Metadata(t.NamedTuple):
    """Where the clusters of a qcow2 image's L2 tables and refcount blocks start, in file order; sizes in bytes."""

    cluster_size: int
    l2_tables: tuple[int, ...]
    refcount_blocks: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.cluster_size * (len(self.l2_tables) + len(self.refcount_blocks))


def metadata_of(path: str) -> Metadata:
    """Reads the L1 and refcount tables of an image that qemu-img just made."""
    with open(path, "rb") as image:
        header = _HEADER.unpack(image.read(_HEADER.size))
        magic, _version, _backing, _backing_size, cluster_bits, _size, _crypt = header[:7]
        l1_entries, l1_offset, table_offset, table_clusters = header[7:]
        if magic != b"QFI\xfb":
            raise ValueError(f"{path} is no qcow2 image")
        cluster_size = 1 << cluster_bits
        l1_table = _offsets(image, l1_offset, l1_entries)
        refcount_table = _offsets(image, table_offset, table_clusters * cluster_size // 8)
    return Metadata(cluster_size, l1_table, refcount_table)


def _offsets(image: t.BinaryIO, start: int, entries: int) -> tuple[int, ...]:
    image.seek(start)
    table = struct.unpack(f">{entries}Q", image.read(8 * entries))
    return tuple(sorted(entry & _OFFSET for entry in table if entry & _OFFSET))


def rewrite(path: str, metadata: Metadata) -> None:
    """Reads every table and writes the same bytes back, then makes them stable."""
    buffer = bytearray(metadata.cluster_size)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for offset in sorted(metadata.l2_tables + metadata.refcount_blocks):
            os.preadv(descriptor, [buffer], offset)
            os.pwritev(descriptor, [buffer], offset)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
