# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random chains of vmdk images, with or without qcow2 ones on top, committed by qemu-img and by us.

qemu-img has several operations in flight, so that it is chance which of them gets which grain: where that can be seen
the bases are compared in what they show, where it cannot (one_at_a_time) to the byte. The content id of a base is
random with qemu-img, so it is left out.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from sandbox import errors
from sandbox.cli import qemu_words as words
from sandbox.images.chain import open_chain
from sandbox.images.commits import Commit, commit, find_base, open_base
from sandbox.images.rebases import open_backing, rebase

from . import qemu
from .commits import CLUSTER_SIZES, MEGA, ONE_OPERATION_RATE, Scenario
from .compare import differences
from .vmdk import SECTOR, Recipe, Vmdk

GRAINS = (512, 4096, 4096, 8192, 65536, 65536, 65536, 65536, 131072, MEGA)


@dataclass(frozen=True)
class Layer:
    """recipe: of a vmdk image; None: it is qcow2, with these options. size: bytes. steps: qemu-io's commands."""

    name: str
    size: int
    steps: tuple[str, ...]
    recipe: Recipe | None = None
    options: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.size} {self.recipe or self.options}"

    @property
    def format(self) -> str:
        return "vmdk" if self.recipe else "qcow2"


def _recipe(rng: random.Random, size: int) -> Recipe:
    grain = rng.choice(GRAINS)
    zeroed = rng.random() < 0.5
    entries = rng.choice((512, 512, 512, 128, 64))
    digits = rng.choice((8, 8, 8, 6))
    version = 2 if zeroed else rng.choice((1, 1, 2))
    return Recipe(size, grain, entries, zeroed, rng.random() < 0.8, version, rng.randrange(1, 16**digits))


def _steps(rng: random.Random, size: int, unit: int, count: int) -> tuple[str, ...]:
    """Data and zeros, on grains and across them."""
    steps = []
    for _unused in range(rng.randrange(count + 1)):
        step = rng.choice((512, 4096, 65536, unit, unit))
        offset = rng.randrange(size) // step * step
        length = min(step * rng.choice((1, 1, 2, 3, 8, 20)), size - offset, 3 * MEGA) // SECTOR * SECTOR
        verb = rng.choice(("write -P 1", "write -P 2", f"write -P {rng.randrange(3, 255)}", "write -z"))
        steps += [f"{verb} {offset} {length}"] if length else []
    return tuple(steps)


def make_scenario(seed: int) -> Scenario:
    """A chain of two to four layers, of which at least the lowest is vmdk."""
    rng = random.Random(seed)
    count = rng.choice((2, 2, 2, 3, 3, 4))
    vmdks = rng.randrange(1, count + 1)
    size = rng.choice((MEGA, 3 * MEGA, 5 * MEGA + 512 * 7, 16 * MEGA, 40 * MEGA))
    layers = []
    for index in range(count):
        if index > 0:
            size = max(MEGA, size + rng.choice((0,) * 12 + (-MEGA, -512 * 9, -65536, 65536)))
        if index < vmdks:
            recipe = _recipe(rng, size)
            layers.append(Layer(f"l{index}.vmdk", size, _steps(rng, size, recipe.grain, 12), recipe))
        else:
            cluster = rng.choice(CLUSTER_SIZES)
            options = f"cluster_size={cluster}" + (",extended_l2=on" if cluster >= 16384 and rng.random() < 0.3 else "")
            layers.append(Layer(f"l{index}.qcow2", size, _steps(rng, size, cluster, 12), None, options))
    base = rng.choice((count - 2, rng.randrange(count - 1)))
    return Scenario(seed, tuple(layers), base, rng.random() < 0.2)


