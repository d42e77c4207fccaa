# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Headers of other writers and other times: what a mutation does to them, and what it leaves alone."""

from __future__ import annotations

import struct

import pytest

from tests.support import qemu
from tests.support.chains import Arena
from tests.support.patch import Patch
from tests.support.qcow2 import Qcow2

MEGA = 1 << 20
BITMAPS_BIT, RAW_DATA_BIT = 1, 2


def make(arena: Arena, options: str = "") -> None:
    qemu.create(arena.disk, MEGA, options)
    qemu.io(arena.disk, "write -P 1 0 128k")
    qemu.snapshot(arena.disk, "-c", "old")
    qemu.io(arena.disk, "write -P 2 64k 64k")


def set_extensions(path: str, extensions: list[tuple[int, bytes]], header_length: int = 112) -> None:
    """Replaces all header extensions; a backing file is gone with them."""
    data = b""
    for kind, content in extensions:
        data += struct.pack(">II", kind, len(content)) + content + b"\xaa" * (-len(content) % 8)
    data += struct.pack(">II", 0, 0)
    with Patch(path) as patch, patch.image() as image:
        patch.write(header_length, data.ljust(image.cluster_size - header_length, b"\0"))
        patch.header(header_length=header_length, backing_file_offset=0, backing_file_size=0)


def operate(arena: Arena) -> None:
    arena.agree("create", b"new")
    arena.agree("apply", b"old")
    arena.agree("delete", b"nobody", code=1)
    arena.agree("delete", b"old")


UNKNOWN = [(0x11111111, b"first"), (0x22222222, b"second, longer"), (0x33333333, b"")]


@pytest.mark.parametrize("bits", [1 << 2, 1 << 63, (1 << 5) | (1 << 40)])
@pytest.mark.parametrize("cluster", [512, 4096, 8192, 65536])
@pytest.mark.parametrize("extensions", [[], UNKNOWN], ids=["plain", "unknown extensions"])
def test_unknown_autoclear_bits(arena: Arena, bits: int, cluster: int, extensions: list[tuple[int, bytes]]) -> None:
    """Cleared by a whole header rewrite; unknown extensions come back in reverse order."""
    make(arena, f"cluster_size={cluster}")
    if extensions:
        set_extensions(arena.disk, extensions)
    with Patch(arena.disk) as patch:
        patch.header(autoclear_features=bits)
    operate(arena)
    with Qcow2(arena.disk) as image:
        assert image.header["autoclear_features"] == 0


@pytest.mark.parametrize("verb", ["create", "apply", "delete"])
def test_autoclear_bits_with_a_backing_file(arena: Arena, verb: str) -> None:
    base = arena.disk + ".base"
    qemu.create(base, MEGA)
    qemu.create(arena.disk, MEGA, "cluster_size=65536", backing="disk.qcow2.base")
    qemu.io(arena.disk, "write -P 1 0 128k")
    qemu.snapshot(arena.disk, "-c", "old")
    with Patch(arena.disk) as patch:
        patch.header(autoclear_features=1 << 7)
        patch.write(0x2000, b"garbage in the header's cluster")
    arena.agree(verb, b"old")


def test_known_bits_are_kept(arena: Arena) -> None:
    """Unknown compatible bits and lazy refcounts stay as they are."""
    make(arena, "lazy_refcounts=on")
    with Patch(arena.disk) as patch:
        patch.header(compatible_features=1 | 1 << 9 | 1 << 62)
    operate(arena)
    with Qcow2(arena.disk) as image:
        assert image.header["compatible_features"] == 1 | 1 << 9 | 1 << 62


@pytest.mark.parametrize("length", [104, 112, 120, 512])
@pytest.mark.parametrize("autoclear", [0, 1 << 9])
def test_header_length(arena: Arena, length: int, autoclear: int) -> None:
    """104 is how older writers left it; longer headers hold fields that nobody here knows, and keep them."""
    make(arena, "cluster_size=4096")
    set_extensions(arena.disk, UNKNOWN[:1], header_length=length)
    with Patch(arena.disk) as patch:
        if length > 112:
            patch.write(112, b"\x5a" * (length - 112))
        patch.header(autoclear_features=autoclear)
    operate(arena)


