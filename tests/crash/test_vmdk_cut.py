# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Power cuts at every moment of commits to a vmdk base, with any subset of the writes since the last flush lost.

The top shows the same in every state, and the base in each sector what it showed before or what it is to show. The
second run leads to the end. AIRLOCK_LONG=1 runs again, and asks qemu-img, in more states.
"""

from __future__ import annotations

import os
import pathlib

import pytest

from sandbox.chain import open_chain
from sandbox.commits import commit, open_base
from tests.crash import replay
from tests.crash.cut import LONG, record
from tests.differential.harness import qemu
from tests.differential.harness.vmdk import SECTOR, Recipe, Vmdk

RUN_AGAIN_EVERY = 5 if LONG else 40
RANDOM_SUBSETS = 100 if LONG else 8
TEARS = 2000 if LONG else 24
SIZE = 192 << 10

# The base, and the top on it. Tables of 64 entries: a commit writes several groups of them.
CHAINS = {
    "grains of 512": (Recipe(SIZE, 512, 64), Recipe(SIZE, 512, 64)),
    "zeroed grains": (Recipe(SIZE, 4096, 64, zeroed_grains=True), Recipe(SIZE, 4096, 64, zeroed_grains=True)),
    "no second table": (Recipe(SIZE, 1024, 128, redundant=False), Recipe(SIZE, 4096)),
    "grains of 64 KiB": (Recipe(SIZE), Recipe(SIZE)),
}


def make(directory: pathlib.Path, base: Recipe, top: Recipe) -> None:
    directory.mkdir()
    for recipe, name, steps in (
        (base, "base", ("write -P 1 0 40k", "write -P 2 96k 24k")),
        (top, "top", ("write -P 3 8k 12k", "write -P 4 64k 8k", "write -z 100k 12k", "write -P 5 190k 2k")),
    ):
        (recipe.on(directory / "base") if name == "top" else recipe).make(directory / name)
        commands = [part for step in steps for part in ("-c", step)]
        qemu.must(["qemu-io", "-f", "vmdk", *commands, name], cwd=str(directory))


def committed(directory: pathlib.Path) -> None:
    with open_chain(str(directory / "top"), writable_layers=(0,), top_format="vmdk") as chain:
        open_base(chain, 1)
        commit(chain, 1)


def sectors(disk: bytes) -> list[bytes]:
    return [disk[at : at + SECTOR] for at in range(0, len(disk), SECTOR)]


def files_of(directory: pathlib.Path) -> replay.Files:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def wrong(files: replay.Files, wanted: bytes, old: bytes) -> str:
    """What is wrong with a state. wanted: what the top shows; old: what the base did."""
    base = Vmdk(files["base"])
    try:
        shown = base.shown()
    except ValueError as error:
        return str(error)
    if Vmdk(files["top"]).shown(shown) != wanted:
        return "the top shows something else"
    if any(now not in (before, after) for now, before, after in zip(sectors(shown), sectors(old), sectors(wanted))):
        return "the base has sectors that are neither old nor new"
    return ""


@pytest.mark.parametrize("kind", CHAINS)
def test_power_cut(kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    make(work, *CHAINS[kind])
    before = files_of(work)
    old = Vmdk(before["base"]).shown()
    wanted = Vmdk(before["top"]).shown(old)
    log = record(str(tmp_path / "log"), lambda: committed(work), monkeypatch)
    for change in log:
        change.file = os.path.basename(change.file)
    done = files_of(work)
    redundant = CHAINS[kind][0].redundant
    assert replay.replayed(before, log) == done, "the log does not tell all that was done"
    assert Vmdk(done["base"]).shown() == wanted
    number = 0
    for number, (story, files) in enumerate(replay.states(before, log, seed=1, extra=RANDOM_SUBSETS, tears=TEARS)):
        assert wrong(files, wanted, old) == "", story
        if number % RUN_AGAIN_EVERY == 0:
            for name, content in files.items():
                (work / name).write_bytes(content)
            qemu.must(["qemu-img", "check", "-q", "-f", "vmdk", "base"], cwd=str(work))
            committed(work)
            now = files_of(work)
            assert Vmdk(now["base"]).shown() == Vmdk(now["base"]).shown(redundant=redundant) == wanted, story
            assert Vmdk(now["top"]).parent_cid == Vmdk(now["base"]).cid == Vmdk(done["base"]).cid, story
    assert number > 15
