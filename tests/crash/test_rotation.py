# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A rotation of bitmaps that is killed at any moment can be run again, to the end.

Rotation, as incremental backups need it: a new bitmap records, the old one does no more, what it has is kept in a
long-term one, and it goes. Each step is done where it is not done yet, as a playbook does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from sandbox import errors
from sandbox.images.bitmaps import Action, change_bitmap, list_bitmaps
from sandbox.images.image import Image
from tests.crash.cut import LONG
from tests.crash.killed import killing
from tests.support import judge, qemu
from tests.support.bitmaps import Bitmap, bitmaps, bitmaps_of
from tests.support.qcow2 import Qcow2

OLD, NEW, LONG_TERM = b"monday", b"tuesday", b"week"


def make(path: str, options: str) -> None:
    """The old bitmap has recorded, the long-term one has something already, a third one has nothing to do with it."""
    qemu.create(path, 8 << 20, options)
    for name, granularity in ((LONG_TERM, "64k"), (OLD, "4k"), (b"bystander", "512")):
        qemu.must(["qemu-img", "bitmap", "--add", "-g", granularity, "-f", "qcow2", path, name])
        qemu.io(path, f"write -P 1 {len(name) << 18} 20k")
    qemu.must(["qemu-img", "bitmap", "--disable", "-f", "qcow2", path, LONG_TERM])
    qemu.io(path, "write -P 2 0 5k", "write -P 3 7M 300k")


def rotate(path: str) -> int:
    """All steps that are due; how many changed something. One step of them is a list of two actions."""
    done = 0

    def step(image: Image, name: bytes, actions: Sequence[Action], due: bool) -> None:
        nonlocal done
        if due:
            done += change_bitmap(image, name, actions).changed

    with Image.open(path, writable=True) as image:
        there = {bitmap.name for bitmap in list_bitmaps(image, counts=False).bitmaps}
        step(image, NEW, [Action.add(4096), Action.enable()], NEW not in there)
        step(image, OLD, [Action.disable()], OLD in there)
        step(image, LONG_TERM, [Action.merge(OLD)], OLD in there)
        step(image, OLD, [Action.remove()], OLD in there)
    return done


def summary(found: Sequence[Bitmap]) -> list[tuple[bytes, bool, bool]]:
    return [(bitmap.name, bitmap.recording, bitmap.in_use) for bitmap in found]


@pytest.mark.parametrize("options", ["cluster_size=512", "cluster_size=65536"])
def test_rotation(options: str, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before, path, end = (os.path.join(tmp_path, name) for name in ("before", "disk", "end"))
    make(before, options)
    qemu.copy(before, end)
    with killing(-1, monkeypatch) as nobody:
        assert rotate(end) == 4
        assert rotate(end) == 0
    wanted = bitmaps_of(end)
    assert summary(wanted) == [(LONG_TERM, False, False), (b"bystander", True, False), (NEW, True, False)]
    assert qemu.check(end).clean
    with Qcow2(end) as image:
        content = judge.content(image)
    assert nobody.moments > 40
    deaths = 0
    moments = range(0, nobody.moments, 1 if LONG else 9)
    for moment in moments:
        qemu.copy(before, path)
        with killing(moment, monkeypatch) as killer:
            with pytest.raises(errors.JailError, match="signal 9"):
                rotate(path)
            deaths += killer.killed
        with Qcow2(path) as image:
            damage = judge.faults(image).damage
            assert damage == [], f"killed at {moment}: {damage[:3]}"
            assert judge.content(image) == content
            assert not any(bitmap.in_use for bitmap in bitmaps(image)), f"killed at {moment}"
        assert qemu.check(path).code in (0, 3), f"killed at {moment}"
        rotate(path)
        assert bitmaps_of(path) == wanted, f"killed at {moment}"
        assert rotate(path) == 0, f"killed at {moment}"
    assert deaths == len(moments)
