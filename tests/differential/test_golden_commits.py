# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Golden vectors of commits: what qemu-img 10.0.2 left on disk when it was watched, held against ours as numbers.

Offsets and lengths in bytes, ci = cluster index.
"""

from __future__ import annotations

import pathlib

import pytest

from sandbox.images.chain import open_chain
from sandbox.images.commits import commit, find_base, open_base
from tests.support import qemu
from tests.support.maps import KILO64, data, entries, refcounts
from tests.support.qcow2 import COPIED, Qcow2

MEGA = 1 << 20
ZERO = 1


@pytest.fixture
def base(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "base")


@pytest.fixture
def overlay(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "overlay")


def ours(top: str, name: bytes | None = None) -> None:
    with open_chain(top, writable_layers=(0,)) as chain:
        depth = find_base(chain, name)
        open_base(chain, depth)
        commit(chain, depth, empties=name is None, allow_resize=True)


def test_gv6(base: str, overlay: str) -> None:
    """Copied in place, to new clusters, made zeros; and the overlay emptied the fast way."""
    qemu.create(base, "4M")
    qemu.io(base, "write 0 128k")
    qemu.create(overlay, "4M", backing="base")
    qemu.io(overlay, "write 64k 64k", "write 1M 64k", "write -z 2M 64k", "write 4032k 64k")
    ours(overlay)
    with Qcow2(base) as image:
        assert image.length == 0x90000
        assert entries(image) == {
            0: data(5),
            KILO64: data(6),
            MEGA: data(7),
            2 * MEGA: ZERO,
            4032 << 10: data(8),
        }
    with Qcow2(overlay) as image:
        assert image.length == 262144
        assert refcounts(image) == dict.fromkeys(range(4), 1)
        assert image.header["l1_table_offset"] == 0x30000
        assert image.active_l1() == (0,)
    assert qemu.must(["qemu-img", "info", overlay]).output.count(b"backing file: base") == 1


def test_gv7(base: str, overlay: str) -> None:
    """An overlay with a snapshot is emptied the slow way."""
    qemu.create(base, "4M")
    qemu.create(overlay, "4M", backing="base")
    qemu.io(overlay, "write 64k 64k")
    qemu.snapshot(overlay, "-c", "s")
    ours(overlay)
    with Qcow2(overlay) as image:
        assert image.active_l1() == (data(8),)
        assert entries(image) == {}
        assert (image.refcount(4), image.refcount(5)) == (1, 1)
        assert image.length == 0x90000


def test_gv8(base: str, overlay: str) -> None:
    """The slow way makes an L2 table for every index, used or not."""
    qemu.create(base, "6M")
    qemu.create(overlay, "6M", "cluster_size=4096", backing="base")
    qemu.io(overlay, "write 0 64k")
    qemu.snapshot(overlay, "-c", "s")
    ours(overlay)
    with Qcow2(overlay) as image:
        assert [entry & ~COPIED for entry in image.active_l1()] == [cluster * 4096 for cluster in (0x17, 0x18, 0x19)]
        assert entries(image) == {}


def test_gv9(tmp_path: pathlib.Path) -> None:
    """A short layer between hides what is below it, and the base is told so."""
    names = {name: str(tmp_path / name) for name in ("B", "M", "O")}
    qemu.create(names["B"], "2M")
    qemu.create(names["M"], "3M", backing="B")
    qemu.create(names["O"], "4M", backing="M")
    kept = [pathlib.Path(names[name]).read_bytes() for name in ("M", "O")]
    ours(names["O"], b"B")
    with Qcow2(names["B"]) as image:
        assert image.size == 4 * MEGA
        assert {place // KILO64: entry for place, entry in entries(image).items() if place // KILO64 >= 49} == (
            dict.fromkeys(range(49, 64), ZERO)
        )
    assert [pathlib.Path(names[name]).read_bytes() for name in ("M", "O")] == kept


def test_gv12(base: str, overlay: str) -> None:
    """Scattered data lies one behind the other, in the order of the disk."""
    qemu.create(base, "256M")
    qemu.create(overlay, "256M", backing="base")
    qemu.io(overlay, *(f"write -P {turn + 1} {turn * 3}M 64k" for turn in reversed(range(60))))
    ours(overlay)
    with Qcow2(base) as image:
        assert entries(image) == {turn * 3 * MEGA: data(5 + turn) for turn in range(60)}
        assert [image.read((5 + turn) * KILO64, 1)[0] for turn in range(60)] == [turn + 1 for turn in range(60)]


def test_gv13(base: str, overlay: str) -> None:
    """What zeros have freed is used again at once."""
    qemu.create(base, "6M")
    qemu.io(base, "write 1M 64k", "write 3M 64k")
    qemu.create(overlay, "6M", backing="base")
    qemu.io(overlay, "write 0 64k", "write -z 1M 64k", "write 2M 64k", "write -z 3M 64k", "write 4M 64k")
    ours(overlay)
    with Qcow2(base) as image:
        assert entries(image) == {0: data(7), MEGA: ZERO, 2 * MEGA: data(5), 3 * MEGA: ZERO, 4 * MEGA: data(6)}
