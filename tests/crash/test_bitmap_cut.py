# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Power cuts at every moment of lists of bitmap actions.

Each file that a cut can leave has to be openable and has to show the old set of bitmaps or the new one: names, flags,
granularity, every bit, none of them inconsistent that was not; the rest of the header, the disk and every snapshot
stay as they are. It may have leaked clusters. qemu-img check agrees.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.crash.cut import LONG, cut_power
from tests.support import judge, qemu
from tests.support.bitmap_drivers import BitmapCall, PythonBitmaps
from tests.support.bitmap_steps import OTHER, make_bitmap_chain
from tests.support.bitmaps import bitmaps
from tests.support.cells import Cell
from tests.support.patch import Patch
from tests.support.qcow2 import AUTOCLEAR_BITMAPS, Qcow2
from tests.support.steps import Fill
from tests.support.untouched import header_without_bitmaps

FEATURE_NAMES = 0x6803F857


def meaning(image: Qcow2) -> object:
    return judge.content(image), bitmaps(image), header_without_bitmaps(image)


def call(name: str, *actions: str, granularity: int = 0, source_file: str = "") -> BitmapCall:
    """Actions in words: "add", "merge other"."""
    pairs = ((kind, source.encode()) for kind, _unused, source in (action.partition(" ") for action in actions))
    return BitmapCall(name.encode(), tuple(pairs), granularity, source_file)


@dataclass(frozen=True)
class Scenario:
    """An image with these bitmaps (name and granularity) and what more is done to it; then the list that is cut."""

    call: BitmapCall
    bitmaps: tuple[tuple[str, int], ...] = (("b0", 512), ("b1", 4096))
    options: str = "cluster_size=512"
    size: int = 2 << 20
    backing: str = ""
    data_file: int = 0  # bytes of the data file's name
    before: Callable[[str], None] | None = None  # there are bitmaps
    more: Callable[[str], None] | None = None

    def _data_file(self, path: str) -> str:
        name = f"{os.path.dirname(path)}/"
        return f",data_file={name:/<{self.data_file - 1}}d" if self.data_file else ""

    def make(self, path: str) -> None:
        if self.backing:
            qemu.create(os.path.join(os.path.dirname(path), "base.qcow2"), self.size)
        qemu.create(path, self.size, self.options + self._data_file(path), self.backing or None)
        qemu.io(path, "write -P 1 0 8k", f"write -P 2 {self.size // 2} 4k")
        qemu.snapshot(path, "-c", "one")
        if self.before:
            self.before(path)
        for i, (name, granularity) in enumerate(self.bitmaps):
            qemu.must(["qemu-img", "bitmap", "--add", "-g", str(granularity), "-f", "qcow2", path, name])
            qemu.io(path, f"write -P 3 {(i + 1) << 16} 2k", f"write -P 4 {self.size - 4096} 4k")
        if self.more:
            self.more(path)


def _unknown(path: str) -> None:
    """Extensions that nobody knows, and a long table of feature names: the next one comes into another sector."""
    with Patch(path) as patch:
        names = struct.pack(">II", FEATURE_NAMES, 336) + bytes(336)
        patch.write(
            112, names + struct.pack(">II8s", 0x1234, 8, b"contents") + struct.pack(">II3s5x", 0x5678, 3, b"end")
        )


def _short_header(path: str) -> None:
    """A header of 104 bytes, as older writers have it, its extensions moved to where it ends."""
    with Patch(path) as patch:
        with patch.image() as image:
            rest = image.read(112, image.cluster_size - 112)
        patch.write(104, rest + bytes(8))
        patch.header(header_length=104)


def _autoclear(path: str) -> None:
    with Patch(path) as patch, patch.image() as image:
        patch.header(autoclear_features=image.header["autoclear_features"] | 1 << 9)


def _stale(path: str) -> None:
    with Patch(path) as patch:
        patch.header(autoclear_features=0)


def _in_use(path: str) -> None:
    qemu.crash(path, "write -P 5 0 4k")


def _all_ones(path: str) -> None:
    """As another writer may store what is all dirty."""
    with Patch(path) as patch:
        with patch.image() as image:
            entry = image.bitmap_directory()[0]
            word = next(i for i, word in enumerate(image.table(entry.table, entry.table_entries)) if not word)
        patch.u64(entry.table + 8 * word, 1)


def _other(path: str) -> None:
    """Another image to merge from, with larger clusters."""
    other = os.path.join(os.path.dirname(path), OTHER)
    qemu.create(other, 2 << 20)
    qemu.must(["qemu-img", "bitmap", "--add", "-g", "1k", "-f", "qcow2", other, "b0"])
    qemu.io(other, "write 64k 64k", "write 1M 512k")


