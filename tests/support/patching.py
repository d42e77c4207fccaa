# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images as bytes, with fields changed."""

from __future__ import annotations

import struct

from tests.support.qcow2 import HEADER_FIELDS

PLACES = {name: (offset, size) for offset, size, name in HEADER_FIELDS}
END, BACKING_FORMAT, FEATURES, CRYPTO = 0, 0xE2792ACA, 0x6803F857, 0x0537BE77
BITMAPS, DATA_FILE = 0x23852875, 0x44415441


def patched(image: bytes, **fields: int) -> bytes:
    """The image with these header fields; a value is cut to its field."""
    changed = bytearray(image)
    for name, value in fields.items():
        offset, size = PLACES[name]
        changed[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "big")
    return bytes(changed)


def field(image: bytes, name: str) -> int:
    """A header field."""
    offset, size = PLACES[name]
    return int.from_bytes(image[offset : offset + size], "big")


def put(image: bytes, offset: int, data: bytes) -> bytes:
    """The image with other bytes at an offset; longer, if they are behind the end."""
    return image[:offset].ljust(offset, b"\0") + data + image[offset + len(data) :]


def u64(image: bytes, offset: int, value: int) -> bytes:
    """The image with a big-endian number at an offset."""
    return put(image, offset, struct.pack(">Q", value))


def extension(kind: int, data: bytes, length: int | None = None) -> bytes:
    """A header extension, padded; length: what it claims."""
    size = len(data) if length is None else length
    return struct.pack(">II", kind, size) + data + bytes(-len(data) % 8)


def with_extensions(image: bytes, *extensions: bytes) -> bytes:
    """The image with these extensions instead of its own; there has to be room in the first cluster."""
    start = field(image, "header_length") if field(image, "version") == 3 else 72
    cluster = 1 << field(image, "cluster_bits")
    room = min(cluster, field(image, "backing_file_offset") or cluster) - start
    data = b"".join(extensions)
    if len(data) > room:
        raise ValueError(f"{len(data)} bytes of extensions, {room} of room")
    return put(image, start, data.ljust(room, b"\0"))


def feature_name(kind: int, bit: int, name: bytes) -> bytes:
    """An entry of the feature name table."""
    return bytes([kind, bit]) + name.ljust(46, b"\0")[:46]
