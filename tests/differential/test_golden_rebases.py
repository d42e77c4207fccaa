# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Golden vectors of rebases: what qemu-img 10.0.2 left on disk when it was watched, held against ours as numbers.

Offsets and lengths in bytes, ci = cluster index.
"""

from __future__ import annotations

import os
import pathlib

import pytest

from sandbox.images.chain import open_chain
from sandbox.images.rebases import open_backing, rebase, relink
from tests.support import qemu
from tests.support.maps import KILO64, data, entries, refcounts
from tests.support.qcow2 import COPIED, Qcow2

MEGA = 1 << 20
ZERO = 1
BACKING_FORMAT, FEATURE_NAMES = 0xE2792ACA, 0x6803F857


@pytest.fixture
def top(tmp_path: pathlib.Path) -> str:
    """old (4 MiB) <- top (6 MiB), and new, of 6 MiB: data of 1 at 1 MiB is the same in both."""
    old, new, path = (str(tmp_path / name) for name in ("old", "new", "top"))
    qemu.create(old, "4M")
    qemu.io(old, "write -P 1 1M 128k", "write -P 2 3M 64k")
    qemu.create(new, "6M")
    qemu.io(new, "write -P 1 1M 64k", "write -P 3 2M 64k", "write -P 4 5M 64k")
    qemu.create(path, "6M", backing="old")
    qemu.io(path, "write -P 5 0 64k", "write -P 6 3M 64k")
    return path


def rebased(path: str, name: bytes) -> None:
    with open_chain(path, writable_layers=(0,)) as chain:
        if name:
            with open_backing(chain, name, "qcow2") as backing:
                rebase(chain, backing)
        else:
            rebase(chain, None)


def header(image: Qcow2) -> tuple[bytes, list[tuple[int, int, int]]]:
    """The backing file's name where the header says that it is, and the extensions: offset, type, length."""
    offset = image.header["backing_file_offset"]
    name = b"%d " % offset + image.read(offset, image.header["backing_file_size"]) if offset else b""
    return name, [(at, kind, len(content)) for at, kind, content in image.extensions()]


NAMED = (b"528 new", [(112, BACKING_FORMAT, 5), (128, FEATURE_NAMES, 384)])
ALONE = (b"", [(112, FEATURE_NAMES, 384)])
OWN = {0: data(5), 3 * MEGA: data(6)}  # what the top holds


def test_onto_another_file(top: str) -> None:
    """What is the same there is not pulled up; zeros of the old file are data, those behind its end are zeros."""
    rebased(top, b"new")
    with Qcow2(top) as image:
        assert image.length == 0x90000
        assert entries(image) == {**OWN, MEGA + KILO64: data(7), 2 * MEGA: data(8), 5 * MEGA: ZERO}
        assert refcounts(image) == dict.fromkeys(range(9), 1)
        assert [set(image.read(cluster * KILO64, KILO64)) for cluster in (7, 8)] == [{1}, {0}]
        assert header(image) == NAMED


def test_detached(top: str) -> None:
    """Zeros need no cluster when there is nothing below."""
    rebased(top, b"")
    with Qcow2(top) as image:
        assert image.length == 0x90000
        assert entries(image) == {**OWN, MEGA: data(7), MEGA + KILO64: data(8)}
        assert header(image) == ALONE


@pytest.mark.parametrize(("name", "expected"), [(b"new", NAMED), (b"", ALONE)])
def test_relinked(name: bytes, expected: object, top: str) -> None:
    """The first cluster, and nothing else."""
    before = pathlib.Path(top).read_bytes()
    with open_chain(top, writable_layers=(0,)) as chain:
        relink(chain.top.image, name, "qcow2")
    assert pathlib.Path(top).read_bytes()[KILO64:] == before[KILO64:]
    with Qcow2(top) as image:
        assert image.length == 0x70000
        assert entries(image) == OWN
        assert header(image) == expected


def test_onto_an_ancestor(top: str) -> None:
    """What the layer between holds: clusters of 4 KiB, one behind the other, and tables where they are needed."""
    middle = os.path.join(os.path.dirname(top), "middle")
    qemu.create(middle, "6M", backing="old")
    qemu.io(middle, "write -P 7 64k 64k", "write -P 8 4M 4k")
    os.unlink(top)
    qemu.create(top, "6M", "cluster_size=4096", backing="middle")
    qemu.io(top, "write -P 5 64k 60k")
    rebased(top, b"old")
    with Qcow2(top) as image:
        assert image.length == 0x17000
        assert image.active_l1() == (COPIED | 0x4000, 0, COPIED | 0x15000)
        assert entries(image) == {
            **{KILO64 + number * 4096: COPIED | (5 + number) * 4096 for number in range(16)},
            4 * MEGA: COPIED | 0x16000,
        }
        assert header(image) == (b"136 old", [(112, BACKING_FORMAT, 5)])


def test_detached_with_a_snapshot(top: str) -> None:
    """The L2 table is the disk's own from then on; the snapshot's stays, and the data of both is counted twice."""
    qemu.snapshot(top, "-c", "s")
    rebased(top, b"")
    with Qcow2(top) as image:
        assert image.length == 0xC0000
        assert image.active_l1() == (data(9),)
        assert entries(image) == {
            0: 5 * KILO64,
            MEGA: data(10),
            MEGA + KILO64: data(11),
            3 * MEGA: 6 * KILO64,
        }
        assert refcounts(image) == {cluster: 2 if cluster in (5, 6) else 1 for cluster in range(12)}