LONG_NAME = "n" * 460
LARGE = "cluster_size=65536"
EDGE = "cluster_size=512,refcount_bits=64"
ADD = call("new", "add")
SCENARIOS = {
    **{
        f"first, {size} bytes, {title}": Scenario(ADD, (), f"cluster_size={size}", backing=backing)
        for size in (512, 4096, 8192, 65536)
        for title, backing in (
            ("alone", ""),
            ("with a backing file", "base.qcow2"),
            ("a long name", "./" * 60 + "base.qcow2"),
        )
    },
    "first, short header": Scenario(ADD, (), LARGE, more=_short_header),
    "first, unknown extensions": Scenario(ADD, (), LARGE, more=_unknown),
    "first, unknown autoclear bit": Scenario(ADD, (), LARGE, more=_autoclear),
    "first, and disabled": Scenario(call("new", "add", "disable"), ()),
    "second": Scenario(ADD, (("b0", 512),)),
    "second, and merged": Scenario(call("new", "add", "merge b0", granularity=1024), (("b0", 512),)),
    "third, 64 KiB": Scenario(call("new", "add", "merge b0", "merge b1", "disable"), options=LARGE),
    "third, long names": Scenario(call(LONG_NAME, "add"), (("b0", 512), (LONG_NAME[:-1], 512))),
    "third, unknown autoclear bit": Scenario(ADD, more=_autoclear),
    "merge": Scenario(call("b0", "merge b1")),
    "merge, and disabled": Scenario(call("b0", "merge b1", "disable")),
    "merge, 64 KiB": Scenario(call("b0", "merge b1"), options=LARGE),
    "merge from another": Scenario(call("b0", "merge b0", source_file=OTHER), more=_other),
    "merge into coarse": Scenario(call("b1", "merge b0")),
    "merge over a sector's end": Scenario(
        call("b2", "merge b0", "disable"), (("b0", 512), (LONG_NAME, 512), ("b2", 512))
    ),
    "merge into all ones": Scenario(call("b0", "merge b1", "disable"), size=16 << 20, more=_all_ones),
    **{
        f"{kind}, the extension in two sectors at {place}": Scenario(
            wanted, options="cluster_size=4096", data_file=place - 112 - 16
        )
        for kind, wanted in (("third", ADD), ("remove", call("b0", "remove")))
        for place in (496, 504)
    },
    "third, the extension in two sectors, 64 KiB": Scenario(ADD, options=LARGE, data_file=1008 - 112 - 400 - 8 - 8),
    "clear": Scenario(call("b0", "clear")),
    "clear and merge": Scenario(call("b0", "clear", "merge b1")),
    "clear, 64 KiB": Scenario(call("b0", "clear"), options=LARGE),
    "disable": Scenario(call("b0", "disable")),
    "disable over a sector's end": Scenario(call("b2", "disable"), (("b0", 512), (LONG_NAME, 512), ("b2", 512))),
    "remove": Scenario(call("b0", "remove")),
    "remove the last": Scenario(call("b0", "remove"), (("b0", 512),)),
    "remove the last, with a backing file": Scenario(call("b0", "remove"), (("b0", 512),), LARGE, backing="base.qcow2"),
    "remove the last, 512, with a backing file": Scenario(call("b0", "remove"), (("b0", 512),), backing="base.qcow2"),
    "remove the last, unknown extensions": Scenario(call("b0", "remove"), (("b0", 512),), LARGE, before=_unknown),
    "remove and add": Scenario(call("b0", "remove", "add", "merge b1", granularity=2048)),
    "remove what is in use": Scenario(call("b1", "remove"), more=_in_use),
    "add, the others in use": Scenario(ADD, more=_in_use),
    "add to stale ones": Scenario(ADD, more=_stale),
    "add to stale ones, with a backing file": Scenario(ADD, (("b0", 512),), LARGE, backing="base.qcow2", more=_stale),
    "remove a stale one": Scenario(call("b0", "remove"), more=_stale),
    "refcount block added": Scenario(ADD, (("b0", 512),), EDGE, 1 << 20, more=Fill(False, 1, 256 << 10).run),
    "refcount block added, first": Scenario(ADD, (), EDGE, 1 << 20, more=Fill(False, 0, 256 << 10).run),
    "refcount table moved": Scenario(
        call("new", "add", "merge b0"), (("b0", 512),), EDGE, 4 << 20, more=Fill(True, 2, 256 << 10).run
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_power_cut(name: str, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.path.join(tmp_path, "disk.qcow2")
    scenario = SCENARIOS[name]
    scenario.make(path)
    tally = cut_power(path, lambda: PythonBitmaps().run(path, scenario.call), meaning, monkeypatch)
    print(f"{name}: {dict(tally)}")
    assert sum(tally.values()) > 1
    with Qcow2(path) as image:
        assert bool(image.header["autoclear_features"] & AUTOCLEAR_BITMAPS) == bool(bitmaps(image))


@pytest.mark.parametrize("seed", range(150 if LONG else 5))
def test_power_cuts_in_a_random_chain(seed: int, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains as the differential tests make them, on small images, with power cuts in every list."""
    bits = (9, 9, 10, 12)[seed % 4]
    cell = Cell(cluster_bits=bits, refcount_bits=(8, 16, 64)[seed % 3], backing=seed % 5 == 0, size=(96 + seed) << 10)
    path = cell.make(str(tmp_path))
    total: Counter[str] = Counter()
    for step in make_bitmap_chain(seed, cell).steps:
        if step.call is None:
            step.prepare(path)
            continue
        trial, wanted = path + ".trial", step.call
        qemu.copy(path, trial)
        if PythonBitmaps().run(trial, wanted).code == 0:
            total += cut_power(path, lambda wanted=wanted: PythonBitmaps().run(path, wanted), meaning, monkeypatch)
    print(f"seed {seed}, {cell}: {dict(total)}")
    assert sum(total.values()) > 2
