# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Chains of operations on one image: run against two drivers, reduced when they disagree.

After every snapshot operation the two results are compared to the byte, and the chain goes on with ours. Guest writes,
resizes and the like are done by QEMU on that one image, so whatever QEMU does at random there cannot matter.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass, field

from . import compare, qemu
from .divergences import EQUAL_IN_EFFECT, REFUSALS, differs_in_effect, explanation
from .drivers import FLAGS, CliDriver, Driver, QemuDriver, Result, SnapshotCall
from .qcow2 import Qcow2
from .steps import Chain

ALL_VERBS = frozenset(FLAGS)


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
    """What was compared: operations by verb, agreed refusals, divergences on purpose and things that happened to the
    metadata by name, chains by cell."""

    compared: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    divergences: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    cells: Counter[str] = field(default_factory=Counter)

    @property
    def operations(self) -> int:
        return sum(self.compared.values())


def _events(before: str, after: str) -> list[str]:
    """What a snapshot operation did to the metadata beyond its daily work: shows that chains get everywhere."""
    with Qcow2(before) as old, Qcow2(after) as new:
        events = []
        if new.header["refcount_table_offset"] != old.header["refcount_table_offset"]:
            events.append("refcount table moved")
        if sum(map(bool, new.refcount_blocks())) > sum(map(bool, old.refcount_blocks())):
            events.append("refcount block added")
        if sum(map(bool, new.refcount_blocks())) < sum(map(bool, old.refcount_blocks())):
            events.append("refcount block dropped")
        if new.header["l1_table_offset"] != old.header["l1_table_offset"]:
            events.append("L1 table moved")
        if new.size != old.size:
            events.append("disk grown" if new.size > old.size else "disk shrunk")
        if new.length < old.length:
            events.append("file truncated")
        return events


class Arena:
    """A directory with one image, on which chains are run. `driver` is compared with qemu-img."""

    def __init__(self, directory: str, driver: Driver, tally: Tally, verbs: frozenset[str] = ALL_VERBS) -> None:
        self.directory = directory
        self.driver = driver
        self.tally = tally
        self.verbs = verbs  # what is compared; the rest is left to qemu-img
        self.oracle = QemuDriver()
        self.self_test = isinstance(driver, QemuDriver)
        self.last_code = 0  # the exit code of the last compared call

    @property
    def disk(self) -> str:
        """The image that operations are done to; tests may make it themselves."""
        return self._path("disk.qcow2")

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def compare_call(self, call: SnapshotCall) -> str:
        """Runs one call on two copies of disk.qcow2; returns the report of a mismatch, or "". Leaves before.qcow2,
        qemu.qcow2 and ours.qcow2; ours becomes the next disk.qcow2."""
        before, theirs, ours = map(self._path, ("before.qcow2", "qemu.qcow2", "ours.qcow2"))
        os.replace(self.disk, before)
        if isinstance(self.driver, CliDriver):
            call = SnapshotCall(call.verb, call.argument, (call.date[0], 0))
        qemu.copy(before, theirs)
        qemu.copy(before, ours)
        expected = self.oracle.run(theirs, call)
        got = self.driver.run(ours, call)
        qemu.copy(ours, self.disk)
        report = self._verdict(call, (before, theirs, ours), expected, got)
        self.last_code = got.code
        self.tally.compared[call.verb] += 1
        self.tally.events.update(_events(before, theirs))
        if expected.code and got.code:
            self.tally.refused[call.verb] += 1
        return report

    def agree(self, verb: str, argument: bytes, code: int | None = 0) -> None:
        """Asserts that both do the same, and end with this exit code; None: whatever it is."""
        report = self.compare_call(SnapshotCall(verb, argument))
        if report:
            raise AssertionError(f"{verb} {argument[:80]!r}: {report}")
        if code is not None and self.last_code != code:
            raise AssertionError(f"{verb} {argument[:80]!r}: both agree on exit code {self.last_code}, not {code}")

    def _verdict(self, call: SnapshotCall, paths: tuple[str, str, str], expected: Result, got: Result) -> str:
        before, theirs, ours = paths
        divergence = explanation(REFUSALS, call, (before, theirs), (expected, got))
        if divergence:
            self.tally.divergences[divergence] += 1
            if self.self_test:
                qemu.copy(before, self.disk)
                return compare.explain(theirs, ours, ("qemu", "ours"))
            changed = compare.explain(before, ours, ("before", "ours"))
            return f"refused on purpose ({divergence}), but the file changed:\n{changed}" if changed else ""
        checked = qemu.check(ours)
        if not checked.clean:
            excused = qemu.check(before).complaints | qemu.check(theirs).complaints
            if checked.code not in (2, 3) or not checked.complaints <= excused:
                return f"qemu-img check of ours, exit {checked.code}:\n{checked.text[:2000]}"
        outcomes = f"qemu-img: exit {expected.code} {expected.message!r}\nours:     exit {got.code} {got.message!r}\n"
        difference = compare.explain(theirs, ours, ("qemu", "ours"))
        if difference and not compare.differences(before, ours, 1):
            difference = "  ours left the file as it was"
        if expected.code != got.code:
            return outcomes + difference
        if isinstance(self.driver, CliDriver) and expected.message.replace(theirs, ours) != got.message:
            return outcomes + "the words differ"
        divergence = explanation(EQUAL_IN_EFFECT, call, (before, theirs), (expected, got)) if difference else ""
        if divergence:
            self.tally.divergences[divergence] += 1
            return differs_in_effect(theirs, ours)
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
                step.prepare(path)
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
            for shorter in best.chain.shorter():
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
