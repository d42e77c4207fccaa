# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Overlays whose headers name anything at all, which qemu-img would not write."""

from __future__ import annotations

import functools
import pathlib
import struct
import subprocess
import tempfile

_BACKING_FORMAT, _DATA_FILE, _END = 0xE2792ACA, 0x44415441, 0
_HEADER_LENGTH = 112


@functools.cache
def _empty_image(cluster_size: int) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "empty.qcow2")
        options = f"cluster_size={cluster_size}"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(path), "1M"], check=True)
        return path.read_bytes()


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def overlay(
    path: pathlib.Path,
    name: bytes = b"",
    format_name: bytes = b"qcow2",
    data_file: bytes = b"",
    cluster_size: int = 65536,
) -> pathlib.Path:
    """An empty image of 1 MiB. name: of its backing file; format_name: recorded for that, unless empty."""
    image = bytearray(_empty_image(cluster_size))
    extensions = _extension(_BACKING_FORMAT, format_name) if name and format_name else b""
    if data_file:
        extensions += _extension(_DATA_FILE, data_file)
        image[79] |= 4  # the last byte of the incompatible features
    extensions += _extension(_END, b"")
    content = extensions + name
    image[_HEADER_LENGTH : _HEADER_LENGTH + len(content)] = content
    if name:
        struct.pack_into(">QI", image, 8, _HEADER_LENGTH + len(extensions), len(name))
    path.write_bytes(image)
    return path


def raw(path: pathlib.Path, size: int = 1 << 20) -> pathlib.Path:
    with open(path, "wb") as file:
        file.truncate(size)
    return path
