# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random chains, committed by qemu-img and by us.

qemu-img has several operations in flight, so that it is chance which of them gets which cluster of the base: the bases
are compared in all that can be seen. The other files have to be as qemu-img leaves them, to the byte. Where only one
operation can be in flight (one_at_a_time), that holds for the base as well.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sandbox import errors
from sandbox.images.chain import open_chain
from sandbox.images.commits import Commit, commit, find_base, open_base

from . import qemu
from .bitmaps import bitmaps
from .compare import differences
from .qcow2 import Qcow2

MEGA = 1 << 20
ONE_OPERATION_RATE = "640k"  # a chunk of 64 KiB takes a slice of time
CLUSTER_SIZES = (512, 512, 1024, 2048, 4096, 4096, 8192, 16384, 32768, 65536, 65536, 65536, 131072, 524288, 2 * MEGA)

LayerT = TypeVar("LayerT")


@dataclass(frozen=True)
class Layer:
    """One image of a chain. options: qemu-img create -o. size: bytes. steps: qemu-io's commands; "snapshot" takes one,
    "bitmap ..." has the arguments of qemu-img bitmap."""

    name: str
    format: str
    options: str
    size: int
    steps: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.format} {self.size} {self.options}"

    @property
    def has_bitmaps(self) -> bool:
        return any(step.startswith("bitmap") for step in self.steps)


@dataclass(frozen=True)
class Scenario(Generic[LayerT]):
    """layers: the lowest first. base: the index of the one that is committed to. drop: without emptying the top."""

    seed: int
    layers: tuple[LayerT, ...]
    base: int
    drop: bool
    one_at_a_time: bool = False

    @property
    def names_base(self) -> bool:
        """Whether -b is given."""
        return self.base != len(self.layers) - 2

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, base {self.base}, drop {self.drop}"]
        for layer in self.layers:
            lines.append(f"  {layer}")
            lines += [f"    {step}" for step in layer.steps]
        return "\n".join(lines)


@dataclass
class CommitTally:
    """outcomes: of what was compared, by kind. features: how many chains had what."""

    outcomes: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)


# ---- chains --------------------------------------------------------------------------------------------------------


