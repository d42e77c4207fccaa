# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images as programs other than today's qemu-img lay them out, written here from what their sources say of the layout.

data: grains or clusters of the disk, each as bytes, by their index.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from .qcow2 import COPIED
from .vmdk import FLAG_NEWLINES, FLAG_REDUNDANT, HEADER, SECTOR, up

KILO, MEGA, GIGA = 1 << 10, 1 << 20, 1 << 30
KILO64 = 65536
Data = Mapping[int, bytes]

# ---- vmdk: monolithicSparse ----------------------------------------------------------------------------------------


def _vmdk(
    path: str, size: int, text: str, data: Data, grain: int = KILO64, sectors: int = 20, one: bool = False
) -> None:
    """sectors: of the descriptor. one: both fields name one directory; otherwise there are two, with tables each."""
    tables = -(-size // (grain * 512))
    directory = up(4 * tables, SECTOR) // SECTOR
    copy = directory + 4 * tables
    first = 1 + sectors
    redundant, main = first, first if one else first + copy
    start = up(main + copy, grain // SECTOR)
    fields = (b"KDMV", 1, FLAG_NEWLINES | FLAG_REDUNDANT, size // SECTOR, grain // SECTOR, 1, sectors, 512)
    image = bytearray(start * SECTOR)
    HEADER.pack_into(image, 0, *fields, redundant, main, start, 0, b"\n \r\n", 0)
    image[SECTOR : SECTOR + len(text)] = text.encode("latin-1")
    for place in sorted({redundant, main}):
        struct.pack_into(f"<{tables}I", image, place * SECTOR, *(place + directory + 4 * i for i in range(tables)))
        for number, index in enumerate(sorted(data)):
            at = (place + directory) * SECTOR + 4 * index
            struct.pack_into("<I", image, at, start + number * grain // SECTOR)
    with open(path, "wb") as file:
        file.write(bytes(image) + b"".join(data[index] for index in sorted(data)))


def vmdk_mkimg(path: str, size: int, data: Data, parent: str = "", parent_cid: int = 0xFFFFFFFF) -> None:
    """mkimg of FreeBSD: no name for the extent, no content id, one directory, all grains, of 8 KiB, in order."""
    text = (
        "# Disk DescriptorFile\nversion=1\nCID=00000000\nparentCID=ffffffff\n"
        f'createType="monolithicSparse"\n# Extent description\nRW {size // SECTOR} SPARSE ""\n'
        '# The Disk Data Base\n#DDB\nddb.adapterType = "ide"\nddb.geometry.cylinders = "0"\n'
        'ddb.geometry.heads = "255"\nddb.geometry.sectors = "63"\n'
    )
    grain = 8 * KILO
    whole = b"".join(data.get(index, bytes(KILO64)) for index in range(-(-size // KILO64)))
    pieces = {index: whole[index * grain : (index + 1) * grain] for index in range(size // grain)}
    _vmdk(path, size, text, pieces, grain, -(-len(text) // SECTOR), one=True)


def _lines(parent: str, parent_cid: int, cid: int, more: str = "") -> str:
    hint = f'parentFileNameHint="{parent}"\n' if parent else ""
    return f'CID={cid:08x}\nparentCID={parent_cid:08x}\n{more}createType="monolithicSparse"\n{hint}'


def vmdk_vmware(path: str, size: int, data: Data, parent: str = "", parent_cid: int = 0xFFFFFFFF) -> None:
    """VMware Workstation on Windows, which records whole paths of that system, and ends its lines as Unix does."""
    cid = 0xFFFFFFFE if not parent else 0x2A6E1B90
    text = (
        '# Disk DescriptorFile\nversion=1\nencoding="windows-1252"\n'
        + _lines(parent, parent_cid, cid, 'isNativeSnapshot="no"\n')
        + f'# Extent description\nRW {size // SECTOR} SPARSE "Windows Server 2019 M\xfcller.vmdk"\n\n'
        '# The Disk Data Base \n#DDB\n\nddb.adapterType = "lsilogic"\nddb.geometry.cylinders = "1"\n'
        'ddb.geometry.heads = "255"\nddb.geometry.sectors = "63"\n'
        f'ddb.longContentID = "a7d5e2c8a94d4dbbd4dc22a9{cid:08x}"\nddb.toolsInstallType = "1"\n'
        'ddb.uuid = "60 00 C2 9f 4d 11 22 33-44 55 66 77 88 99 aa bb"\nddb.virtualHWVersion = "19"\n'
    )
    _vmdk(path, size, text, data)


def vmdk_virtualbox(path: str, size: int, data: Data, parent: str = "", parent_cid: int = 0xFFFFFFFF) -> None:
    """VirtualBox: no blanks around what it writes into the data base, one behind "Data Base", and UUIDs."""
    zero = "00000000-0000-0000-0000-000000000000"
    text = (
        "# Disk DescriptorFile\nversion=1\n"
        + _lines(parent, parent_cid, 0xDEF0D352)
        + f'\n# Extent description\nRW {size // SECTOR} SPARSE "OMS CS6250 VM-disk1.vmdk"\n\n'
        '# The disk Data Base \n#DDB\n\nddb.virtualHWVersion = "4"\nddb.adapterType="ide"\n'
        'ddb.geometry.cylinders="2"\nddb.geometry.heads="16"\nddb.geometry.sectors="63"\n'
        'ddb.uuid.image="2ebfd8e9-9868-4688-8f3f-97e3f9def370"\n'
        f'ddb.uuid.parent="{zero}"\nddb.uuid.modification="{zero}"\nddb.uuid.parentmodification="{zero}"\nddb.comment=""\n'
    )
    _vmdk(path, size, text, data)


def vmdk_ovftool(path: str, size: int, data: Data, parent: str = "", parent_cid: int = 0xFFFFFFFF) -> None:
    """ovftool of VMware, --diskMode=monolithicSparse; with the line ends of Windows, where it runs there."""
    text = (
        "# Disk DescriptorFile\nversion=1\n"
        + _lines(parent, parent_cid, 0x7B3C61F2)
        + f'# Extent description\nRW {size // SECTOR} SPARSE "appliance-disk1.vmdk"\n\n'
        '# The Disk Data Base\n#DDB\n\nddb.adapterType = "lsilogic"\nddb.geometry.cylinders = "1"\n'
        'ddb.geometry.heads = "255"\nddb.geometry.sectors = "63"\n'
        'ddb.longContentID = "1d15d0b3c4fb3a54d7ab0d987b3c61f2"\nddb.virtualHWVersion = "13"\n'
    )
    _vmdk(path, size, text.replace("\n", "\r\n"), data)


VMDK_WRITERS: dict[str, Callable[..., None]] = {
    "mkimg": vmdk_mkimg,
    "VMware": vmdk_vmware,
    "VirtualBox": vmdk_virtualbox,
    "ovftool": vmdk_ovftool,
}

# ---- qcow2 ---------------------------------------------------------------------------------------------------------


class _File:
    """A qcow2 file that grows cluster by cluster, refcounts of 16 bits."""

    def __init__(self, cluster: int, size: int) -> None:
        self.cluster = cluster
        self.size = size
        self.bytes = bytearray()
        self.refcounts: dict[int, int] = {}

    @property
    def l1_entries(self) -> int:
        return -(-self.size // (self.cluster * self.cluster // 8))

    def take(self, clusters: int = 1) -> int:
        """The offset of new clusters at the end, which have a reference."""
        at = up(len(self.bytes), self.cluster)
        self.bytes += bytes(at + clusters * self.cluster - len(self.bytes))
        for index in range(at // self.cluster, at // self.cluster + clusters):
            self.refcounts[index] = 1
        return at

    def put(self, at: int, *words: int, width: str = "Q") -> None:
        struct.pack_into(f">{len(words)}{width}", self.bytes, at, *words)

    def header(self, version: int, l1: int, table: int, table_clusters: int, backing: bytes, length: int) -> None:
        """length: of the header; the backing file's name stands behind it, and behind the end of extensions if there
        is room for it before the name."""
        bits = self.cluster.bit_length() - 1
        place = length if backing else 0
        fields = (0x514649FB, version, place, len(backing), bits, self.size, 0, self.l1_entries, l1)
        struct.pack_into(">IIQIIQIIQ", self.bytes, 0, *fields)
        self.put(48, table)
        self.put(56, table_clusters, width="I")
        self.bytes[place : place + len(backing)] = backing if backing else self.bytes[0:0]
        if version == 3:
            self.put(96, 4, width="I")

    def fill(self, l1: int, data: Data, flag: int = COPIED) -> None:
        """L2 tables when they are needed, and data behind them, as programs do that write as they go."""
        tables: dict[int, int] = {}
        for index in sorted(data):
            number, slot = divmod(index, self.cluster // 8)
            if number not in tables:
                tables[number] = self.take()
                self.put(l1 + 8 * number, tables[number] | flag)
            at = self.take()
            self.bytes[at : at + self.cluster] = data[index].ljust(self.cluster, b"\0")
            self.put(tables[number] + 8 * slot, at | flag)

    def write_refcounts(self, table: int, block: int) -> None:
        """All of them in one block."""
        self.put(table, block)
        for index, count in self.refcounts.items():
            self.put(block + 2 * index, count, width="H")

    def save(self, path: str) -> None:
        with open(path, "wb") as file:
            file.write(self.bytes)


def qcow2_mkimg(path: str, size: int, data: Data, backing: bytes = b"") -> None:
    """mkimg of FreeBSD: version 2, all L2 tables, then refcount blocks, then data; no extensions at all."""
    file = _File(KILO64, size)
    file.take()
    l1, table = file.take(), file.take()
    per_table = file.cluster // 8
    tables = {number: file.take() for number in sorted({index // per_table for index in data})}
    block = file.take()
    for number, at in tables.items():
        file.put(l1 + 8 * number, at | COPIED)
    for index in sorted(data):
        at = file.take()
        file.bytes[at : at + file.cluster] = data[index]
        file.put(tables[index // per_table] + 8 * (index % per_table), at | COPIED)
    file.header(2, l1, table, 1, backing, 72)
    file.write_refcounts(table, block)
    file.save(path)


def qcow2_e2image(path: str, size: int, data: Data, backing: bytes = b"") -> None:
    """e2image -Q: version 2, clusters of a file system's blocks, a place for the next L2 table ahead of its use, one
    refcount more than there are clusters. What it counts for nothing leaks."""
    file = _File(4096, size)
    file.take()
    l1 = file.take(-(-8 * file.l1_entries // 4096))
    table = file.take()
    file.take()  # left out
    next_table, block = file.take(), file.take()
    tables: dict[int, int] = {}
    pieces = {16 * index + i: whole[4096 * i :][:4096] for index, whole in data.items() for i in range(16)}
    for index in sorted(pieces):
        if not any(pieces[index]):
            continue
        at = file.take()
        file.bytes[at : at + 4096] = pieces[index]
        number, slot = divmod(index, 512)
        if number not in tables:
            tables[number] = next_table
            file.put(l1 + 8 * number, next_table | COPIED)
            next_table = file.take()
        file.put(tables[number] + 8 * slot, at | COPIED)
    file.refcounts[len(file.bytes) // 4096] = 1
    if next_table + 4096 == len(file.bytes):
        del file.bytes[next_table:]  # nothing was written there
    file.header(2, l1, table, 1, backing, 72)
    file.write_refcounts(table, block)
    file.save(path)


def qcow2_vmd(path: str, size: int, data: Data, backing: bytes = b"") -> None:
    """vmd of OpenBSD: version 3 with the shortest header, no format of the backing file, the refcount block behind the
    table."""
    file = _File(KILO64, size)
    file.take()
    l1, table, block = file.take(), file.take(), file.take()
    file.header(3, l1, table, 1, backing, 104)
    file.put(100, 104, width="I")
    file.fill(l1, data)
    file.write_refcounts(table, block)
    file.save(path)


def qcow2_cloud_hypervisor(path: str, size: int, data: Data, backing: bytes = b"") -> None:
    """cloud-hypervisor: version 3, a header of 112 bytes, an end of extensions, then the backing file's name; the
    file ends within its last cluster."""
    file = _File(KILO64, size)
    file.take()
    l1, table, block = file.take(), file.take(), file.take()
    file.header(3, l1, table, 1, backing, 120)
    file.put(100, 112, width="I")
    file.fill(l1, data)
    file.write_refcounts(table, block)
    if not data:
        del file.bytes[-1:]
    file.save(path)


def qcow2_qemu_0_12(path: str, size: int, data: Data, backing: bytes = b"") -> None:
    """qemu-img 0.12: version 2; a snapshot without extra data, whose disk has since been written to in one cluster."""
    file = _File(KILO64, size)
    file.take()
    l1, table, block = file.take(), file.take(), file.take()
    file.header(2, l1, table, 1, backing, 72)
    file.fill(l1, data)
    if data:
        _snapshot_0_12(file, l1, min(data))
    file.write_refcounts(table, block)
    file.save(path)


def _snapshot_0_12(file: _File, l1: int, written: int) -> None:
    """What all have in common loses its flags; the cluster `written` gets a new place, and its table with it."""
    copy, listed = file.take(), file.take()
    for number in range(file.l1_entries):
        (old,) = struct.unpack_from(">Q", file.bytes, l1 + 8 * number)
        old &= ~COPIED
        if not old:
            continue
        file.put(copy + 8 * number, old)
        entries = [word & ~COPIED for word in struct.unpack_from(f">{file.cluster // 8}Q", file.bytes, old)]
        file.put(old, *entries)
        own = file.take() if written // (file.cluster // 8) == number else old
        file.refcounts[old // file.cluster] += own == old
        file.put(l1 + 8 * number, own | (COPIED if own != old else 0))
        if own != old:
            slot, fresh = written % (file.cluster // 8), file.take()
            file.bytes[fresh : fresh + file.cluster] = b"\x99" * file.cluster
            file.put(own, *entries)
            file.put(own + 8 * slot, fresh | COPIED)
            entries[slot] = 0
        for entry in filter(None, entries):
            file.refcounts[entry // file.cluster] += 1
    entry = struct.pack(">QIHHIIQII", copy, file.l1_entries, 1, 3, 1260000000, 250000000, 5, 0, 0) + b"1old"
    file.bytes[listed : listed + len(entry)] = entry
    file.put(60, 1, width="I")
    file.put(64, listed)


QCOW2_WRITERS: dict[str, Callable[..., None]] = {
    "mkimg": qcow2_mkimg,
    "e2image -Q": qcow2_e2image,
    "OpenBSD vmd": qcow2_vmd,
    "cloud-hypervisor": qcow2_cloud_hypervisor,
    "qemu 0.12": qcow2_qemu_0_12,
}


def written_by_virtualbox(path: str, index: int, content: bytes) -> None:
    """VirtualBox, which makes no qcow2 images, writes a cluster of 64 KiB to one that is there: it goes to the end, its
    L2 table as well, and neither is counted or has a flag."""
    with open(path, "rb") as source:
        image = bytearray(source.read())
    (l1,) = struct.unpack_from(">Q", image, 40)
    number, slot = divmod(index, KILO64 // 8)
    (table,) = struct.unpack_from(">Q", image, l1 + 8 * number)
    image += bytes(-len(image) % KILO64)
    if not table:
        table = len(image)
        image += bytes(KILO64)
        struct.pack_into(">Q", image, l1 + 8 * number, table)
    struct.pack_into(">Q", image, (table & ~COPIED) + 8 * slot, len(image))
    with open(path, "wb") as target:
        target.write(image + content)