def make_slow_scenario(seed: int) -> Scenario:
    """One in which qemu-img never has two operations in flight: what is committed lies far apart."""
    rng = random.Random(seed)
    size = 32 * MEGA
    recipe = _recipe(rng, size)
    recipe = Recipe(size, 65536, recipe.entries, recipe.zeroed_grains, recipe.redundant, recipe.version, recipe.cid)
    layers = [Layer("l0.vmdk", size, _steps(rng, size, 65536, 12), recipe)]
    if rng.random() < 0.4:
        layers.append(Layer("l1.vmdk", size, _steps(rng, size, 65536, 8), recipe))
    places = [place * 4 * MEGA for place in rng.sample(range(8), rng.randrange(1, 7))]
    verbs = ("write -P 77", "write -P 78", "write -z")
    steps = tuple(f"{rng.choice(verbs)} {place} 64k" for place in places)
    top = rng.choice(
        (Layer("top.vmdk", size, steps, recipe), Layer("top.qcow2", size, steps, None, "cluster_size=64k"))
    )
    return Scenario(seed, (*layers, top), len(layers) - 1, False, True)


class VmdkRebase(NamedTuple):
    """layers: a qcow2 image on a chain of vmdk ones. new: another chain of those, for it to stand on; () for none."""

    seed: int
    layers: tuple[Layer, ...]
    new: tuple[Layer, ...]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}"]
        for layer in (*self.layers, *self.new):
            lines += [f"  {layer}", *(f"    {step}" for step in layer.steps)]
        return "\n".join(lines)


def make_rebase(seed: int) -> VmdkRebase:
    """One of each seed."""
    rng = random.Random(-seed)
    size = rng.choice((MEGA, 3 * MEGA, 5 * MEGA + 512 * 7, 16 * MEGA))
    chains = []
    for letter in "ln":
        layers: tuple[Layer, ...] = ()
        for index in range(rng.choice((1, 1, 2))):
            recipe = _recipe(rng, max(MEGA, size + rng.choice((0, 0, 0, -MEGA, MEGA, -512 * 9))))
            steps = _steps(rng, recipe.size, recipe.grain, 12)
            same = chains[0][0].steps if chains and chains[0][0].size <= recipe.size else ()
            layers += (Layer(f"{letter}{index}.vmdk", recipe.size, (*same, *steps), recipe),)
        chains.append(layers)
    cluster = rng.choice(CLUSTER_SIZES)
    top = Layer("top.qcow2", size, _steps(rng, size, cluster, 6), None, f"cluster_size={cluster}")
    return VmdkRebase(seed, (*chains[0], top), chains[1] if rng.random() < 0.8 else ())


def build(layers: tuple[Layer, ...], directory: str) -> None:
    """Makes the images, lowest first: a vmdk image knows the content id that its parent has by then."""
    os.makedirs(directory, exist_ok=True)
    below: Layer | None = None
    for layer in layers:
        path = os.path.join(directory, layer.name)
        if layer.recipe:
            recipe = layer.recipe.on(os.path.join(directory, below.name)) if below else layer.recipe
            recipe.make(path)
        else:
            backing = ["-b", below.name, "-F", below.format] if below else []
            command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", layer.options, *backing]
            qemu.must([*command, layer.name, str(layer.size)], cwd=directory)
        steps = [part for step in layer.steps for part in ("-c", step)]
        if steps:
            qemu.must(["qemu-io", "-f", layer.format, *steps, layer.name], cwd=directory)
        below = layer


def by_qemu(scenario: Scenario, directory: str) -> qemu.Outcome:
    """qemu-img commit."""
    top = scenario.layers[-1]
    command = ["qemu-img", "commit", "-f", top.format, *(["-d"] if scenario.drop else [])]
    command += ["-b", scenario.layers[scenario.base].name] if scenario.names_base else []
    command += ["-r", ONE_OPERATION_RATE] if scenario.one_at_a_time else []
    return qemu.run([*command, top.name], cwd=directory)


def by_airlock(scenario: Scenario, directory: str, dry_run: bool = False) -> Commit:
    """As `airlock commit` does it. Raises AirlockError."""
    top = scenario.layers[-1]
    path = os.path.join(directory, top.name)
    with open_chain(path, writable_layers=() if dry_run else (0,), top_format=top.format) as chain:
        base = find_base(chain, scenario.layers[scenario.base].name.encode() if scenario.names_base else None)
        if not dry_run:
            open_base(chain, base)
        empties = not scenario.drop and not scenario.names_base
        return commit(chain, base, empties, allow_resize=True, dry_run=dry_run)