def make_scenario(seed: int) -> Scenario:
    """A chain of two to five layers."""
    rng = random.Random(seed)
    count = rng.choice((2, 2, 2, 3, 3, 4, 5))
    size = rng.choice((MEGA, 3 * MEGA, 4 * MEGA, 5 * MEGA + 512 * 7, 16 * MEGA, 40 * MEGA))
    layers = []
    for index in range(count):
        if index == 0 and rng.random() < 0.2:
            raw = size + rng.choice((0, 0, 0, 300, -512))
            layers.append(Layer("l0.raw", "raw", "", raw, _steps(rng, raw // 512 * 512, 65536, "raw")))
            continue
        size = max(MEGA, size + rng.choice((0, 0, 0, 0, 0, MEGA, 65536 * 3 + 512, -MEGA, -512 * 9)))
        cluster = rng.choice(CLUSTER_SIZES)
        options = _options(rng, cluster, f"l{index}.data")
        kind = "v2" if "compat=0.10" in options else "extended" if "extended_l2" in options else "v3"
        kind = "data" if "data_file" in options else kind
        steps = _steps(rng, size, cluster, kind)
        if kind != "data" and "refcount_bits=1," not in options + "," and rng.random() < 0.25:
            steps = (*steps, "snapshot", *_steps(rng, size, cluster, kind)[:4])
        layers.append(Layer(f"l{index}.qcow2", "qcow2", options, size, steps))
    base = rng.choice((count - 2, rng.randrange(count - 1)))
    drop = rng.random() < 0.15
    for index, share in ((base, 0.35), (count - 1, 0.1)):
        if rng.random() < share and layers[index].format == "qcow2" and "compat=0.10" not in layers[index].options:
            layers[index] = _with_bitmaps(rng, layers[index])
    return Scenario(seed, tuple(layers), base, drop)


def _with_bitmaps(rng: random.Random, layer: Layer) -> Layer:
    """A few bitmaps, recording or not, made somewhere between the layer's steps."""
    steps = list(layer.steps)
    for number in range(rng.randrange(1, 4)):
        at = rng.randrange(len(steps) + 1)
        flags = rng.choice(("--add", "--add", "--add --disable"))
        granularity = 1 << rng.randrange(9, 18)
        steps.insert(at, f"bitmap {flags} -g {granularity} {layer.name} b{number}")
    return dataclasses.replace(layer, steps=tuple(steps))


def make_slow_scenario(seed: int) -> Scenario:
    """One in which qemu-img never has two operations in flight: what is committed lies far apart."""
    rng = random.Random(seed)
    size = 32 * MEGA
    kind = rng.choice(("raw", "", "", ""))
    base = Layer("l0.raw", "raw", "", size, ()) if kind else None
    if base is None:
        cluster = rng.choice(CLUSTER_SIZES)
        width = rng.choice((1, 2, 16, 64))
        options = f"cluster_size={cluster},refcount_bits={width}"
        steps = _steps(rng, size, cluster, "v3")
        base = Layer("l0.qcow2", "qcow2", options, size, tuple(step for step in steps if "-c" not in step))
        if width > 1 and rng.random() < 0.5:
            base = dataclasses.replace(base, steps=(*base.steps, "snapshot", "write -P 9 12M 200k"))
    steps = ()
    for place in rng.sample(range(8), rng.randrange(1, 7)):
        verb = rng.choice(("write -P 77", "write -P 78", "write -z"))
        steps += (f"{verb} {place * 4}M 64k",)
    return Scenario(seed, (base, Layer("l1.qcow2", "qcow2", "cluster_size=64k", size, steps)), 0, False, True)


def _options(rng: random.Random, cluster: int, data_file: str) -> str:
    if rng.random() < 0.2:
        return f"compat=0.10,cluster_size={cluster}"
    found = [f"cluster_size={cluster}", f"refcount_bits={rng.choice((1, 2, 4, 8, 16, 16, 16, 32, 64))}"]
    if cluster >= 16384 and rng.random() < 0.35:
        found.append("extended_l2=on")
    if rng.random() < 0.1:
        found.append(f"data_file={data_file}")
        return ",".join(found)
    if rng.random() < 0.15:
        found.append("lazy_refcounts=on")
    if rng.random() < 0.4:
        found.append(f"compression_type={rng.choice(('zlib', 'zstd'))}")
    return ",".join(found)


def _steps(rng: random.Random, size: int, cluster: int, kind: str) -> tuple[str, ...]:
    """What is written, as a guest would: data, zeros, holes and compressed clusters."""
    steps = []
    for _unused in range(rng.randrange(14)):
        unit = rng.choice((512, 4096, 65536, cluster, cluster))
        offset = rng.randrange(size) // unit * unit
        length = min(unit * rng.choice((1, 1, 2, 3, 8, 20)), size - offset, 3 * MEGA) // 512 * 512
        verb = rng.choices(("data", "zero", "unmap", "discard", "compress"), (55, 12, 8, 10, 15))[0]
        if length == 0:
            continue
        if verb == "compress" and kind not in ("data", "raw") and offset // cluster * cluster + cluster <= size:
            steps.append(f"write -c -P {rng.randrange(1, 255)} {offset // cluster * cluster} {cluster}")
        elif verb == "zero":
            steps.append(f"write -z {offset} {length}")
        elif verb == "unmap" and kind != "v2":
            steps.append(f"write -z -u {offset} {length}")
        elif verb == "discard":
            steps.append(f"discard {offset} {length}")
        else:
            steps.append(f"write -P {rng.randrange(1, 255)} {offset} {length}")
    return tuple(steps)


def build(scenario: Scenario, directory: str) -> None:
    """Makes the images, lowest first. Raises RuntimeError when QEMU cannot, or finds that it has damaged one."""
    os.makedirs(directory)
    below: Layer | None = None
    for layer in scenario.layers:
        command = ["qemu-img", "create", "-q", "-f", layer.format]
        command += ["-o", layer.options] if layer.options else []
        command += ["-b", below.name, "-F", below.format] if below else []
        qemu.must([*command, layer.name, str(layer.size)], cwd=directory)
        written: list[str] = []
        for step in (*layer.steps, ""):
            kind = step.partition(" ")[0]
            if kind not in ("", "snapshot", "bitmap"):
                written += ["-c", step]
                continue
            if written:
                qemu.run(["qemu-io", "-f", layer.format, *written, layer.name], cwd=directory)
            written = []
            if kind == "snapshot":
                qemu.must(["qemu-img", "snapshot", "-c", "s", layer.name], cwd=directory)
            elif kind == "bitmap":
                qemu.must(["qemu-img", *step.split()], cwd=directory)
        below = layer
        if layer.format == "qcow2" and _info_of(directory, layer)["format-specific"]["data"].get("corrupt"):
            raise RuntimeError(f"{layer.name} is corrupt")


# ---- who commits ---------------------------------------------------------------------------------------------------


def by_qemu(scenario: Scenario, directory: str) -> qemu.Outcome:
    """qemu-img commit."""
    command = ["qemu-img", "commit", "-f", "qcow2", *(["-d"] if scenario.drop else [])]
    command += ["-b", scenario.layers[scenario.base].name] if scenario.names_base else []
    command += ["-r", ONE_OPERATION_RATE] if scenario.one_at_a_time else []
    return qemu.run([*command, scenario.layers[-1].name], cwd=directory)


def by_airlock(scenario: Scenario, directory: str, dry_run: bool = False, name_base: bool | None = None) -> Commit:
    """As `airlock commit` does it. Raises AirlockError."""
    top = os.path.join(directory, scenario.layers[-1].name)
    names_base = scenario.names_base if name_base is None else name_base
    with open_chain(top, writable_layers=() if dry_run else (0,)) as chain:
        base = find_base(chain, scenario.layers[scenario.base].name.encode() if names_base else None)
        if not dry_run:
            open_base(chain, base)
        empties = not scenario.drop and not names_base
        return commit(chain, base, empties, allow_resize=True, dry_run=dry_run)


# ---- comparing -----------------------------------------------------------------------------------------------------


def _map(directory: str, scenario: Scenario, layer: Layer) -> list[tuple[int, ...]]:
    """What qemu-img map tells, offsets and holes of the files aside: (start, length, depth, ...). It opens data files
    where it is run."""
    lower = scenario.layers[: scenario.layers.index(layer) + 1][::-1]
    command = ["qemu-img", "map", "--output=json", "-f", layer.format, layer.name]
    found: list[tuple[int, ...]] = []
    for entry in json.loads(qemu.must(command, cwd=directory).output):
        kind: tuple[int, ...] = (entry["depth"],)
        if lower[entry["depth"]].format == "qcow2":
            zero = entry["zero"] and not entry["data"]
            kind += (entry["present"], zero, entry["data"], entry.get("compressed", False))
        if found and found[-1][2:] == kind:
            start, length = found.pop()[:2]
            found.append((start, length + entry["length"], *kind))
        else:
            found.append((entry["start"], entry["length"], *kind))
    return found


def _info_of(directory: str, layer: Layer) -> dict[str, Any]:
    command = ["qemu-img", "info", "--output=json", "-f", layer.format, layer.name]
    facts: dict[str, Any] = json.loads(qemu.must(command, cwd=directory).output)
    return facts


def _info(directory: str, layer: Layer) -> object:
    facts = _info_of(directory, layer)
    for name in ("actual-size", "filename", "full-backing-filename", "children"):
        facts.pop(name, None)
    return facts


def bitmaps_of(path: str) -> list[object]:
    """What the bitmaps of an image mean."""
    with Qcow2(path) as image:
        return list(bitmaps(image))


def content(directory: str, layer: Layer) -> str:
    """The disk as a layer shows it, as a raw file beside it."""
    target = f"{layer.name}.content"
    qemu.must(["qemu-img", "convert", "-f", layer.format, "-O", "raw", layer.name, target], cwd=directory)
    return os.path.join(directory, target)


def same_content(one: str, other: str, layer: Layer) -> bool:
    """Whether a layer shows the same disk in two directories."""
    return not differences(content(one, layer), content(other, layer))


class CommitArena:
    """A directory in which chains are made and committed."""

    def __init__(self, directory: str, tally: CommitTally | None = None) -> None:
        self.directory = directory
        self.tally = tally or CommitTally()

    def path(self, who: str, name: str = "") -> str:
        return os.path.join(self.directory, who, name)

    def make(self, scenario: Scenario, *copies: str) -> None:
        """The chain in "made", and copies of it."""
        shutil.rmtree(self.directory, ignore_errors=True)
        os.makedirs(self.directory)
        build(scenario, self.path("made"))
        for who in copies:
            self._copy(who)

    def _copy(self, who: str) -> None:
        shutil.rmtree(self.path(who), ignore_errors=True)
        subprocess.run(["cp", "-r", "--sparse=always", self.path("made"), self.path(who)], check=True)

    def _different(self, names: list[str]) -> list[str]:
        return [name for name in names if differences(self.path("qemu", name), self.path("ours", name))]

    def run(self, scenario: Scenario) -> list[str]:
        """One chain, committed by both; what is wrong with ours."""
        try:
            self.make(scenario, "qemu", "ours")
        except RuntimeError:
            self.tally.outcomes["not made"] += 1  # refcounts of one bit are too narrow for some writes
            return []
        outcome = by_qemu(scenario, self.path("qemu"))
        self._count(scenario)
        try:
            foreseen = by_airlock(scenario, self.path("ours"), dry_run=True)
            done = by_airlock(scenario, self.path("ours"))
        except errors.AirlockError as error:
            if error.code == "shared_cluster" and self._has_compressed(scenario):
                # qemu's block layer goes on filling a cluster with compressed data after it has been freed and taken
                # for something else.
                self.tally.outcomes["broken by qemu-io"] += 1
                return []
            self.tally.outcomes["refused by both" if outcome.code else "refused"] += 1
            return [] if outcome.code else [f"refused: {error.message}"]
        faults = [] if foreseen[:-1] == done[:-1] else [f"foreseen {foreseen[:-1]}, done {done[:-1]}"]
        if outcome.code:
            return faults + self._refused_by_qemu(scenario, outcome)
        names = sorted(os.listdir(self.path("made")))
        faults += self._faults(scenario, names, emptied=done.overlay_clusters_cleared > 0)
        different = self._different(names)
        for _again in range(3 if scenario.one_at_a_time else 0):
            if different:  # on a busy machine an operation can take longer than its slice of time
                self._copy("qemu")
                by_qemu(scenario, self.path("qemu"))
                different = self._different(names)
        self.tally.outcomes["to the byte" if not different else "in effect"] += 1
        if different and scenario.one_at_a_time:
            faults.append(f"not to the byte: {different}")
        return faults

    def _refused_by_qemu(self, scenario: Scenario, outcome: qemu.Outcome) -> list[str]:
        """Version 2 knows no zero clusters: qemu-img cannot hide what such a base's own backing file has behind the old
        end of the base. We write zeros there."""
        base, top = scenario.layers[scenario.base], scenario.layers[-1]
        self.tally.outcomes["refused by qemu-img"] += 1
        if b"Operation not supported" not in outcome.errors or "compat=0.10" not in base.options or not scenario.base:
            return [f"qemu-img refused: {outcome.errors!r}"]
        faults = [] if same_content(self.path("made"), self.path("ours"), top) else ["the top shows something else"]
        checked = qemu.check(self.path("ours", base.name), self.path("ours"))
        return faults if checked.clean else [*faults, checked.text]

    def _has_compressed(self, scenario: Scenario) -> bool:
        return any("write -c" in step for layer in scenario.layers for step in layer.steps)

    def _count(self, scenario: Scenario) -> None:
        base = scenario.layers[scenario.base]
        self.tally.features.update(
            name
            for name, there in (
                (f"{len(scenario.layers)} layers", True),
                ("raw base", base.format == "raw"),
                ("named base", scenario.names_base),
                ("layers below the base", scenario.base > 0),
                ("base grows", base.size < scenario.layers[-1].size),
                (
                    "short layer between",
                    any(each.size < scenario.layers[-1].size for each in scenario.layers[scenario.base + 1 : -1]),
                ),
                ("snapshot in the base", "snapshot" in base.steps),
                ("snapshot in the top", "snapshot" in scenario.layers[-1].steps),
                ("data file of the base", "data_file" in base.options),
                ("data file above", any("data_file" in each.options for each in scenario.layers[scenario.base + 1 :])),
                ("extended L2", any("extended_l2" in each.options for each in scenario.layers)),
                ("zstd", any("zstd" in each.options for each in scenario.layers)),
                ("version 2 base", "compat=0.10" in base.options),
                ("bitmaps in the base", base.has_bitmaps),
                ("bitmaps in the top", scenario.layers[-1].has_bitmaps),
            )
            if there
        )

    def _faults(self, scenario: Scenario, names: list[str], emptied: bool) -> list[str]:
        """What can be seen of the result and is not as it should be. emptied: whether we had to empty the top."""
        faults = []
        base, top = scenario.layers[scenario.base], scenario.layers[-1]
        made, theirs, ours = (self.path(who) for who in ("made", "qemu", "ours"))
        if not same_content(made, ours, top):
            faults.append("the top shows something else")
        if not same_content(theirs, ours, base):
            faults.append("the base shows something else than qemu-img's")
        for layer in (base, top):
            if _info(theirs, layer) != _info(ours, layer):
                faults.append(f"qemu-img info of {layer.name} differs")
            if layer.format == "raw":
                continue  # its map is that of the file system
            if _map(theirs, scenario, layer) != _map(ours, scenario, layer):
                faults.append(f"qemu-img map of {layer.name} differs")
            if bitmaps_of(os.path.join(theirs, layer.name)) != bitmaps_of(os.path.join(ours, layer.name)):
                faults.append(f"the bitmaps of {layer.name} differ")
            complaints = [qemu.check(os.path.join(who, layer.name), who).complaints for who in (made, ours)]
            if complaints[1] - complaints[0]:
                faults.append(f"qemu-img check of {layer.name}: {sorted(complaints[1])}")
        for name in names:
            if name.split(".")[0] == base.name.split(".")[0] or name.endswith((".data", ".content")):
                continue
            if name == top.name and (top.has_bitmaps or not emptied):
                continue  # qemu-img writes bitmaps anew wherever it opens them, and empties again what is empty
            if differences(self.path("qemu", name), self.path("ours", name)):
                faults.append(f"{name} is not as qemu-img leaves it")
        return faults
