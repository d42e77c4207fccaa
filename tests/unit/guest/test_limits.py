# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that claim much: refused, or worked through, with few requests, little stack and no more memory than there
is."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import qemu
from tests.support.native import TOP, Guest, sources
from tests.support.patch import Entry, Patch
from tests.support.patching import field, patched, put

pytestmark = pytest.mark.slow

FEW = 100  # requests: an image that contradicts itself is refused before much of it is read
CLUSTER = 512
STACK = 0x200000 - 0x1C0000  # bytes: guest/abi/doorbell.h, enum memory_map


@pytest.fixture(scope="module")
def tiny(image: Callable[[str], Path]) -> bytes:
    return image("tiny").read_bytes()


def end_of(image: bytes) -> int:
    return (len(image) + CLUSTER - 1) // CLUSTER * CLUSTER


def refused(guest: Guest, image: bytes, refusal: str) -> None:
    """The operation is refused quickly, and the image is as it was."""
    guest.load_bytes(image)
    answer = guest.create(b"fresh")
    assert (answer.refusal, answer.modified) == (refusal, False)
    assert answer.requests < FEW
    assert guest.image() == image


def test_an_l1_table_of_32_mib_that_names_one_table(guest: Guest, tiny: bytes) -> None:
    table = end_of(tiny) + CLUSTER
    entries = (32 << 20) // 8
    image = put(put(tiny, end_of(tiny), bytes(CLUSTER)), table, struct.pack(">Q", end_of(tiny)) * entries)
    refused(guest, patched(image, l1_table_offset=table, l1_size=entries), "REFCOUNT_TOO_LOW")
    with_counts = patched(tiny, size=128 << 30, l1_table_offset=table, l1_size=entries)
    refused(guest, put(with_counts, table, struct.pack(">Q", 512) * entries), "REFCOUNT_TOO_LOW")


def test_a_refcount_table_of_8_mib_that_names_one_block(guest: Guest, tiny: bytes) -> None:
    block = int.from_bytes(tiny[field(tiny, "refcount_table_offset") :][:8], "big")
    image = put(tiny, end_of(tiny), struct.pack(">Q", block) * (1 << 20))
    clusters = (8 << 20) // CLUSTER
    refused(guest, patched(image, refcount_table_offset=end_of(tiny), refcount_table_clusters=clusters), "OVERLAP")


def test_a_refcount_table_of_8_mib_of_zeros(guest: Guest, tiny: bytes) -> None:
    image = put(tiny, end_of(tiny), bytes(8 << 20))
    clusters = (8 << 20) // CLUSTER
    changed = patched(image, refcount_table_offset=end_of(tiny), refcount_table_clusters=clusters)
    refused(guest, changed, "REFCOUNT_TOO_LOW")


@pytest.mark.parametrize("count", [1, 65535])
def test_snapshots_of_zeros(guest: Guest, tiny: bytes, count: int) -> None:
    image = put(tiny, end_of(tiny), bytes(count * 40))
    refused(guest, patched(image, nb_snapshots=count, snapshots_offset=end_of(tiny)), "REFCOUNT_TOO_LOW")


def test_snapshots_that_share_the_active_l1_table(guest: Guest, tiny: bytes) -> None:
    one = Entry(id=b"1", name=b"", l1_offset=field(tiny, "l1_table_offset"), l1_size=field(tiny, "l1_size")).encode()
    table = one.ljust(72, b"\0") * 65535
    image = patched(put(tiny, end_of(tiny), table), nb_snapshots=65535, snapshots_offset=end_of(tiny))
    with_counts = put(image, field(image, "l1_table_offset"), bytes(8 * field(image, "l1_size")))
    refused(guest, with_counts, "REFCOUNT_TOO_LOW")


def test_a_file_that_claims_8_tib(guest: Guest, tiny: bytes) -> None:
    """Nothing beyond what is counted is looked at."""
    guest.load_bytes(tiny)
    guest.disk.length = (8 << 40) - (1 << 20)
    answer = guest.create(b"fresh")
    assert answer.refusal == ""
    assert answer.requests < FEW
    assert guest.host.moved < 1 << 20


