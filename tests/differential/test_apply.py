# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Apply where the snapshot's tables or disk size are not the active ones, and VM state above the disk."""

from __future__ import annotations

import pytest

from tests.support import qemu
from tests.support.chains import Arena
from tests.support.patch import Entry, Patch
from tests.support.qcow2 import Qcow2
from tests.support.steps import trim_l1

MEGA = 1 << 20


def vm_state_image(path: str, options: str = "") -> None:
    """A disk of 1 MiB with three snapshots of which one has 64 KiB of VM state above the disk's end, as savevm leaves
    it; the active L1 table is as short as the disk allows."""
    qemu.create(path, 8 * MEGA, f"cluster_size=4096{options}")
    qemu.io(path, "write -P 1 0 64k", "write -P 2 900k 64k")
    qemu.snapshot(path, "-c", "plain")
    qemu.io(path, "write -P 3 6M 64k", "write -P 4 32k 64k")
    qemu.snapshot(path, "-c", "vm")
    qemu.io(path, "write -P 5 0 4k")
    qemu.snapshot(path, "-a", "plain")
    qemu.snapshot(path, "-c", "later")
    with Patch(path) as patch, patch.image() as image:
        patch.header(size=MEGA)
        for snapshot in image.snapshots():
            patch.u64(snapshot.offset + 48, MEGA)
            if snapshot.name == b"vm":
                patch.u64(snapshot.offset + 40, 64 << 10)
    trim_l1(path)
    with Patch(path) as patch:
        patch.settle()
    assert qemu.check(path).clean


@pytest.mark.parametrize("options", ["", ",compat=0.10", ",refcount_bits=8"])
def test_vm_state(arena: Arena, options: str) -> None:
    """A snapshot with a larger L1 table makes the active one grow; it never shrinks again."""
    vm_state_image(arena.disk, options)
    with Qcow2(arena.disk) as image:
        assert image.header["l1_size"] == 1
    arena.agree("create", b"small")
    arena.agree("apply", b"vm")
    with Qcow2(arena.disk) as image:
        assert image.header["l1_size"] == 4
    arena.agree("create", b"large")
    arena.agree("apply", b"small")
    arena.agree("delete", b"vm")
    arena.agree("apply", b"large")
    arena.agree("delete", b"small")


