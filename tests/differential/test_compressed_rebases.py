# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rebases with compression, side by side with qemu-img's: to the byte, but for the order that it leaves to chance."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from sandbox.images.chain import open_chain
from sandbox.images.rebases import open_backing, rebase
from tests.support import qemu
from tests.support.commits import Layer, Scenario
from tests.support.compressed_rebases import FILL_SIZE, CompressedArena
from tests.support.families import agree_on_seed
from tests.support.qcow2 import COPIED, Qcow2
from tests.support.rebases import RebaseScenario, by_airlock

LONG = os.environ.get("AIRLOCK_LONG") == "1"
CHAINS = 1000 if LONG else 20
BATCH = 10
COMPRESSED = 1 << 62
MEGA = 1 << 20


@pytest.fixture
def arena() -> Iterator[CompressedArena]:
    """A directory, in memory if there is such a thing."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = tempfile.mkdtemp(prefix="airlock-test-", dir=parent)
    yield CompressedArena(os.path.join(directory, "arena"))
    shutil.rmtree(directory)


@pytest.mark.parametrize("first", range(1, CHAINS + 1, BATCH))
def test_random_chains(arena: CompressedArena, first: int) -> None:
    for seed in range(first, first + BATCH):
        agree_on_seed("rebase-compressed", arena, seed)
    assert arena.outcomes["to the byte"] > BATCH // 3


def detached(options: str, *steps: str, size: int = 2 * FILL_SIZE + 512 * 3) -> RebaseScenario:
    """An overlay, whose cluster sizes end within its last cluster, that is to stand alone."""
    base = Layer("base.raw", "raw", "", size, steps)
    chain = Scenario(0, (base, Layer("top.qcow2", "qcow2", options, size, ())), 0, False)
    return RebaseScenario(chain, (), 0, "detach", "", "", compressed=True)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster_bits", range(9, 22))
def test_every_cluster_size(arena: CompressedArena, cluster_bits: int, kind: str) -> None:
    """Words, noise, and clusters that hold both; QEMU writes no more than a few thousand one after the other."""
    size = min(FILL_SIZE, 600 << cluster_bits)
    steps = (
        f"write -s ../words.fill 0 {size}",
        f"write -s ../both.fill {FILL_SIZE} {size // 2}",
        f"write -s ../noise.fill {FILL_SIZE + size // 2} {size // 4}",
        f"write -P 3 {2 * FILL_SIZE - 512} 2048",
    )
    options = f"cluster_size={1 << cluster_bits},compression_type={kind}"
    assert "\n".join(arena.run(detached(options, *steps))) == ""
    assert arena.outcomes["to the byte"] == 1


@pytest.mark.parametrize("refcount_bits", [1, 2, 4, 8, 16, 32, 64])
def test_every_refcount_width(arena: CompressedArena, refcount_bits: int) -> None:
    """As many compressed clusters share a cluster as its refcount can count."""
    options = f"cluster_size=4096,refcount_bits={refcount_bits}"
    assert "\n".join(arena.run(detached(options, f"write -P 5 0 {MEGA}"))) == ""
    assert arena.outcomes["to the byte"] == 1


def test_part_of_a_cluster_is_held(arena: CompressedArena) -> None:
    """qemu-img aborts there. What is held stays, what is pulled up beside it is not compressed."""
    scenario = detached("cluster_size=64k,extended_l2=on", f"write -s ../words.fill 0 {MEGA}")
    base, top = scenario.chain.layers
    held = Layer(top.name, top.format, top.options, top.size, ("write -P 9 70k 2k", "write -z 200k 4k"))
    chain = Scenario(0, (base, held), 0, False)
    assert arena.run(RebaseScenario(chain, (), 0, "detach", "", "", compressed=True)) == []
    assert arena.outcomes["qemu-img aborted"] == 1
    with Qcow2(arena.path("ours", top.name)) as image:
        entries = image.l2(image.active_l1()[0])[:16]
    assert [bool(entry & COMPRESSED) for entry, _bitmap in entries] == [index not in (1, 3) for index in range(16)]


def test_a_place_for_a_cluster_is_held(arena: CompressedArena) -> None:
    """Preallocated, with nothing in it: qemu-img fails there. It is used, and nothing leaks."""
    options = "cluster_size=64k,extended_l2=on,preallocation=metadata"
    scenario = detached(options, f"write -s ../words.fill 0 {MEGA}")
    arena.make(scenario, "ours")
    by_airlock(scenario, arena.path("ours"))
    name = scenario.top.name
    assert qemu.check(arena.path("ours", name), arena.path("ours")).clean
    assert arena.shows_the_same(scenario, "ours")
    with Qcow2(arena.path("made", name)) as made, Qcow2(arena.path("ours", name)) as ours:
        places = [[entry for entry, _bitmap in image.l2(image.active_l1()[0])] for image in (made, ours)]
    assert places[0] == places[1]


def test_golden_vector(tmp_path: pathlib.Path) -> None:
    """What QEMU was watched to leave: 79 bytes each for three clusters, one that does not get smaller, and the next
    where the third ended."""
    base, top, noise = (str(tmp_path / name) for name in ("base", "top", "noise"))
    qemu.create(base, "1M")
    pathlib.Path(noise).write_bytes(random.Random(1).randbytes(65536))
    qemu.io(base, "write -P 1 0 192k", f"write -s {noise} 192k 64k", "write -P 2 256k 64k")
    qemu.create(top, "1M", backing="base")
    with open_chain(top, writable_layers=(0,)) as chain:
        rebase(chain, None, compressed=True)
    with Qcow2(top) as image:
        assert [entry for entry, _bitmap in image.l2(image.active_l1()[0])[:6]] == [
            COMPRESSED | 0x50000,
            COMPRESSED | 0x5004F,
            COMPRESSED | 0x5009E,
            COPIED | 0x60000,
            COMPRESSED | 0x500ED,
            0,
        ]
        assert [image.refcount(cluster) for cluster in range(8)] == [1, 1, 1, 1, 1, 4, 1, 0]
        assert image.length == 0x70000


def test_compressed_clusters_of_the_image_stay(tmp_path: pathlib.Path) -> None:
    """Those that it holds already are left alone, and what comes starts in a new cluster: where those end is known
    only while they are written."""
    base, other, top = (str(tmp_path / name) for name in ("base", "other", "top"))
    for path, value in ((base, 1), (other, 2)):
        qemu.create(path, "1M")
        qemu.io(path, f"write -P {value} 0 128k")
    qemu.create(top, "1M", backing="base")
    qemu.io(top, "write -c -P 3 0 64k")
    with Qcow2(top) as image:
        old = image.l2(image.active_l1()[0])[0]
    with open_chain(top, writable_layers=(0,)) as chain, open_backing(chain, b"other", "qcow2") as backing:
        rebase(chain, backing, compressed=True)
    with Qcow2(top) as image:
        first, second = image.l2(image.active_l1()[0])[:2]
        assert first == old
        assert image.compressed_range(second[0])[0] % 65536 == 0
        assert image.compressed_range(second[0])[0] // 65536 == image.compressed_range(old[0])[0] // 65536 + 1
    assert qemu.check(top).clean
