# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images of the format vmdk, made and read here: with grains and tables of sizes that qemu-img cannot make.

Source: "Virtual Disk Format 5.0" of VMware, hosted sparse extents.
"""

from __future__ import annotations

import dataclasses
import os
import re
import struct
from dataclasses import dataclass

SECTOR = 512
CID_DIGITS = 8  # at most
HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
FIELDS = (
    *("magic", "version", "flags", "capacity", "grain", "descriptor", "descriptor_size", "table_entries"),
    *("redundant", "directory", "data", "unclean", "newlines", "compression"),
)
FLAG_NEWLINES, FLAG_REDUNDANT, FLAG_ZEROED_GRAINS, FLAG_COMPRESSED, FLAG_MARKERS = 1, 2, 4, 1 << 16, 1 << 17
NO_PARENT = 0xFFFFFFFF
_CID = re.compile(rb"\n(CID|parentCID)=([0-9a-fA-F]+)")
_PARENT = re.compile(rb'\nparentFileNameHint="([^"\n]*)"')


def up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@dataclass(frozen=True)
class Recipe:
    """A new image. size and grain in bytes; entries: of a grain table."""

    size: int
    grain: int = 65536
    entries: int = 512
    zeroed_grains: bool = False
    redundant: bool = True
    version: int = 1
    cid: int = 0x12345678
    parent: bytes = b""
    parent_cid: int = NO_PARENT
    name: bytes = b"disk.vmdk"

    @property
    def tables(self) -> int:
        return -(-self.size // (self.grain * self.entries))

    def descriptor(self) -> bytes:
        hint = b'parentFileNameHint="%s"\n' % self.parent if self.parent else b""
        return (
            b"# Disk DescriptorFile\nversion=1\nCID=%08x\nparentCID=%08x\n" % (self.cid, self.parent_cid)
            + b'createType="monolithicSparse"\n%s\n# Extent description\n' % hint
            + b'RW %d SPARSE "%s"\n\n# The Disk Data Base\n#DDB\n' % (self.size // SECTOR, self.name)
        )

    def image(self, text: bytes | None = None, **fields: object) -> bytes:
        """The bytes. text: another descriptor; fields: of the header, other values."""
        directory_sectors = up(4 * self.tables, SECTOR) // SECTOR
        table_sectors = up(4 * self.entries, SECTOR) // SECTOR
        copy = directory_sectors + table_sectors * self.tables
        first, second = 21, 21 + copy
        directory, redundant = (second, first) if self.redundant else (first, 0)
        data = up(second if not self.redundant else second + copy, max(self.grain // SECTOR, 1))
        flags = FLAG_NEWLINES | (FLAG_REDUNDANT if self.redundant else 0)
        values: dict[str, object] = {
            "magic": b"KDMV",
            "version": self.version,
            "flags": flags | (FLAG_ZEROED_GRAINS if self.zeroed_grains else 0),
            "capacity": self.size // SECTOR,
            "grain": self.grain // SECTOR,
            "descriptor": 1,
            "descriptor_size": 20,
            "table_entries": self.entries,
            "redundant": redundant,
            "directory": directory,
            "data": data,
            "unclean": 0,
            "newlines": b"\n \r\n",
            "compression": 0,
        }
        values.update(fields)
        image = bytearray(data * SECTOR)
        HEADER.pack_into(image, 0, *(values[name] for name in FIELDS))
        text = self.descriptor() if text is None else text
        image[SECTOR : SECTOR + len(text)] = text
        for place in (first, second)[: 1 + self.redundant]:
            tables = [place + directory_sectors + index * table_sectors for index in range(self.tables)]
            struct.pack_into(f"<{self.tables}I", image, place * SECTOR, *tables)
        return bytes(image)

    def make(self, path: str | os.PathLike[str], **changes: object) -> None:
        with open(path, "wb") as file:
            file.write(self.image(**changes))  # type: ignore[arg-type]

    def on(self, path: str | os.PathLike[str]) -> Recipe:
        """With that image, in the same directory, as its parent."""
        return dataclasses.replace(self, parent=os.fsencode(os.path.basename(path)), parent_cid=Vmdk(path).cid)


class Vmdk:
    """An image as it was when it was read."""

    def __init__(self, image: str | os.PathLike[str] | bytes) -> None:
        """image: the bytes, or where they are."""
        if isinstance(image, bytes):
            self.bytes = image
        else:
            with open(image, "rb") as file:
                self.bytes = file.read()
        self.header = dict(zip(FIELDS, HEADER.unpack_from(self.bytes)))
        self.places = {match[1]: match.span(2) for match in _CID.finditer(self.bytes, SECTOR, 21 * SECTOR)}

    def _id(self, key: bytes) -> int:
        first, end = self.places[key]
        return int(self.bytes[first:end], 16)

    @property
    def cid(self) -> int:
        return self._id(b"CID")

    @property
    def parent_cid(self) -> int:
        return self._id(b"parentCID")

    @property
    def parent(self) -> str:
        """The name of the parent, "" without one."""
        match = _PARENT.search(self.bytes, SECTOR, 21 * SECTOR)
        return os.fsdecode(match[1]) if match else ""

    @property
    def masked(self) -> bytes:
        """All of it but the value of CID, of which qemu draws a random one. Where that has fewer digits than the one
        before, qemu leaves what was the end of the text behind its NUL."""
        first, end = self.places[b"CID"]
        behind = (1 + self.header["descriptor_size"]) * SECTOR
        text, _nul, rest = self.bytes[SECTOR:behind].partition(b"\0")
        text = text[: first - SECTOR] + text[end - SECTOR :]
        left = rest.strip(b"\0")
        text += left if len(left) >= CID_DIGITS else b""
        return self.bytes[:SECTOR] + text + self.bytes[behind:]

    def entries(self, redundant: bool = False) -> dict[int, int]:
        """Grain -> entry of its grain table, those of 0 left out."""
        found = {}
        grains = -(-self.header["capacity"] // self.header["grain"])
        per_table = self.header["table_entries"]
        place = self.header["redundant" if redundant else "directory"] * SECTOR
        for index in range(-(-grains // per_table)):
            (table,) = struct.unpack_from("<I", self.bytes, place + 4 * index)
            if table == 0:  # there is none
                continue
            entries = struct.unpack_from(f"<{per_table}I", self.bytes, table * SECTOR)
            found.update({index * per_table + slot: entry for slot, entry in enumerate(entries) if entry})
        return found

    def shown(self, below: bytes = b"", redundant: bool = False) -> bytes:
        """The disk. below: what the parent shows. redundant: by the copies of the tables. Raises
        ValueError for a grain that is not all in the file."""
        size = self.header["capacity"] * SECTOR
        grain = self.header["grain"] * SECTOR
        disk = bytearray(below[:size].ljust(size, b"\0"))
        for index, entry in self.entries(redundant).items():
            end = min((index + 1) * grain, size)
            data = bytes(grain) if entry == 1 else self.bytes[entry * SECTOR : entry * SECTOR + grain]
            if len(data) < grain:
                raise ValueError(f"grain {index} at sector {entry} ends behind the file")
            disk[index * grain : end] = data[: end - index * grain]
        return bytes(disk)


def filled(recipe: Recipe, grains: list[bytes]) -> bytes:
    """An image with these grains, every other one of its disk."""
    image = bytearray(recipe.image())
    first, size = len(image) // SECTOR, recipe.grain // SECTOR
    for copy in (48, 56) if recipe.redundant else (56,):
        (place,) = struct.unpack_from("<Q", image, copy)
        for index in range(len(grains)):
            table, slot = divmod(2 * index, recipe.entries)
            (sector,) = struct.unpack_from("<I", image, place * SECTOR + 4 * table)
            struct.pack_into("<I", image, sector * SECTOR + 4 * slot, first + index * size)
    return bytes(image) + b"".join(grains)


def patch(path: str | os.PathLike[str], offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)
