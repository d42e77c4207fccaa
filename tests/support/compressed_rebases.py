# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random chains whose top is rebased with compression.

qemu-img compresses several clusters at a time, and it is chance which of them gets which place in the file. So its
result tells what is to be written, and QEMU itself writes that once more, one cluster after the other: what that leaves
has to be as ours, to the byte.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
from itertools import groupby

from . import qemu
from .bitmaps import bitmaps_of
from .commits import Layer, content
from .compare import explain
from .qcow2 import Qcow2
from .rebases import RebaseArena, RebaseScenario, make_rebase

COMPRESSED = 1 << 62
ZERO = 1
ONE_BY_ONE_MAX = 2500  # clusters that QEMU is made to write one after the other
FILLS = ("words.fill", "noise.fill", "both.fill")  # files beside the images, for qemu-io to write from
FILL_SIZE = 2 << 20


def make_compressed(seed: int) -> RebaseScenario:
    """A chain with more in the layers below the top than patterns: words, noise, and both within a cluster."""
    rng = random.Random(seed * 3 + 1)
    while True:
        scenario = make_rebase(seed)
        if not scenario.relinks and "data_file" not in scenario.top.options:
            break
        seed += 1_000
    layers = list(scenario.chain.layers)
    below = layers[-2]
    steps = list(below.steps)
    for _unused in range(rng.randrange(1, 5)):
        unit = rng.choice((4096, 65536, 65536, FILL_SIZE))
        offset = rng.randrange(below.size) // unit * unit
        length = min(rng.randrange(1, 40) * unit, below.size - offset, FILL_SIZE) // 512 * 512
        if length and below.format == "qcow2":
            steps.insert(rng.randrange(len(steps) + 1), f"write -s ../{rng.choice(FILLS)} {offset} {length}")
    layers[-2] = dataclasses.replace(below, steps=tuple(steps))
    chain = dataclasses.replace(scenario.chain, layers=tuple(layers))
    return dataclasses.replace(scenario, chain=chain, compressed=True)


def write_fills(directory: str) -> None:
    """The files of FILLS."""
    rng = random.Random(5)
    words = [rng.randbytes(rng.randrange(2, 9)) for _unused in range(400)]
    text = b" ".join(rng.choice(words) for _unused in range(FILL_SIZE // 4))[:FILL_SIZE]
    noise = rng.randbytes(FILL_SIZE)
    pieces = [(text if rng.random() < 0.2 else noise)[at : at + 300] for at in range(0, FILL_SIZE, 300)]
    for name, fill in zip(FILLS, (text, noise, b"".join(pieces))):
        with open(os.path.join(directory, name), "wb") as file:
            file.write(fill)


def _entries(image: Qcow2) -> dict[int, tuple[int, int]]:
    """Guest cluster -> (L2 entry, bitmap of subclusters), where anything is set."""
    found = {}
    for index, table in enumerate(image.active_l1()):
        for slot, entry, bitmap in image.used_l2(table) if table else ():
            found[index * image.l2_entries + slot] = entry, bitmap
    return found


def held(directory: str, layer: Layer) -> list[tuple[object, int]]:
    """How a layer itself holds its disk, from the start: (what it is, bytes)."""
    command = ["qemu-img", "map", "--output=json", "-f", "qcow2", layer.name]
    entries = json.loads(qemu.must(command, cwd=directory).output)

    def kind(entry: dict[str, object]) -> tuple[object, ...]:
        return entry["depth"] == 0, *(entry[key] for key in ("present", "zero", "data", "compressed"))

    return [(what, sum(entry["length"] for entry in run)) for what, run in groupby(entries, kind)]


class CompressedArena(RebaseArena):
    """A directory in which chains are made and rebased with compression."""

    copies = ("qemu", "ours", "ordered")

    def clear(self) -> None:
        super().clear()
        write_fills(self.directory)

    def faults(self, scenario: RebaseScenario, outcome: qemu.Outcome) -> list[str]:
        faults = self._own_faults(scenario)
        if outcome.code == 0:
            return faults + self._compared(scenario)
        if b"n_alloc == n" not in outcome.errors or "extended_l2" not in scenario.top.options:
            return [*faults, f"qemu-img refused: {outcome.errors!r}"]
        self.outcomes["qemu-img aborted"] += 1  # where the top holds a part of a cluster
        return faults

    def _own_faults(self, scenario: RebaseScenario) -> list[str]:
        """What can be said of ours alone."""
        checked = qemu.check(self.path("ours", scenario.top.name), self.path("ours"))
        faults = [] if checked.clean else [checked.text]
        return faults if self.shows_the_same(scenario, "ours") else [*faults, "the top shows something else"]

    def _compared(self, scenario: RebaseScenario) -> list[str]:
        top = scenario.top
        theirs, ours = (self.path(who, top.name) for who in ("qemu", "ours"))
        faults = []
        if held(self.path("qemu"), top) != held(self.path("ours"), top):
            faults.append("qemu-img map differs")
        if scenario.has_bitmaps:
            faults += [] if bitmaps_of(theirs) == bitmaps_of(ours) else ["the bitmaps differ"]
            self.outcomes["in effect"] += 1
        elif self._write_in_order(scenario):
            found = explain(self.path("ordered", top.name), ours, ("qemu", "ours"))
            faults += [found] if found else []
            self.outcomes["to the byte"] += 1
        else:
            self.outcomes["too many"] += 1
        return faults

    def _write_in_order(self, scenario: RebaseScenario) -> bool:
        """Does in "ordered" what qemu-img did in "qemu". False: too much to do."""
        top = scenario.top
        with Qcow2(self.path("made", top.name)) as image:
            before = _entries(image)
        with Qcow2(self.path("qemu", top.name)) as image:
            cluster_size, size, after = image.cluster_size, image.size, _entries(image)
            extended = image.extended
        changed = sorted(cluster for cluster, entry in after.items() if entry != before.get(cluster))
        if len(changed) > ONE_BY_ONE_MAX:
            return False
        commands = []
        with open(content(self.path("made"), top), "rb") as shown:
            for cluster in changed:
                offset = cluster * cluster_size
                length = min(cluster_size, size - offset)
                data = os.pread(shown.fileno(), length, offset)
                entry, bitmap = after[cluster]
                zeros = bitmap >> 32 if extended else entry & ZERO
                # Version 2 has no zero clusters: there zeros are written as they are, while data compresses.
                if not entry & COMPRESSED and (zeros or not any(data)):
                    commands += ["-c", f"write -z {offset} {length}"]
                    continue
                with open(self.path("ordered", f"{cluster}.data"), "wb") as file:
                    file.write(data)
                commands += ["-c", f"write -c -s {cluster}.data {offset} {length}"]
        if commands:
            qemu.must(["qemu-io", "-f", "qcow2", *commands, top.name], cwd=self.path("ordered"))
        named = ["-F", scenario.backing_format] if scenario.backing else []
        command = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", scenario.backing, *named, top.name]
        qemu.must(command, cwd=self.path("ordered"))
        return True