@pytest.mark.parametrize("cluster", [512, 4096, 65536])
@pytest.mark.parametrize("change", ["grown", "shrunk", "grown and written", "shrunk and written", "to one cluster"])
def test_disk_of_another_size(arena: Arena, cluster: int, change: str) -> None:
    """Tables shared and not shared with the snapshot are cut, zeroed, copied and freed as qemu-img does it."""
    reach = cluster * cluster // 8
    size = 3 * reach
    qemu.create(arena.disk, size, f"cluster_size={cluster}")
    spots = [0, reach - cluster, reach, 2 * reach - cluster, 2 * reach + cluster, size - cluster]
    qemu.io(arena.disk, *(f"write -P {i + 1} {spot} {cluster}" for i, spot in enumerate(spots)))
    arena.agree("create", b"before")
    other = {"grown": 5 * reach, "shrunk": reach + 3 * cluster, "to one": cluster}
    resized = next(value for key, value in other.items() if change.startswith(key))
    qemu.must(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", arena.disk, str(resized)])
    if "written" in change:
        inside = [spot for spot in [*spots, 4 * reach, 5 * reach - cluster] if spot + cluster <= resized]
        qemu.io(arena.disk, *(f"write -P {i + 50} {spot} {cluster}" for i, spot in enumerate(inside)))
    arena.agree("create", b"between")
    arena.agree("apply", b"before")
    qemu.io(arena.disk, f"write -P 99 {reach // 2} {cluster}", f"write -P 98 {2 * reach} {cluster}")
    arena.agree("apply", b"between")
    arena.agree("delete", b"before")
    arena.agree("apply", b"between")


def test_version_2_is_not_resized(arena: Arena) -> None:
    qemu.create(arena.disk, MEGA, "compat=0.10")
    qemu.io(arena.disk, "write -P 1 0 64k")
    arena.agree("create", b"s")
    with Patch(arena.disk) as patch, patch.image() as image:
        patch.u64(image.snapshots()[0].offset + 48, 2 * MEGA)
    arena.agree("apply", b"s", code=1)
    arena.agree("delete", b"s")


@pytest.mark.parametrize(
    "size", [0, 1, 511, 512, MEGA - 512, MEGA + 1, MEGA + 512, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1]
)
def test_odd_disk_sizes(arena: Arena, size: int) -> None:
    """A snapshot may claim any disk size; what qemu-img cannot resize to is refused."""
    qemu.create(arena.disk, MEGA, "cluster_size=65536")
    qemu.io(arena.disk, "write -P 1 0 64k", "write -P 2 960k 64k")
    arena.agree("create", b"s")
    qemu.io(arena.disk, "write -P 3 0 64k")
    with Patch(arena.disk) as patch, patch.image() as image:
        patch.u64(image.snapshots()[0].offset + 48, size)
    arena.agree("apply", b"s", code=None)


@pytest.mark.parametrize("l1_size", [0, 1, 2, 3])
@pytest.mark.parametrize("verb", ["apply", "delete"])
def test_snapshot_with_a_shorter_l1(arena: Arena, l1_size: int, verb: str) -> None:
    """What a short table does not name reads as zeros."""
    qemu.create(arena.disk, 6 * MEGA, "cluster_size=4096")
    qemu.io(arena.disk, "write -P 1 0 8k", "write -P 2 3M 4k", "write -P 3 5M 4k")
    qemu.snapshot(arena.disk, "-c", "short")
    qemu.io(arena.disk, "write -P 4 3M 8k")
    with Patch(arena.disk) as patch:
        with patch.image() as image:
            patch.write(image.snapshots()[0].offset + 8, l1_size.to_bytes(4, "big"))
        patch.settle()
    assert qemu.check(arena.disk).clean
    arena.agree(verb, b"short")
    arena.agree("create", b"next")


def test_stale_flags_in_a_snapshot(arena: Arena) -> None:
    """A snapshot's own L1 keeps the COPIED flags of the moment before it was taken; apply rewrites them."""
    qemu.create(arena.disk, 6 * MEGA, "cluster_size=4096")
    qemu.io(arena.disk, "write -P 1 0 8k", "write -P 2 3M 4k")
    arena.agree("create", b"a")
    qemu.io(arena.disk, "write -P 4 3M 8k")
    arena.agree("create", b"b")
    arena.agree("delete", b"a")
    arena.agree("apply", b"b")
    arena.agree("apply", b"b")
    arena.agree("delete", b"b")


def test_snapshot_of_nothing(arena: Arena) -> None:
    qemu.create(arena.disk, 6 * MEGA, "cluster_size=4096")
    arena.agree("create", b"empty")
    qemu.io(arena.disk, "write -P 1 0 1M", "write -P 2 3M 4k")
    arena.agree("apply", b"empty")
    arena.agree("delete", b"empty")


def test_entries_without_tables(arena: Arena) -> None:
    """An image of size 0 has no L1 table at all; snapshots of it neither."""
    qemu.create(arena.disk, 0)
    arena.agree("create", b"a")
    arena.agree("create", b"b")
    arena.agree("apply", b"a")
    arena.agree("delete", b"a")
    arena.agree("delete", b"b")
    qemu.must(["qemu-img", "resize", "-q", "-f", "qcow2", arena.disk, "1M"])
    with Patch(arena.disk) as patch:
        patch.snapshot_table([Entry(disk_size=MEGA)])
    arena.agree("apply", b"s1")
    arena.agree("delete", b"s1")
