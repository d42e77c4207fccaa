# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A commit to a vmdk base is killed at every moment of its run: the top shows the same, and a second run ends it.

AIRLOCK_LONG=1 kills at every moment, not at some of them.
"""

from __future__ import annotations

import os
import pathlib
import shutil

import pytest

from sandbox import errors
from sandbox.images.chain import open_chain
from sandbox.images.commits import commit, open_base
from tests.crash.killed import killing
from tests.support import qemu
from tests.support.vmdk import Recipe, Vmdk

LONG = os.environ.get("AIRLOCK_LONG") == "1"
MOMENTS = 10_000 if LONG else 16  # at most, of one chain
SIZE = 4 << 20

# The base, and the format of the top.
CHAINS = {
    "vmdk on vmdk": (Recipe(SIZE), "vmdk"),
    "small tables": (Recipe(SIZE, 4096, 64, zeroed_grains=True), "vmdk"),
    "qcow2 on vmdk": (Recipe(SIZE, zeroed_grains=True, redundant=False), "qcow2"),
}


def make(directory: pathlib.Path, recipe: Recipe, top_format: str) -> None:
    """base <- top, whose data lies partly where the base has some."""
    directory.mkdir()
    base, top = directory / "base", directory / "top"
    recipe.make(base)
    qemu.must(["qemu-io", "-f", "vmdk", "-c", "write -P 1 0 300k", "-c", "write -P 2 1M 64k", str(base)])
    if top_format == "vmdk":
        Recipe(SIZE, zeroed_grains=True).on(base).make(top)
    else:
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "vmdk", "top"]
        qemu.must(create, cwd=str(directory))
    steps = ("write -P 3 64k 100k", "write -z 1M 64k", "write -P 4 2M 192k", "write -P 5 3M 4k")
    qemu.must(["qemu-io", "-f", top_format, *(part for step in steps for part in ("-c", step)), str(top)])


def shown(path: pathlib.Path, image_format: str) -> bytes:
    """The disk as qemu-img reads it."""
    target = path.with_suffix(".shown")
    qemu.must(["qemu-img", "convert", "-f", image_format, "-O", "raw", str(path), str(target)])
    return target.read_bytes()


def committed(directory: pathlib.Path, top_format: str) -> None:
    """As `airlock commit` does it. Raises AirlockError."""
    with open_chain(str(directory / "top"), writable_layers=(0,), top_format=top_format) as chain:
        open_base(chain, 1)
        commit(chain, 1)


@pytest.mark.parametrize("kind", CHAINS)
def test_killed(kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, top_format = CHAINS[kind]
    made, work = tmp_path / "made", tmp_path / "work"
    make(made, recipe, top_format)
    wanted = shown(made / "top", top_format)
    with killing(-1, monkeypatch) as nobody:
        shutil.copytree(made, work)
        committed(work, top_format)
    assert shown(work / "base", "vmdk") == wanted
    done = Vmdk(work / "base")
    assert nobody.moments > 15
    last = range(nobody.moments - 6, nobody.moments)  # where the ids change
    for moment in sorted({*range(0, nobody.moments, max(1, nobody.moments // MOMENTS)), *last}):
        shutil.rmtree(work)
        shutil.copytree(made, work)
        with killing(moment, monkeypatch) as killer, pytest.raises(errors.JailError):
            committed(work, top_format)
        assert killer.killed
        check(work, wanted, top_format, complete=Vmdk(work / "base").cid == done.cid)
        committed(work, top_format)
        assert shown(work / "top", top_format) == shown(work / "base", "vmdk") == wanted, moment
        if top_format == "vmdk":
            assert Vmdk(work / "base").cid == Vmdk(work / "top").parent_cid == done.cid


def check(work: pathlib.Path, wanted: bytes, top_format: str, complete: bool) -> None:
    """complete: the base has got its new id. QEMU reads through a vmdk top as long as the base has not, and when the
    top knows it."""
    base = Vmdk(work / "base")
    if base.header["redundant"] and complete:
        assert base.entries() == base.entries(redundant=True)
    qemu.must(["qemu-img", "check", "-q", "-f", "vmdk", str(work / "base")])
    knows = top_format != "vmdk" or Vmdk(work / "top").parent_cid == base.cid
    assert knows or complete
    if knows:
        assert shown(work / "top", top_format) == wanted
    if complete:
        assert shown(work / "base", "vmdk") == wanted
