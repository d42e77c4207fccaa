# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Power cuts and kills at every moment of the removal of damaged bitmaps.

What is left shows the damaged ones, byte for byte, and a second removal ends where an undisturbed one does; or it shows
what is sound alone, and qemu-img finds leaks at worst. Disk, snapshots and the rest of the header stay either way.

AIRLOCK_LONG=1 takes each damage there is, and kills at every moment.
"""

from __future__ import annotations

import pathlib
import shutil
from collections import Counter

import pytest

from sandbox import errors
from sandbox.images.bitmaps import Action, change_bitmap
from sandbox.images.image import Image
from tests.crash import replay
from tests.crash.cut import ASK_QEMU_EVERY, LONG, RANDOM_SUBSETS, qemu_agrees, record
from tests.crash.killed import killing
from tests.support import judge, qemu
from tests.support.bitmaps import bitmaps
from tests.support.damaged_bitmaps import DAMAGES, Damaged
from tests.support.qcow2 import BITMAPS_EXTENSION, Qcow2
from tests.support.untouched import header_without_bitmaps

MOMENTS = 10_000 if LONG else 12  # at most, of one removal
SMALL, LARGE = "cluster_size=4096", "cluster_size=65536,refcount_bits=64"
# All bitmaps go with the extension; some go; none, for only their number is wrong.
CASES = (
    [(name, options) for name in DAMAGES for options in (SMALL, LARGE)]
    if LONG
    else [
        ("directory of zeros", SMALL),
        ("directory of zeros", LARGE),
        ("reserved field", SMALL),
        ("directory in the L1 table", SMALL),
        ("no table", SMALL),
        ("no table", LARGE),
        ("bits in the disk", SMALL),
        ("bits of another", LARGE),
        ("one bitmap more", SMALL),
    ]
)


def remove(path: str) -> None:
    with Image.open(path, writable=True) as image:
        change_bitmap(image, b"", [Action.remove_damaged()])


class Removal:
    """An image with damaged bitmaps, and the meanings that it may have: what it shows before the removal and after."""

    def __init__(self, directory: pathlib.Path, case: str, options: str) -> None:
        image = Damaged(directory / "disk.qcow2", options)
        with Qcow2(image.path) as sound:
            own = {
                cluster
                for clusters, kind, _who in sound.references()
                if kind.startswith("bitmap")
                for cluster in clusters
            }
            self._own = sorted(own)
        image.write(*DAMAGES[case][0](image))
        self.path = image.path
        with Qcow2(self.path) as damaged:
            self._extension = self.extensions(damaged)
            self.before = self.meaning(damaged)
        self.bytes = image.bytes()

    @staticmethod
    def extensions(image: Qcow2) -> list[tuple[int, bytes]]:
        """The places and contents of those for bitmaps."""
        return [(at, data) for at, kind, data in image.extensions() if kind == BITMAPS_EXTENSION]

    def is_old(self, image: Qcow2) -> bool:
        return bool(image.header["autoclear_features"]) and self.extensions(image) == self._extension

    def meaning(self, image: Qcow2) -> object:
        """Of damaged bitmaps: all bytes that are theirs."""
        if self.is_old(image):
            shown: object = [image.read(cluster * image.cluster_size, image.cluster_size) for cluster in self._own]
        else:
            shown = bitmaps(image)
        return judge.content(image), header_without_bitmaps(image), shown

    def removes(self, path: str) -> object:
        """Removes them there, which must leave nothing; what it shows then."""
        remove(path)
        checked = qemu.check(path)
        assert checked.clean, checked.text
        with Qcow2(path) as image:
            assert not self.is_old(image)
            return self.meaning(image)


@pytest.mark.parametrize(("case", "options"), CASES)
def test_power_cut(case: str, options: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removal = Removal(tmp_path, case, options)
    path, state = removal.path, removal.path + ".state"
    log = record(lambda: remove(path), monkeypatch)
    with Qcow2(path) as image:
        after = removal.meaning(image)
    assert replay.replayed({path: removal.bytes}, log)[path] == pathlib.Path(path).read_bytes()
    tally: Counter[str] = Counter()
    for story, files in replay.states({path: removal.bytes}, log, seed=1, extra=RANDOM_SUBSETS):
        pathlib.Path(state).write_bytes(files[path])
        with Qcow2(state) as image:
            old, shown = removal.is_old(image), removal.meaning(image)
            found = judge.Faults() if old else judge.faults(image)
        assert shown == (removal.before if old else after), story
        assert (found.damage, found.flags) == ([], 0), story
        kind = "old" if old else "leaks" if found.leaks else "clean"
        tally[kind] += 1
        if tally[kind] % ASK_QEMU_EVERY != 1:
            continue
        if old:
            assert removal.removes(state) == after, story
        else:
            qemu_agrees(state, found, removal.meaning)
    print(f"{case}, {options}: {dict(tally)}")
    assert tally["old"]
    assert tally["clean"]


@pytest.mark.parametrize(("case", "options"), CASES)
def test_killed(case: str, options: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removal = Removal(tmp_path, case, options)
    path, made = removal.path, removal.path + ".made"
    shutil.copy(path, made)
    with killing(-1, monkeypatch) as nobody:
        remove(path)
    with Qcow2(path) as image:
        after = removal.meaning(image)
    assert nobody.moments > 4
    ways: Counter[str] = Counter()
    for moment in range(0, nobody.moments, max(1, nobody.moments // MOMENTS)):
        shutil.copy(made, path)
        with killing(moment, monkeypatch) as killer, pytest.raises(errors.JailError):
            remove(path)
        assert killer.killed
        with Qcow2(path) as image:
            old, shown = removal.is_old(image), removal.meaning(image)
            found = judge.Faults() if old else judge.faults(image)
        assert shown == (removal.before if old else after), moment
        assert (found.damage, found.flags) == ([], 0), moment
        ways["old" if old else "new"] += 1
        if old:
            assert removal.removes(path) == after, moment
        else:
            remove(path)  # finds nothing to do
            with Qcow2(path) as image:
                assert removal.meaning(image) == after, moment
    assert ways["old"]