def test_an_l1_table_of_32_mib(guest: Guest, tmp_path: Path) -> None:
    """The largest there is: 128 GiB in clusters of 512 bytes. All operations find room for it."""
    path = tmp_path / "largest.qcow2"
    qemu.create(str(path), 128 << 30, "cluster_size=512")
    guest.load(path)
    for answer in (guest.create(b"one"), guest.apply(b"one"), guest.compare(b"one"), guest.delete(b"one")):
        assert answer.refusal == ""
        assert guest.verify().refusal == ""


def test_a_large_snapshot_table(guest: Guest, tmp_path: Path) -> None:
    """57 MiB of names: too much to be written anew in the memory that there is, which is said before anything is."""
    path = tmp_path / "names.qcow2"
    qemu.create(str(path), 1 << 20, "cluster_size=65536")
    table = bytearray()
    for number in range(1000):
        table += bytes(-len(table) % 8) + Entry(id=b"%d" % number, name=b"n" * 60000, disk_size=1 << 20).encode()
    with Patch(str(path)) as patch:
        patch.header(nb_snapshots=1000, snapshots_offset=patch.append(bytes(table)))
    guest.load(path)
    before = guest.image()
    assert len(guest.listing()) == 1000
    assert guest.verify().refusal == ""
    answer = guest.create(b"fresh")
    if answer.refusal:
        assert (answer.refusal, answer.modified) == ("NO_MEMORY", False)
        assert guest.image() == before
    else:
        assert len(guest.listing()) == 1001


def test_the_stack(tmp_path: Path) -> None:
    """All frames of the guest together, as the compiler lays them out, take a small part of its stack; what calls
    itself (a block that counts a block) does so three times at most."""
    flags = ["-std=gnu11", "-O2", "-msse2", "-c", "-fstack-usage", f"-I{TOP / 'guest'}"]
    subprocess.run(["gcc", *flags, *map(str, sources())], check=True, cwd=tmp_path)
    lines = [line for path in tmp_path.glob("*.su") for line in path.read_text().splitlines()]
    frames = [re.split(r"\t", line) for line in lines]
    assert len(frames) > 100
    assert {kind for _name, _size, kind in frames} <= {"static", "dynamic,bounded"}
    assert 4 * sum(int(size) for _name, size, _kind in frames) < STACK


def named_blocks(guest: Guest) -> int:
    """Entries of the refcount table in use."""
    head = bytes(guest.ffi.buffer(guest.disk.bytes, 112))
    start, clusters = field(head, "refcount_table_offset"), field(head, "refcount_table_clusters")
    table = bytes(guest.ffi.buffer(guest.disk.bytes + start, clusters * CLUSTER))
    return sum(entry != 0 for (entry,) in struct.iter_unpack(">Q", table))


def test_a_disk_shrinks_and_many_blocks_go(guest: Guest, image: Callable[[str], Path]) -> None:
    """Each counts only itself and has no neighbour: more ranges to be punched than the list of them holds."""
    allocate, free = 1, 2
    runs = 70_000
    guest.load(image("shrunk"))
    run = 63 * CLUSTER  # of the 64 that a block counts: the last is the block itself
    changes = guest.ffi.new("struct probe_change[]", [(allocate, 0, 0, run)] * runs)
    assert guest.probe("refcounts", changes, runs, 0).refusal == ""
    for change in changes:
        change.kind = free
    assert guest.probe("refcounts", changes, runs, 0).refusal == ""
    assert (guest.verify().refusal, guest.verify().leaked) == ("", 0)
    assert named_blocks(guest) > 65536 + 1000
    answer = guest.apply(b"before")
    assert (answer.refusal, answer.result.resized) == ("", 1)
    # Left are those that count something, the large refcount table first of all.
    assert named_blocks(guest) < 1000
    assert (guest.verify().refusal, guest.verify().leaked) == ("", 0)
