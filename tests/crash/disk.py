# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a disk shows, read through its backing chain: qcow2 layers, compressed with zlib, with data files; vmdk ones, by
whatever content ids; and raw ones."""

from __future__ import annotations

import functools
import os
import zlib

from tests.support.qcow2 import (
    COMPRESSED,
    COPIED,
    INCOMPATIBLE_DATA_FILE,
    OFFSET_MASK,
    ZERO,
    Qcow2,
)
from tests.support.vmdk import Vmdk

BACKING_FORMAT, DATA_FILE = 0xE2792ACA, 0x44415441
SUBCLUSTERS = 32
KNOWN_MAX = 64
_known: dict[tuple[bytes, bytes, bytes | None], bytes] = {}  # of an image, what is below it, its data file


class ChainError(Exception):
    """No chain that could be opened."""


@functools.lru_cache(maxsize=4096)
def _inflated(stored: bytes, size: int) -> bytes:
    return zlib.decompressobj(-12).decompress(stored, size)


def names(image: Qcow2) -> tuple[str, str, str]:
    """The backing file's name and format and the data file's name, "" for what there is not."""
    offset, length = image.header["backing_file_offset"], image.header["backing_file_size"]
    texts = {kind: os.fsdecode(data) for _unused, kind, data in image.extensions()}
    name = os.fsdecode(image.read(offset, length)) if offset else ""
    data_file = texts.get(DATA_FILE, "") if image.header["incompatible_features"] & INCOMPATIBLE_DATA_FILE else ""
    return name, texts.get(BACKING_FORMAT, ""), data_file


def kind(path: str) -> str:
    """The format of an image: qcow2, vmdk, or raw."""
    with open(path, "rb") as file:
        return {b"QFI\xfb": "qcow2", b"KDMV": "vmdk"}.get(file.read(4), "raw")


def shown(path: str) -> bytes:
    """Every byte of the disk of an image that is not raw. Raises ChainError where a name leads nowhere or has no
    format."""
    if kind(path) == "vmdk":
        return shown_vmdk(path)
    with Qcow2(path) as image:
        backing, image_format, data_file = names(image)
        home = os.path.dirname(path)
        below = _below(os.path.join(home, backing), image_format) if backing else b""
        stored = None
        if data_file:
            with open(os.path.join(home, data_file), "rb") as file:
                stored = file.read()
        key = (image.read(0, image.length), below, stored)
        if key not in _known:
            if len(_known) >= KNOWN_MAX:
                _known.clear()
            content = bytearray(below[: image.size].ljust(image.size, b"\0"))
            _lay_over(image, content, stored)
            _known[key] = bytes(content)
        return _known[key]


def _below(path: str, image_format: str) -> bytes:
    if image_format not in ("raw", "qcow2", "vmdk") or not os.path.isfile(path):
        raise ChainError(f"{path!r}, of the format {image_format!r}")
    if image_format != "raw":
        return shown(path)
    with open(path, "rb") as file:
        content = file.read()
    return content + bytes(-len(content) % 512)


def shown_vmdk(path: str, redundant: bool = False) -> bytes:
    """Every byte of the disk of a vmdk image, by its tables or by their copies. Raises ChainError."""
    image = Vmdk(path)
    below = _below(os.path.join(os.path.dirname(path), image.parent), "vmdk") if image.parent else b""
    try:
        return image.shown(below, redundant)
    except ValueError as error:
        raise ChainError(f"{path!r}: {error}") from error


def _lay_over(image: Qcow2, content: bytearray, stored: bytes | None) -> None:
    """What the image itself holds, over what is below. stored: its data file."""
    size = image.cluster_size
    for i, l1_entry in enumerate(image.active_l1()):
        if not l1_entry & OFFSET_MASK:
            continue
        for j, entry, bitmap in image.used_l2(l1_entry):
            at = (i * image.l2_entries + j) * size
            if at >= len(content):
                continue
            end = min(at + size, len(content))
            if entry & COMPRESSED:
                content[at:end] = _inflated(image.read(*image.compressed_range(entry)), size)[: end - at]
            elif image.extended:
                _lay_subclusters(image, content, at, entry, bitmap, stored)
            elif entry & ZERO:
                content[at:end] = bytes(end - at)
            elif entry & (OFFSET_MASK | (COPIED if stored is not None else 0)):
                content[at:end] = _cluster(image, entry, at, stored)[: end - at]


def _cluster(image: Qcow2, entry: int, at: int, stored: bytes | None) -> bytes:
    if stored is None:
        return image.read(entry & OFFSET_MASK, image.cluster_size)
    return stored[at : at + image.cluster_size].ljust(image.cluster_size, b"\0")


def _lay_subclusters(image: Qcow2, content: bytearray, at: int, entry: int, bitmap: int, stored: bytes | None) -> None:
    size = image.cluster_size // SUBCLUSTERS
    cluster = _cluster(image, entry, at, stored)
    for index in range(SUBCLUSTERS):
        start = at + index * size
        end = min(start + size, len(content))
        if start >= end:
            return
        if bitmap >> (32 + index) & 1:
            content[start:end] = bytes(end - start)
        elif bitmap >> index & 1:
            content[start:end] = cluster[index * size :][: end - start]
