# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random chains of operations on one image: made from a seed, run against two drivers, reduced when they disagree.

After every snapshot operation the two results are compared to the byte, and the chain goes on with ours. Guest writes,
resizes and the like are done by QEMU on that one image, so whatever QEMU does at random there cannot matter.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass, field

from . import compare, qemu
from .cells import Cell, random_cell
from .divergences import on_purpose
from .drivers import FLAGS, Driver, QemuDriver, Result, SnapshotCall

ALL_VERBS = frozenset(FLAGS)

NAMES = (b"s1", b"s2", b"s3", b"s4", b"1", b"2", b"3", b"a longer name with blanks", b"\xc3\xa4\xc3\xb6", b"", b"n" * 300)


@dataclass(frozen=True)
class Step:
    """One step of a chain: a snapshot call that both sides make, or commands that prepare the image."""

    call: SnapshotCall | None = None
    io: tuple[str, ...] = ()
    resize: int = 0  # bytes; 0: no resize

    def __str__(self) -> str:
        if self.call:
            seconds, nanoseconds = self.call.date
            return f"snapshot {self.call.verb} {self.call.argument!r} at {seconds}.{nanoseconds:09d}"
        if self.resize:
            return f"qemu-img resize --shrink {self.resize}"
        return "qemu-io " + " ".join(f"-c '{command}'" for command in self.io)


@dataclass
class Chain:
    """A cell and the steps that are done to an image of it."""

    seed: int
    cell: Cell
    steps: list[Step]

    def __str__(self) -> str:
        return "\n".join([f"seed {self.seed}, cell {self.cell}", *(f"  {i}: {s}" for i, s in enumerate(self.steps))])


@dataclass
class Mismatch:
    """A snapshot operation that came out differently, as text for a human."""

    chain: Chain
    step: int
    report: str

    @property
    def operation(self) -> str:
        return str(self.chain.steps[self.step])


@dataclass
class Tally:
    """What was compared: operations by verb, agreed refusals, divergences on purpose by name."""

    compared: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    divergences: Counter[str] = field(default_factory=Counter)
    cells: Counter[str] = field(default_factory=Counter)

    @property
    def operations(self) -> int:
        return sum(self.compared.values())


def _place(rng: random.Random, cell: Cell, spots: list[int]) -> int:
    """A guest offset, 512-aligned: often near one that is in use."""
    if rng.random() < 0.8:
        offset = rng.choice(spots) + rng.randrange(-4, 5) * cell.cluster_size + rng.choice((0, 0, 512, 1024))
    else:
        offset = rng.randrange(cell.size)
    return max(0, min(offset, cell.size - 512)) // 512 * 512


