# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Golden vectors: what qemu-img 10.0.2 left on disk when it was watched, held against our results as numbers.

The images are made by QEMU; the snapshots are ours. So these also hold when the oracle's next version changes its mind.
Offsets and lengths in bytes, ci = cluster index.
"""

from __future__ import annotations

import pytest

from tests.support import qemu
from tests.support.chains import Arena
from tests.support.drivers import SnapshotCall
from tests.support.qcow2 import COPIED, Qcow2

KILO64 = 64 << 10


def ours(arena: Arena, verb: str, argument: bytes) -> None:
    result = arena.driver.run(arena.disk, SnapshotCall(verb, argument))
    assert (result.code, result.message) == (0, "")


def counts(image: Qcow2) -> dict[int, int]:
    """Cluster index -> refcount, those of 0 left out."""
    last = -(-image.length // image.cluster_size)
    return {cluster: image.refcount(cluster) for cluster in range(last + 1) if image.refcount(cluster)}


@pytest.fixture
def one_snapshot(arena: Arena) -> Arena:
    qemu.create(arena.disk, "64M")
    qemu.io(arena.disk, "write -P 1 0 64k", "write -P 2 1M 128k")
    ours(arena, "create", b"s1")
    return arena


@pytest.fixture
def two_snapshots(one_snapshot: Arena) -> Arena:
    qemu.io(one_snapshot.disk, "write -P 3 0 64k", "write -P 4 5M 64k")
    ours(one_snapshot, "create", b"s2")
    qemu.io(one_snapshot.disk, "write -P 5 1M 64k")
    return one_snapshot


def test_first_snapshot(one_snapshot: Arena) -> None:
    with Qcow2(one_snapshot.disk) as image:
        assert image.length == 0x90043
        assert counts(image) == {**dict.fromkeys((0, 1, 2, 3, 8, 9), 1), **dict.fromkeys((4, 5, 6, 7), 2)}
        assert image.active_l1() == (4 * KILO64,)
        (snapshot,) = image.snapshots()
        assert (snapshot.offset, snapshot.length, snapshot.l1_offset) == (9 * KILO64, 67, 8 * KILO64)
        assert (snapshot.id, snapshot.name, snapshot.date) == (b"1", b"s1", qemu.DATE)
        assert image.table(8 * KILO64, 1) == (COPIED | 4 * KILO64,)  # the copy keeps the flag of before
        entries = [entry for entry, _unused in image.l2(image.active_l1()[0]) if entry]
        assert entries == [5 * KILO64, 6 * KILO64, 7 * KILO64]


def test_second_snapshot(two_snapshots: Arena) -> None:
    with Qcow2(two_snapshots.disk) as image:
        assert [s.offset for s in image.snapshots()] == [0xE0000, 0xE0048]
        assert image.snapshots()[1].l1_offset == 0xD0000
        assert image.active_l1()[0] & ~COPIED == 9 * KILO64


def test_delete(two_snapshots: Arena) -> None:
    ours(two_snapshots, "delete", b"s1")
    with Qcow2(two_snapshots.disk) as image:
        assert image.header["snapshots_offset"] == 16 * KILO64
        assert image.length == 0x100043
        expected = dict.fromkeys((0, 1, 2, 3, 6, 9, 10, 13, 15, 16), 1)
        assert counts(image) == {**expected, **dict.fromkeys((7, 11, 12), 2)}
        for cluster in (14, 4, 5, 8):
            assert image.read(cluster * KILO64, KILO64) == bytes(KILO64), f"ci {cluster} was freed: it reads as zeros"


def test_apply(two_snapshots: Arena) -> None:
    ours(two_snapshots, "delete", b"s1")
    ours(two_snapshots, "apply", b"s2")
    with Qcow2(two_snapshots.disk) as image:
        assert image.length == 0x100043
        expected = dict.fromkeys((0, 1, 2, 3, 13, 16), 1)
        assert counts(image) == {**expected, **dict.fromkeys((6, 7, 10, 11, 12), 2)}
        assert image.active_l1() == image.table(0xD0000, 1) == (10 * KILO64,)
        for cluster in (15, 9):
            assert image.read(cluster * KILO64, KILO64) == bytes(KILO64)


def test_cursor_leaves_holes_behind(arena: Arena) -> None:
    """512-byte clusters: an L1 copy needs two, the table one; holes of one cluster are not looked at again."""
    qemu.create(arena.disk, "4M", "cluster_size=512")
    with Qcow2(arena.disk) as image:
        fixed = len(counts(image))
        l2_tables = -(-(245 - fixed) // 65)
    clusters = 245 - fixed - l2_tables
    qemu.io(arena.disk, f"write -P 7 0 {clusters * 512}")
    with Qcow2(arena.disk) as image:
        assert max(counts(image)) == 244
    for name in (b"s1", b"s2", b"s3", b"s4"):
        ours(arena, "create", name)
    with Qcow2(arena.disk) as image:
        l1_clusters = image.header["l1_size"] * 8 // 512
        assert l1_clusters == 2
        assert [s.l1_offset // 512 for s in image.snapshots()] == [245, 248, 251, 254]
        assert image.header["snapshots_offset"] // 512 == 256
        assert image.refcount_blocks()[1] == 0x20200  # behind the table that it was needed for
        assert [cluster for cluster in range(245, 258) if not image.refcount(cluster)] == [247, 250, 253]


def test_refcount_table_moves(arena: Arena) -> None:
    """512-byte clusters and 16-bit refcounts: one cluster of table holds 8 MiB of file. A snapshot passes that edge."""
    qemu.create(arena.disk, "64M", "cluster_size=512")
    edge = 64 * 256  # clusters that 64 blocks of 256 counts cover
    spare = 3
    offset = 0
    while True:
        with Qcow2(arena.disk) as image:
            left = edge - spare - (-(-image.length // 512))
            if left <= 0:
                break
            clusters = max(1, left - left // 64 - left // 256 - 2) if left > 4 else 1
        qemu.io(arena.disk, f"write -P 9 {offset} {clusters * 512}")
        offset += clusters * 512
    ours(arena, "create", b"s1")
    with Qcow2(arena.disk) as image:
        assert image.header["refcount_table_offset"] == 0x820200
        assert image.header["refcount_table_clusters"] == 2
        assert image.refcount_blocks()[65] == 0x820000
        assert image.refcount(1) == 0  # the old table is free
    assert qemu.check(arena.disk).clean


def test_dirty_image_is_refused(arena: Arena) -> None:
    """qemu-img repairs it first, and may rebuild the whole refcount structure. We refuse, and touch nothing."""
    qemu.create(arena.disk, "64M", "lazy_refcounts=on")
    qemu.crash(arena.disk, "write -P 1 0 128k")
    with Qcow2(arena.disk) as image:
        assert image.header["incompatible_features"] == 1
    with open(arena.disk, "rb") as file:
        before = file.read()
    for call in (SnapshotCall("create", b"s"), SnapshotCall("apply", b"s"), SnapshotCall("delete", b"s")):
        result = arena.driver.run(arena.disk, call)
        assert result.code == 1
        assert "dirty" in result.message
    with open(arena.disk, "rb") as file:
        assert file.read() == before
