# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images with persistent bitmaps, for tests: made by qemu-img, and what it cannot make by patching."""

from __future__ import annotations

import json
import pathlib
import struct
import subprocess
import typing as t

_EXTENSION = 0x23852875


def run(*arguments: str | bytes, directory: pathlib.Path) -> None:
    subprocess.run(arguments, cwd=directory, check=True, stdout=subprocess.DEVNULL)


def make_image(path: pathlib.Path, size: str = "1M", cluster_size: int = 4096) -> None:
    """b0 records and has the first 20 KiB dirty; coarse, of another granularity, has one range; off has another and
    does not record."""

    def image(*arguments: str) -> None:
        run("qemu-img", *arguments, directory=path.parent)

    def write(offset: str, length: str) -> None:
        run("qemu-io", "-f", "qcow2", "-c", f"write {offset} {length}", path.name, directory=path.parent)

    image("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", path.name, size)
    image("bitmap", "--add", path.name, "off")
    write("300k", "9k")
    image("bitmap", "--disable", path.name, "off")
    image("bitmap", "--add", "-g", "512", path.name, "b0")
    write("0", "20k")
    image("bitmap", "--disable", path.name, "b0")
    image("bitmap", "--add", "-g", "128k", path.name, "coarse")
    write("513k", "1k")
    image("bitmap", "--enable", path.name, "b0")


def directory_entries(data: bytes) -> list[int]:
    """The offsets of the bitmap directory's entries in an image file."""
    position = struct.unpack_from(">I", data, 100)[0]
    while True:
        kind, length = struct.unpack_from(">II", data, position)
        if kind == _EXTENSION:
            break
        position += 8 + (length + 7 & ~7)
    count, _reserved, _size, offset = struct.unpack_from(">IIQQ", data, position + 8)
    found = []
    for _index in range(count):
        found.append(offset)
        name_length, extra = struct.unpack_from(">HI", data, offset + 18)
        offset += (24 + name_length + extra + 7) & ~7
    return found


def patch(path: pathlib.Path, at: int, new: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(new)


def set_in_use(path: pathlib.Path, index: int) -> None:
    """As a crashed virtual machine leaves a bitmap."""
    entry = directory_entries(path.read_bytes())[index]
    flags = path.read_bytes()[entry + 15]
    patch(path, entry + 15, bytes([flags | 1]))


def make_stale(path: pathlib.Path) -> None:
    """As a program that knows no bitmaps leaves the image."""
    patch(path, 95, b"\0")


def rename(path: pathlib.Path, index: int, name: bytes) -> None:
    """The new name has the length of the old one."""
    patch(path, directory_entries(path.read_bytes())[index] + 24, name)


def shown_by_qemu(path: pathlib.Path) -> list[dict[str, t.Any]]:
    """The bitmaps as qemu-img info has them."""
    done = subprocess.run(["qemu-img", "info", "--output=json", path], check=True, capture_output=True)
    bitmaps: list[dict[str, t.Any]] = json.loads(done.stdout)["format-specific"]["data"].get("bitmaps", [])
    return bitmaps