def _io_command(rng: random.Random, cell: Cell, spots: list[int]) -> str:
    offset = _place(rng, cell, spots)
    cluster = cell.cluster_size
    clusters = rng.choice((1, 1, 2, 3, 9 if cell.cluster_bits < 16 else 2, 40 if cell.cluster_bits < 12 else 1))
    whole = offset // cluster * cluster
    kind = rng.random()
    pattern = rng.randrange(1, 256)
    if kind < 0.2 and cell.compression != "none":
        commands = []
        for i in range(min(clusters, 3)):
            start = whole + i * cluster
            if start < cell.size:
                commands.append(f"write -c -P {pattern} {start} {min(cluster, cell.size - start)}")
        return commands[rng.randrange(len(commands))]
    if rng.random() < 0.6:
        offset, length = whole, clusters * cluster
    else:
        length = rng.choice((512, 4096, cluster // 2 // 512 * 512 or 512, clusters * cluster + 512))
    length = max(512, min(length, (cell.size - offset) // 512 * 512))
    if kind < 0.3:
        return f"discard {offset} {length}"
    if kind < 0.4:
        return f"write -z {offset} {length}"
    if kind < 0.5:
        return f"write -z -u {offset} {length}"
    if kind < 0.55 and cell.cluster_bits < 12:
        length = min(rng.choice((64, 200, 600)) * cluster, (cell.size - offset) // 512 * 512)
    return f"write -P {pattern} {offset} {length}"


def _snapshot_call(rng: random.Random, created: list[bytes], count: int) -> SnapshotCall:
    """A snapshot operation; `created` are the names so far, `count` the highest id that there can be."""
    date = (qemu.DATE[0] + rng.randrange(1 << 20), rng.choice((0, 0, rng.randrange(10**6) * 1000)))
    kind = rng.random()
    if kind < 0.45 or not created:
        name = rng.choice(NAMES) if rng.random() < 0.4 else b"snap%d" % (count + 1)
        return SnapshotCall("create", name, date)
    known = rng.choice(created) if rng.random() < 0.9 else b"nobody"
    if kind < 0.75:
        by_id = rng.random() < 0.4
        return SnapshotCall("apply", b"%d" % rng.randrange(1, count + 1) if by_id else known, date)
    return SnapshotCall("delete", known, date)


def make_chain(seed: int, cell: Cell | None = None) -> Chain:
    """The chain of a seed: the same on every machine."""
    rng = random.Random(seed)
    drawn = random_cell(rng)
    cell = cell or drawn
    spots = [0, cell.size // 2, *(rng.randrange(cell.size) for _ in range(3))]
    steps = []
    created: list[bytes] = []
    for _ in range(rng.randrange(8, 18)):
        kind = rng.random()
        if kind < 0.38:
            steps.append(Step(io=tuple(_io_command(rng, cell, spots) for _ in range(rng.randrange(1, 7)))))
        elif kind < 0.44:
            change = rng.randrange(-cell.size // 2, cell.size * 2) + rng.choice((0, 512))
            steps.append(Step(resize=max(512, (cell.size + change) // 512 * 512)))
        else:
            call = _snapshot_call(rng, created, len(created))
            if call.verb == "create":
                created.append(call.argument)
            steps.append(Step(call=call))
    return Chain(seed, cell, steps)


def _prepare(path: str, step: Step) -> None:
    """Guest writes and resizes. That some of them fail (a write behind the end) is part of the game."""
    if step.resize:
        qemu.run(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", path, str(step.resize)])
    else:
        qemu.io(path, *step.io)


class Arena:
    """A directory with one image, on which chains are run. `driver` is compared with qemu-img."""

    def __init__(self, directory: str, driver: Driver, tally: Tally, verbs: frozenset[str] = ALL_VERBS) -> None:
        self.directory = directory
        self.driver = driver
        self.tally = tally
        self.verbs = verbs  # what is compared; the rest is left to qemu-img
        self.oracle = QemuDriver()
        self.self_test = isinstance(driver, QemuDriver)

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def compare_call(self, call: SnapshotCall) -> str:
        """Runs one call on two copies of disk.qcow2; returns the report of a mismatch, or "". Leaves before.qcow2,
        qemu.qcow2 and ours.qcow2; ours becomes the next disk.qcow2."""
        disk, before, theirs, ours = map(self._path, ("disk.qcow2", "before.qcow2", "qemu.qcow2", "ours.qcow2"))
        os.replace(disk, before)
        qemu.copy(before, theirs)
        qemu.copy(before, ours)
        expected = self.oracle.run(theirs, call)
        got = self.driver.run(ours, call)
        qemu.copy(ours, disk)
        report = self._verdict(call, (before, theirs, ours), expected, got)
        self.tally.compared[call.verb] += 1
        if expected.code and got.code:
            self.tally.refused[call.verb] += 1
        return report

    def _verdict(self, call: SnapshotCall, paths: tuple[str, str, str], expected: Result, got: Result) -> str:
        before, theirs, ours = paths
        divergence = on_purpose(call, before, expected, got)
        if divergence:
            self.tally.divergences[divergence] += 1
            if self.self_test:
                qemu.copy(before, self._path("disk.qcow2"))
                return compare.explain(theirs, ours, ("qemu", "ours"))
            changed = compare.explain(before, ours, ("before", "ours"))
            return f"refused on purpose ({divergence}), but the file changed:\n{changed}" if changed else ""
        checked = qemu.check(ours)
        if checked.code != 0 and checked.text != qemu.check(before).text:
            return f"qemu-img check of ours, exit {checked.code}:\n{checked.text[:2000]}"
        outcomes = f"qemu-img: exit {expected.code} {expected.message!r}\nours:     exit {got.code} {got.message!r}\n"
        if expected.code != got.code:
            return outcomes + compare.explain(theirs, ours, ("qemu", "ours"))
        difference = compare.explain(theirs, ours, ("qemu", "ours"))
        return outcomes + difference if difference else ""

    def run(self, chain: Chain) -> Mismatch | None:
        """Runs a chain from an empty directory; stops at the first mismatch."""
        shutil.rmtree(self.directory, ignore_errors=True)
        os.makedirs(self.directory)
        path = chain.cell.make(self.directory)
        for axis, value in chain.cell.__dict__.items():
            if axis != "size":
                self.tally.cells[f"{axis}={value}"] += 1
        for index, step in enumerate(chain.steps):
            if step.call is None:
                _prepare(path, step)
                continue
            if step.call.verb not in self.verbs:
                self.oracle.run(path, step.call)
                continue
            report = self.compare_call(step.call)
            if report:
                return Mismatch(chain, index, report)
        return None

    def reduce(self, mismatch: Mismatch, budget: int = 200) -> Mismatch:
        """Drops steps, then single qemu-io commands, while the chain still fails. At most `budget` runs."""
        best = mismatch
        best.chain.steps = best.chain.steps[: best.step + 1]
        scratch = Arena(self.directory, self.driver, Tally(), self.verbs)
        progress = True
        while progress and budget > 0:
            progress = False
            for shorter in _shorter(best.chain):
                budget -= 1
                found = scratch.run(shorter)
                if found:
                    found.chain.steps = found.chain.steps[: found.step + 1]
                    best, progress = found, True
                    break
                if budget <= 0:
                    break
        scratch.run(best.chain)
        return best


def _shorter(chain: Chain) -> list[Chain]:
    """All chains with one step, or one qemu-io command, less; big cuts first."""
    steps = chain.steps
    cuts = []
    if len(steps) > 6:
        half = len(steps) // 2
        cuts.append(steps[half:])
        cuts.append(steps[: half // 2] + steps[half:])
    cuts += [steps[:i] + steps[i + 1 :] for i in range(len(steps) - 1)]
    for i, step in enumerate(steps):
        if len(step.io) > 1:
            cuts += [
                [*steps[:i], Step(io=step.io[:j] + step.io[j + 1 :]), *steps[i + 1 :]] for j in range(len(step.io))
            ]
    return [Chain(chain.seed, chain.cell, cut) for cut in cuts]