@pytest.mark.parametrize("size", [MEGA + 1, MEGA + 511, 513])
@pytest.mark.parametrize("autoclear", [0, 1 << 9])
def test_size_that_is_no_multiple_of_a_sector(arena: Arena, size: int, autoclear: int) -> None:
    qemu.create(arena.disk, 2 * MEGA, "cluster_size=65536")
    qemu.io(arena.disk, "write -P 1 0 64k")
    with Patch(arena.disk) as patch:
        patch.header(size=size, autoclear_features=autoclear)
    arena.agree("create", b"one")
    qemu.io(arena.disk, "write -P 2 0 512")
    arena.agree("apply", b"one")
    arena.agree("delete", b"one")


@pytest.mark.parametrize("options", ["compat=0.10", "compat=1.1", "compat=1.1,cluster_size=512"])
def test_extensions_stay(arena: Arena, options: str) -> None:
    """Without autoclear bits the header's cluster is patched at two places, not rewritten."""
    make(arena, options)
    set_extensions(arena.disk, UNKNOWN, 72 if "0.10" in options else 104)
    operate(arena)


def test_larger_l1_than_needed(arena: Arena) -> None:
    make(arena, "cluster_size=4096")
    with Patch(arena.disk) as patch:
        with patch.image() as image:
            table = b"".join(entry.to_bytes(8, "big") for entry in image.active_l1())
            old = image.header["l1_table_offset"] // image.cluster_size
        patch.header(l1_table_offset=patch.append(table.ljust(700 * 8, b"\0")), l1_size=700)
        patch.refcount(old, 0)
    assert qemu.check(arena.disk).clean
    operate(arena)


@pytest.mark.parametrize("where", ["refcount table", "L1", "both"])
def test_tables_elsewhere(arena: Arena, where: str) -> None:
    """A refcount table of several clusters, in the middle of the file; an L1 table behind the data."""
    make(arena, "cluster_size=512")
    with Patch(arena.disk) as patch:
        with patch.image() as image:
            l1 = b"".join(entry.to_bytes(8, "big") for entry in image.active_l1())
            blocks = b"".join(block.to_bytes(8, "big") for block in image.refcount_blocks())
            old_l1, old_table = image.header["l1_table_offset"] // 512, image.header["refcount_table_offset"] // 512
        if where != "L1":
            patch.header(refcount_table_offset=patch.append(blocks.ljust(5 * 512, b"\0")), refcount_table_clusters=5)
            patch.refcount(old_table, 0)
        if where != "refcount table":
            patch.header(l1_table_offset=patch.append(l1))
            for cluster in range(len(l1) // 512):
                patch.refcount(old_l1 + cluster, 0)
        patch.settle()
    assert qemu.check(arena.disk).clean
    operate(arena)


@pytest.mark.parametrize("gap", [1, 3])
def test_refcount_blocks_with_gaps(arena: Arena, gap: int) -> None:
    """A block in the middle that does not exist: its clusters are free, and may be anything."""
    make(arena, "cluster_size=512")
    with Patch(arena.disk) as patch:
        with patch.image() as image:
            span = image.block_entries * 512
            blocks = sum(map(bool, image.refcount_blocks()))
            table = image.header["refcount_table_offset"]
            far = (blocks + gap) * span
            entry = image.active_l1()[0]
        data = bytearray(512)
        data[1] = 1  # the block counts itself, its first cluster
        patch.truncate(far + 512)
        patch.write(far, bytes(data))
        patch.u64(table + (blocks + gap) * 8, far)
        assert entry
    assert qemu.check(arena.disk).clean
    operate(arena)
