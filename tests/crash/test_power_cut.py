# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Power cuts at every moment of create, apply and delete.

Each file that a cut can leave has to be openable and has to show the old state or the new one (the disk and every
snapshot, to the byte). It may have leaked clusters, or COPIED flags that say less or more than the refcount while
nothing is shared. qemu-img check agrees: leaks, or errors of that one kind, all of which its repair removes.

AIRLOCK_LONG=1 asks qemu-img about more states, draws more random subsets, and cuts more random chains.
"""

from __future__ import annotations

import os
import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.crash.cut import LONG, cut_power
from tests.support import judge, qemu
from tests.support.cells import Cell
from tests.support.drivers import PythonDriver, SnapshotCall
from tests.support.patch import Patch
from tests.support.steps import Fill, make_chain, trim_l1


@dataclass(frozen=True)
class Scenario:
    """An image, what happened to it, and the operation that the power cut interrupts."""

    call: SnapshotCall
    options: str = "cluster_size=512"
    size: int = 96 << 10
    more: Callable[[str], None] | None = None

    def make(self, path: str) -> None:
        """The image as it is when the operation starts: two snapshots, and writes before, between and after them."""
        qemu.create(path, self.size, self.options)
        cluster = 65536 if "65536" in self.options else 4096
        qemu.io(path, f"write -P 1 0 {2 * cluster}", f"write -P 2 {self.size // 2} {cluster}", "write -c -P 9 32k 16k")
        qemu.snapshot(path, "-c", "one")
        qemu.io(path, f"write -P 3 {cluster} {cluster}", f"write -z {self.size // 2} 2k")
        qemu.snapshot(path, "-c", "two")
        qemu.io(path, f"write -P 4 0 {cluster}", f"write -P 5 {self.size - 2 * cluster} {cluster}")
        if self.more:
            self.more(path)


def _resized(size: int) -> Callable[[str], None]:
    def resize(path: str) -> None:
        qemu.must(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", path, str(size)])
        qemu.io(path, "write -P 6 0 4k", f"write -P 7 {size - 4096} 4k")

    return resize


def _trimmed(path: str) -> None:
    _resized(32 << 10)(path)
    trim_l1(path)
    with Patch(path) as patch:  # the same disk size everywhere: only the tables differ
        with patch.image() as image:
            places = [s.offset + 48 for s in image.snapshots()]
        for place in places:
            patch.u64(place, 32 << 10)


def _autoclear(path: str) -> None:
    """An unknown autoclear bit, and an extension that is not in the header's first sector: all of it is rewritten."""
    with Patch(path) as patch:
        patch.write(112, struct.pack(">II", 0x6803F857, 480) + bytes(480) + struct.pack(">II", 0x1234, 8) + b"contents")
        patch.header(autoclear_features=1 << 9)


def _bitmaps(path: str) -> None:
    qemu.must(["qemu-img", "bitmap", "--add", path, "b0"])
    qemu.io(path, "write -P 11 8k 8k")


def _leaking(path: str) -> None:
    with Patch(path) as patch:
        patch.append(b"lost")


CREATE, APPLY, DELETE = (
    SnapshotCall("create", b"three"),
    SnapshotCall("apply", b"one"),
    SnapshotCall("delete", b"one"),
)
EDGE = "cluster_size=512,refcount_bits=64"
SCENARIOS = {
    **{f"{call.verb}": Scenario(call) for call in (CREATE, APPLY, DELETE)},
    **{f"{call.verb}, version 2": Scenario(call, "compat=0.10,cluster_size=512") for call in (CREATE, APPLY, DELETE)},
    **{f"{call.verb}, 64 KiB": Scenario(call, "cluster_size=65536", 4 << 20) for call in (CREATE, APPLY, DELETE)},
    **{
        f"{call.verb}, extended L2": Scenario(call, "cluster_size=16384,extended_l2=on", 1 << 20)
        for call in (CREATE, APPLY, DELETE)
    },
    **{
        f"{call.verb}, L1 of many sectors": Scenario(call, "cluster_size=512", 8 << 20)
        for call in (CREATE, APPLY, DELETE)
    },
    "apply the last": Scenario(SnapshotCall("apply", b"two")),
    "delete the last": Scenario(SnapshotCall("delete", b"two")),
    "create, refcount block added": Scenario(CREATE, EDGE, 1 << 20, Fill(False, 1, 256 << 10).run),
    "create, refcount table moved": Scenario(CREATE, EDGE, 4 << 20, Fill(True, 3, 256 << 10).run),
    "delete, refcount block added": Scenario(DELETE, EDGE, 1 << 20, Fill(False, 0, 256 << 10).run),
    "create, leaks present": Scenario(CREATE, more=_leaking),
    "create, header rewritten": Scenario(CREATE, "cluster_size=65536", 4 << 20, _autoclear),
    "apply, header rewritten": Scenario(APPLY, "cluster_size=4096", 1 << 20, _autoclear),
    "create, bitmaps present": Scenario(CREATE, "cluster_size=4096", 1 << 20, _bitmaps),
    "delete, bitmaps present": Scenario(DELETE, "cluster_size=4096", 1 << 20, _bitmaps),
    "apply, disk grows": Scenario(APPLY, more=_resized(48 << 10)),
    "apply, disk shrinks": Scenario(APPLY, more=_resized(160 << 10)),
    "apply, L1 grows": Scenario(APPLY, more=_trimmed),
}


def cut(path: str, call: SnapshotCall, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Cuts the power in every moment of a snapshot operation: see cut.py."""
    return cut_power(path, lambda: PythonDriver().run(path, call), judge.content, monkeypatch)


@pytest.mark.parametrize("name", SCENARIOS)
def test_power_cut(name: str, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.path.join(tmp_path, "disk.qcow2")
    SCENARIOS[name].make(path)
    tally = cut(path, SCENARIOS[name].call, monkeypatch)
    print(f"{name}: {dict(tally)}")
    assert sum(tally.values()) > 2


@pytest.mark.parametrize("seed", range(200 if LONG else 6))
def test_power_cuts_in_a_random_chain(seed: int, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains as the differential tests make them, on small images, with power cuts in every operation."""
    rng = random.Random(seed)
    extended = rng.random() < 0.2
    cell = Cell(
        cluster_bits=14 if extended else rng.choice((9, 9, 10, 12)),
        refcount_bits=rng.choice((8, 16, 16, 64)),
        extended_l2=extended,
        size=rng.randrange(64 << 10, 512 << 10) // 512 * 512,
        compression=rng.choice(("none", "zlib")),
    )
    path = cell.make(str(tmp_path))
    total: Counter[str] = Counter()
    for step in make_chain(seed, cell).steps:
        if step.call is None:
            step.prepare(path)
            continue
        trial = path + ".trial"
        qemu.copy(path, trial)
        if PythonDriver().run(trial, step.call).code == 0:
            total += cut(path, step.call, monkeypatch)
    print(f"seed {seed}, {cell}: {dict(total)}")
    assert sum(total.values()) > 2
