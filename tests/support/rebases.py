# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random chains whose top is rebased, by qemu-img and by us. qemu-img works on one thing at a time here: all files have
to be as it leaves them, to the byte; but for an overlay with bitmaps, which qemu-img writes anew."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass

from sandbox import errors
from sandbox.images.chain import open_chain
from sandbox.images.image import Image
from sandbox.images.rebases import Rebase, open_backing, rebase, relink

from . import qemu
from .bitmaps import bitmaps_of
from .commits import MEGA, Layer, Scenario, build, content, make_scenario
from .compare import differences

KINDS = ("other", "other", "other", "ancestor", "ancestor", "sibling", "detach", "detach", "unsafe", "unsafe detach")


@dataclass(frozen=True)
class RebaseScenario:
    """chain: the image and what it stands on now. new: the layers that are made for it to stand on, lowest first.

    backing: the new backing file's name, "" for none. on: how many layers of the old chain the new ones stand on.
    compressed: with -c.
    """

    chain: Scenario
    new: tuple[Layer, ...]
    on: int
    kind: str
    backing: str
    backing_format: str
    compressed: bool = False

    @property
    def top(self) -> Layer:
        return self.chain.layers[-1]

    @property
    def relinks(self) -> bool:
        return self.kind.startswith("unsafe")

    @property
    def has_bitmaps(self) -> bool:
        return any(step.startswith("bitmap") for step in self.top.steps)

    def __str__(self) -> str:
        new = "\n".join(f"  new {layer}" for layer in self.new)
        how = " compressed" if self.compressed else ""
        return f"{self.chain}\n{new}\n{self.kind}: {self.backing!r} {self.backing_format}{how}"


def make_rebase(seed: int) -> RebaseScenario:
    """A chain of two to five layers, and what its top is to stand on."""
    rng = random.Random(-seed)
    chain = make_scenario(seed)
    kind = rng.choice(KINDS)
    new: tuple[Layer, ...] = ()
    on = 0
    if kind in ("other", "sibling"):
        on = rng.randrange(1, len(chain.layers)) if kind == "sibling" else 0
        new = _new_layers(chain, seed, on, rng)
        backing = new[-1]
    else:
        backing = rng.choice(chain.layers[:-1])
    detaches = "detach" in kind
    name = "" if detaches else "elsewhere/base file.img" if kind == "unsafe" else backing.name
    return RebaseScenario(chain, new, on, kind, name, "" if detaches else backing.format)


def _new_layers(chain: Scenario, seed: int, on: int, rng: random.Random) -> tuple[Layer, ...]:
    """Layers of another random chain, called otherwise. Some write what the old chain has as well."""
    other = make_scenario(seed + 1_000_000).layers
    layers = [each for each in other if each.format == "qcow2" or not on][: rng.choice((1, 1, 2))]
    found = []
    for index, layer in enumerate(layers):
        steps = layer.steps + rng.choice(((), chain.layers[0].steps, chain.layers[-2].steps))
        size = rng.choice((layer.size, chain.layers[-1].size, chain.layers[-2].size))
        steps = tuple(each for each in steps if each != "snapshot")
        if layer.format == "raw" or "data_file" in layer.options:
            steps = tuple(each for each in steps if "-c" not in each)
        options = layer.options.replace(f"{layer.name.partition('.')[0]}.data", f"n{index}.data")
        name = f"n{index}.{layer.format}"
        found.append(dataclasses.replace(layer, name=name, size=max(size, MEGA), steps=steps, options=options))
    return tuple(found)


def build_rebase(scenario: RebaseScenario, directory: str) -> None:
    """Makes all images."""
    build(scenario.chain, directory)
    if scenario.new:
        # They are made beside, on layers that come out the same there.
        beside = f"{directory}.new"
        build(dataclasses.replace(scenario.chain, layers=scenario.chain.layers[: scenario.on] + scenario.new), beside)
        for name in os.listdir(beside):
            if name.startswith("n"):
                os.rename(os.path.join(beside, name), os.path.join(directory, name))
        shutil.rmtree(beside)