def content(directory: str, layer: Layer) -> str:
    """The disk as a layer shows it, as a raw file beside it."""
    target = f"{layer.name}.content"
    qemu.must(["qemu-img", "convert", "-f", layer.format, "-O", "raw", layer.name, target], cwd=directory)
    return os.path.join(directory, target)


def grains_of(path: str) -> object:
    """What each grain is: nothing, zeros, or data, wherever that lies."""
    image = Vmdk(path)
    return {grain: entry if entry == 1 else "data" for grain, entry in image.entries().items()}


class VmdkArena:
    """A directory in which chains are made and committed. outcomes: how often they ended how."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.outcomes: Counter[str] = Counter()

    def path(self, who: str, name: str = "") -> str:
        return os.path.join(self.directory, who, name)

    def run(self, scenario: Scenario) -> list[str]:
        """One chain, committed by both; what is wrong with ours."""
        shutil.rmtree(self.directory, ignore_errors=True)
        build(scenario.layers, self.path("made"))
        for who in ("qemu", "ours"):
            self._copy(who)
        outcome = by_qemu(scenario, self.path("qemu"))
        try:
            foreseen = by_airlock(scenario, self.path("ours"), dry_run=True)
            done = by_airlock(scenario, self.path("ours"))
        except errors.AirlockError as error:
            self.outcomes["refused by both" if outcome.code else "refused"] += 1
            return self._refusal_faults(scenario, outcome, error)
        faults = [] if foreseen[:-1] == done[:-1] else [f"foreseen {foreseen[:-1]}, done {done[:-1]}"]
        return faults + (self._faults_alone(scenario, outcome) if outcome.code else self._faults(scenario))

    def rebase(self, scenario: VmdkRebase) -> list[str]:
        """One image, given other backing files by both; what is wrong with ours."""
        layers, new = scenario.layers, scenario.new
        shutil.rmtree(self.directory, ignore_errors=True)
        build(layers, self.path("made"))
        build(new, self.path("made"))
        for who in ("qemu", "ours"):
            self._copy(who)
        name, top = new[-1].name if new else "", layers[-1].name
        command = ["qemu-img", "rebase", "-f", "qcow2", "-b", name, *(["-F", "vmdk"] if new else []), top]
        qemu.must(command, cwd=self.path("qemu"))
        with open_chain(self.path("ours", top), writable_layers=(0,)) as chain:
            if new:
                with open_backing(chain, name.encode(), "vmdk") as backing:
                    rebase(chain, backing)
            else:
                rebase(chain, None)
        self.outcomes["rebased" if new else "detached"] += 1
        different = [each.name for each in (*layers, *new) if self._differs("qemu", each.name)]
        return [f"{each} is not as qemu-img leaves it" for each in different]

    def _copy(self, who: str) -> None:
        shutil.rmtree(self.path(who), ignore_errors=True)
        subprocess.run(["cp", "-r", "--sparse=always", self.path("made"), self.path(who)], check=True)

    def _faults_alone(self, scenario: Scenario, outcome: qemu.Outcome) -> list[str]:
        """qemu-img gives the base another content id first, and then does not read the rest of a chunk through a layer
        that has not been asked before: the commit ends half-way."""
        self.outcomes["refused by qemu-img"] += 1
        base, top = scenario.layers[scenario.base], scenario.layers[-1]
        if b"Block job failed: Invalid argument" not in outcome.errors or not scenario.layers[scenario.base + 1].recipe:
            return [f"refused by qemu-img alone: {outcome.errors!r}"]
        with open(content(self.path("made"), top), "rb") as wanted, open(content(self.path("ours"), base), "rb") as got:
            faults = [] if wanted.read() == got.read(top.size) else ["the base does not show what the top did"]
        return faults + self._base_faults(base, known=False)

    def _refusal_faults(self, scenario: Scenario, outcome: qemu.Outcome, error: errors.AirlockError) -> list[str]:
        said = "".join(f"qemu-img: {line}\n" for line in words.reports(error, words.commit())).encode()
        faults = [] if outcome.code else [f"refused by us alone: {error.message}"]
        faults += [] if said == outcome.errors else [f"qemu-img says {outcome.errors!r}, we {said!r}"]
        touched = [layer.name for layer in scenario.layers if self._differs("made", layer.name)]
        return faults + [f"{name} was touched" for name in touched]

    def _differs(self, who: str, name: str) -> bool:
        return bool(differences(self.path(who, name), self.path("ours", name)))

    def _faults(self, scenario: Scenario) -> list[str]:
        faults = []
        base, top = scenario.layers[scenario.base], scenario.layers[-1]
        made, theirs, ours = (self.path(who) for who in ("made", "qemu", "ours"))
        if differences(content(theirs, base), content(ours, base)):
            faults.append("the base shows something else than qemu-img's")
        # With -d a top records what a vmdk base was before, so that QEMU reads no more through it.
        left = (scenario.names_base or scenario.drop) and scenario.base == len(scenario.layers) - 2
        if not left and differences(content(made, top), content(ours, top)):
            faults.append("the top shows something else")
        for layer in scenario.layers:
            if layer in (base, top):
                continue
            if layer.recipe:
                changed = self._as_made(layer) != Vmdk(self.path("qemu", layer.name)).bytes
            else:
                changed = self._differs("qemu", layer.name)
            if changed:
                faults.append(f"{layer.name} is not as qemu-img leaves it")
        exact = base.recipe is not None and self._same_base(base)
        for _again in range(3 if scenario.one_at_a_time else 0):
            if not exact:  # on a busy machine an operation can take longer than its slice of time
                self._copy("qemu")
                by_qemu(scenario, theirs)
                exact = self._same_base(base)
        self.outcomes["to the byte" if exact else "in effect"] += 1
        if scenario.one_at_a_time and not exact:
            faults.append("the base is not as qemu-img leaves it")
        if base.recipe:
            faults += self._base_faults(base)
        elif qemu.check(self.path("ours", base.name), ours).code:
            faults.append("qemu-img check of the base")
        if top.recipe and Vmdk(self.path("made", top.name)).bytes != self._as_made(top):
            faults.append("more of the top has changed than the id of its parent")
        if not top.recipe and self._differs("qemu", top.name) and not self._was_empty(scenario):
            faults.append("the top is not as qemu-img leaves it")
        return faults

    def _same_base(self, base: Layer) -> bool:
        return Vmdk(self.path("qemu", base.name)).masked == Vmdk(self.path("ours", base.name)).masked

    def _base_faults(self, base: Layer, known: bool = True) -> list[str]:
        """known: qemu-img's is complete."""
        paths = [self.path(who, base.name) for who in ("made", "qemu", "ours")]
        before, theirs, ours = map(Vmdk, paths)
        faults = []
        if known and (grains_of(paths[1]) != grains_of(paths[2]) or len(theirs.bytes) != len(ours.bytes)):
            faults.append("the base has other grains than qemu-img's")
        if ours.header["redundant"] and ours.entries() != ours.entries(redundant=True):
            faults.append("the redundant tables differ")
        if (theirs.cid != before.cid) != (ours.cid != before.cid):
            faults.append("the content id changes, or not, where qemu-img's does not, or does")
        checked = qemu.run(["qemu-img", "check", "-q", "-f", "vmdk", paths[2]])
        return faults + ([f"qemu-img check: {checked.errors!r}"] if checked.code else [])

    def _as_made(self, layer: Layer) -> bytes:
        """Our layer with the parent's id that it had."""
        made, ours = Vmdk(self.path("made", layer.name)), Vmdk(self.path("ours", layer.name))
        first, end = made.places[b"parentCID"]
        return ours.bytes[:first] + made.bytes[first:end] + ours.bytes[end:]

    def _was_empty(self, scenario: Scenario) -> bool:
        return not scenario.layers[-1].steps  # qemu-img empties it again