def by_qemu(scenario: RebaseScenario, directory: str) -> qemu.Outcome:
    command = ["qemu-img", "rebase", "-f", "qcow2", "-b", scenario.backing]
    command += ["-F", scenario.backing_format] if scenario.backing else []
    command += ["-u"] if scenario.relinks else ["-c"] if scenario.compressed else []
    return qemu.run([*command, scenario.top.name], cwd=directory)


def by_airlock(scenario: RebaseScenario, directory: str, dry_run: bool = False) -> Rebase:
    """As `airlock rebase` does it. Raises AirlockError."""
    top = os.path.join(directory, scenario.top.name)
    name = scenario.backing.encode()
    if scenario.relinks:
        with Image.open(top, writable=not dry_run) as image:
            return relink(image, name, scenario.backing_format, dry_run)
    with open_chain(top, writable_layers=() if dry_run else (0,)) as chain:
        if not name:
            return rebase(chain, None, dry_run, compressed=scenario.compressed)
        with open_backing(chain, name, scenario.backing_format) as backing:
            return rebase(chain, backing, dry_run, compressed=scenario.compressed)


class RebaseArena:
    """A directory in which chains are made and rebased. outcomes: by kind."""

    copies: tuple[str, ...] = ("qemu", "ours")

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.outcomes: Counter[str] = Counter()

    def path(self, who: str, name: str = "") -> str:
        return os.path.join(self.directory, who, name)

    def clear(self) -> None:
        """An empty directory to make images in."""
        shutil.rmtree(self.directory, ignore_errors=True)
        os.makedirs(self.directory)

    def make(self, scenario: RebaseScenario, *copies: str) -> None:
        """The images in "made", and copies of them."""
        self.clear()
        build_rebase(scenario, self.path("made"))
        for who in copies:
            subprocess.run(["cp", "-r", "--sparse=always", self.path("made"), self.path(who)], check=True)

    def run(self, scenario: RebaseScenario) -> list[str]:
        """One chain, rebased by both; what is wrong with ours."""
        try:
            self.make(scenario, *self.copies)
        except RuntimeError:
            self.outcomes["not made"] += 1  # refcounts of one bit are too narrow for some writes
            return []
        outcome = by_qemu(scenario, self.path("qemu"))
        self.outcomes[scenario.kind] += 1
        try:
            foreseen = by_airlock(scenario, self.path("ours"), dry_run=True)
            done = by_airlock(scenario, self.path("ours"))
        except errors.AirlockError as error:
            if error.code == "shared_cluster" and "write -c" in str(scenario):
                self.outcomes["broken by qemu-io"] += 1  # see commits.py
                return []
            self.outcomes["refused"] += 1
            return [] if outcome.code else [f"refused: {error.message}"]
        faults = [] if foreseen[:-1] == done[:-1] else [f"foreseen {foreseen[:-1]}, done {done[:-1]}"]
        return faults + self.faults(scenario, outcome)

    def faults(self, scenario: RebaseScenario, outcome: qemu.Outcome) -> list[str]:
        """What is wrong with ours, which was done, beside what came of qemu-img's."""
        if outcome.code:
            return [f"qemu-img refused: {outcome.errors!r}"]
        faults = []
        for name in sorted(os.listdir(self.path("made"))):
            if name == scenario.top.name and scenario.has_bitmaps:
                one, other = (bitmaps_of(self.path(who, name)) for who in ("qemu", "ours"))
                faults += [] if one == other else [f"bitmaps: {one} {other}"]
                self.outcomes["in effect"] += 1
                continue
            found = differences(self.path("qemu", name), self.path("ours", name))
            faults += [f"{name}: {found}"] if found else []
            self.outcomes["to the byte"] += not found and name == scenario.top.name
        if scenario.kind != "unsafe":
            checked = qemu.run(["qemu-img", "check", "-f", "qcow2", scenario.top.name], cwd=self.path("ours"))
            faults += [f"check: {checked}"] if checked.code else []
        if not scenario.relinks and not self.shows_the_same(scenario, "ours"):
            faults.append("the top shows something else")
        return faults

    def shows_the_same(self, scenario: RebaseScenario, who: str) -> bool:
        """Whether the top shows what it showed before."""
        top = scenario.top
        return not differences(content(self.path("made"), top), content(self.path(who), top))
