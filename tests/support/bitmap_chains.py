# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Chains of bitmap actions on one image: run against two drivers, compared by meaning, reduced when they disagree.

The chain goes on with our result, and QEMU writes to it between the lists: so it has to be able to work with what we
leave, too.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from . import compare, qemu
from .bitmap_divergences import DIVERGENCES
from .bitmap_drivers import BitmapCall, BitmapDriver, BitmapResult, CliBitmaps, PythonBitmaps, QemuBitmaps
from .bitmap_steps import BitmapChain
from .bitmaps import IN_USE, Bitmap, bitmaps_of, describe, difference, disk_size, extents, stale_names, tail_is_clean
from .nbd import extents as extents_by_nbd
from .qcow2 import Qcow2
from .untouched import what_else_changed

NBD_EVERY = 12  # compared lists: reading through NBD starts four processes a bitmap


@dataclass
class BitmapMismatch:
    """A list of actions that came out differently, as text for a human."""

    chain: BitmapChain
    step: int
    report: str

    @property
    def operation(self) -> str:
        return str(self.chain.steps[self.step])


@dataclass
class BitmapTally:
    """What was compared: lists by their first action, actions, agreed refusals by the words of it, divergences and
    events by name, chains by cell."""

    compared: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    divergences: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    cells: Counter[str] = field(default_factory=Counter)

    @property
    def operations(self) -> int:
        return sum(self.compared.values())


STALE = re.compile(r"warning: a program lacking bitmap support modified .*\n.* to fix\.(qemu-img: )?")


def masked(message: str) -> str:
    """A message without the node names that QEMU makes up, for which we have the image's, and without its warning of
    stale bitmaps."""
    named = re.sub(r"(persistent in) '[^']*'", r"\1 'NODE'", STALE.sub("", message))
    return re.sub(r"#block\d+", "NODE", named)


def shortened(message: str) -> str:
    """A message in which long names are cut."""
    return re.sub(r"(\w)\1{99,}", r"\1...", message)


def reason(message: str) -> str:
    """The kind of a refusal, for the tally."""
    found = re.search(r"failed: (.*)", message)
    first = (found[1] if found else message).partition("\n")[0]
    return re.sub(r"'[^']*'|\d+|NODE|(?<=exists): .*", "", masked(first))[:80]


def _facts(bitmap: Bitmap, size: int) -> tuple[object, ...]:
    """What our Python face should say of a bitmap: name, granularity, recording, in use, dirty bytes and bits."""
    if bitmap.dirty is None:
        return bitmap.name, bitmap.granularity, bitmap.recording, True, None, None
    bits = sum(count for _unused, count in bitmap.dirty)
    covered = sum(
        min(size, (start + count) * bitmap.granularity) - start * bitmap.granularity for start, count in bitmap.dirty
    )
    return bitmap.name, bitmap.granularity, bitmap.recording, False, covered, bits


def told(records: Any) -> list[tuple[object, ...]]:
    """The same of what it says; stale ones left out."""
    return [
        (b.name, b.granularity, b.recording, b.in_use, b.dirty_bytes, b.dirty_count) for b in records if not b.stale
    ]


def _events(before: str, after: str) -> list[str]:
    """What a list did to the metadata beyond its daily work: shows that chains get everywhere."""
    with Qcow2(before) as old, Qcow2(after) as new:
        events = []
        if new.header["refcount_table_offset"] != old.header["refcount_table_offset"]:
            events.append("refcount table moved")
        if sum(map(bool, new.refcount_blocks())) > sum(map(bool, old.refcount_blocks())):
            events.append("refcount block added")
        extensions = old.bitmaps_extension(), new.bitmaps_extension()
        if not extensions[0] and extensions[1]:
            events.append("first bitmap")
        if extensions[0] and not extensions[1]:
            events.append("last bitmap gone")
        if extensions[0] and extensions[1]:
            moved = extensions[0][2] != extensions[1][2]
            events.append("new directory" if moved else "directory in place")
        return events


class BitmapArena:
    """A directory with one image, on which chains are run. `driver` is compared with qemu-img."""

    def __init__(self, directory: str, driver: BitmapDriver, tally: BitmapTally) -> None:
        self.directory = directory
        self.driver = driver
        self.tally = tally
        self.oracle = QemuBitmaps()
        self.self_test = isinstance(driver, QemuBitmaps)
        self.last = BitmapResult(0, "")

    @property
    def disk(self) -> str:
        """The image that lists are done to; tests may make it themselves."""
        return self.path("disk.qcow2")

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def compare_call(self, call: BitmapCall) -> str:
        """Runs one list on two copies of disk.qcow2; returns the report of a mismatch, or "". Leaves before.qcow2,
        qemu.qcow2 and ours.qcow2; ours becomes the next disk.qcow2."""
        before, theirs, ours = map(self.path, ("before.qcow2", "qemu.qcow2", "ours.qcow2"))
        os.replace(self.disk, before)
        qemu.copy(before, theirs)
        qemu.copy(before, ours)
        foreseen = self.driver.run(before, call, dry_run=True) if isinstance(self.driver, PythonBitmaps) else None
        expected = self.oracle.run(theirs, call)
        self.last = got = self.driver.run(ours, call)
        qemu.copy(ours, self.disk)
        self.tally.compared[call.actions[0][0] if call.actions else "nothing"] += 1
        self.tally.actions.update(call.kinds)
        report = self._verdict(call, (before, theirs, ours), expected, got)
        if not report and foreseen is not None and got.code == expected.code:
            report = self._foreseen(foreseen, got, before, theirs)
        if not report and not got.code:
            self.tally.events.update(_events(before, ours))
            report = self._again(call, ours) or self._ranges(ours)
        return report

    def _verdict(self, call: BitmapCall, paths: tuple[str, str, str], expected: BitmapResult, got: BitmapResult) -> str:
        before, theirs, ours = paths
        outcomes = "".join(
            f"{who}: exit {result.code} {shortened(result.message)!r}\n"
            for who, result in (("qemu-img", expected), ("ours", got))
        )
        if got.code and self.self_test:
            qemu.copy(before, self.disk)
        elif got.code:
            changed = compare.explain(before, ours, ("before", "ours"))
            if changed:
                return f"{outcomes}refused, but the file changed:\n{changed}"
        if expected.code != got.code:
            for name, explains in DIVERGENCES.items():
                if explains(call, before, expected, got):
                    self.tally.divergences[name] += 1
                    return ""
            return outcomes
        if got.code:
            self.tally.refused[reason(expected.message)] += 1
            same = masked(expected.message).replace(theirs, ours) == masked(got.message)
            return outcomes + "the words differ" if isinstance(self.driver, CliBitmaps) and not same else ""
        return self._result(call, paths, got)

    def _result(self, call: BitmapCall, paths: tuple[str, str, str], got: BitmapResult) -> str:
        """What a list that both carried out led to."""
        before, theirs, ours = paths
        found = bitmaps_of(ours)
        report = difference(bitmaps_of(theirs), found)
        if report:
            return "before:\n  " + "\n  ".join(map(describe, bitmaps_of(before))) + "\nafter:\n" + report
        checked = qemu.check(ours)
        if not checked.clean and not self.self_test and not checked.complaints <= qemu.check(before).complaints:
            return f"qemu-img check of ours, exit {checked.code}:\n{checked.text[:2000]}"
        if stale_names(ours) and not stale_names(before):
            return "ours left a stale extension"
        if not tail_is_clean(ours) and tail_is_clean(before):
            return "ours has bits behind the end of the disk"
        if self.self_test:
            return ""
        report = what_else_changed(before, ours, call.name)
        if report or got.change is None:
            return report
        return self._said(got.change, before, ours, found)

    def _said(self, change: Any, before: str, ours: str, found: list[Bitmap]) -> str:
        """Is what the Python face says true?"""
        same = not compare.differences(before, ours, 1)
        if bool(change.changed) == (bitmaps_of(before) == found) or change.changed == same:
            return f"changed is {change.changed}, the bitmaps were\n  " + "\n  ".join(map(describe, bitmaps_of(before)))
        if not change.changed:
            self.tally.events["unchanged"] += 1
        with Qcow2(ours) as image:
            size = disk_size(image)
        facts = [_facts(bitmap, size) for bitmap in found]
        if told(change.bitmaps) != facts or change.virtual_size != size:
            return f"the answer says {told(change.bitmaps)} of {change.virtual_size}, there is {facts}"
        return ""

    def _foreseen(self, foreseen: BitmapResult, got: BitmapResult, before: str, theirs: str) -> str:
        """A dry run says what the real one does."""
        if (foreseen.code, foreseen.message.replace(before, "")) != (
            got.code,
            got.message.replace(self.path("ours.qcow2"), ""),
        ):
            return f"the dry run said {foreseen.code} {foreseen.message!r}, then {got.code} {got.message!r}"
        one, two = foreseen.change, got.change
        if one is not None and (one.changed, one.bitmaps) != (two.changed, two.bitmaps):
            return f"the dry run said {one}, then {two}"
        return ""

    def _again(self, call: BitmapCall, ours: str) -> str:
        """The same list once more: unchanged, unless it fails, or means something else now."""
        if not isinstance(self.driver, PythonBitmaps):
            return ""
        again = self.path("again.qcow2")
        qemu.copy(ours, again)
        result = self.driver.run(again, call)
        changed = bool(compare.differences(ours, again, 1))
        if result.code:
            return f"refused the second time ({result.message}), but the file changed" if changed else ""
        same = bitmaps_of(ours) == bitmaps_of(again)
        if result.change.changed == same or changed == same:
            now = "another" if changed else "the same"
            return f"the second time: changed {result.change.changed}, the file is {now}"
        self.tally.events["repeated, unchanged" if same else "repeated, changed"] += 1
        return ""

    def _ranges(self, ours: str) -> str:
        """Dirty ranges: as stored, as our Python face tells them, and now and then as NBD does."""
        if not isinstance(self.driver, PythonBitmaps) or stale_names(ours):
            return ""
        from sandbox.images.bitmaps import list_bitmaps
        from sandbox.images.image import Image

        with Qcow2(ours) as image:
            entries = [entry for entry in image.bitmap_directory() if not entry.flags & IN_USE]
            stored = {entry.name: extents(image, entry) for entry in entries}
        through_nbd = self.tally.operations % NBD_EVERY == 0
        for name, expected in list(stored.items())[: None if through_nbd else 1]:
            with Image.open(ours) as opened:
                found = list_bitmaps(opened, extents_of=name).extents
            if list(found) != expected:
                return f"ranges of {name[:40]!r}: {expected[:20]}, but the answer says {list(found)[:20]}"
            self.tally.events["ranges compared"] += 1
            if through_nbd:
                by_nbd = extents_by_nbd(ours, name)
                if by_nbd != expected:
                    return f"ranges of {name[:40]!r}: {expected[:20]}, but through NBD {by_nbd[:20]}"
                self.tally.events["ranges compared through NBD"] += 1
        return ""

    def agree(self, call: BitmapCall, code: int = 0) -> None:
        """Asserts that both do the same, and end with this exit code."""
        report = self.compare_call(call)
        if report or self.last.code != code:
            raise AssertionError(f"{call}: {report or f'exit code {self.last.code}: {self.last.message}'}")

    def run(self, chain: BitmapChain) -> BitmapMismatch | None:
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
            report = self.compare_call(step.call)
            if report:
                return BitmapMismatch(chain, index, report)
        return None

    def reduce(self, mismatch: BitmapMismatch, budget: int = 150) -> BitmapMismatch:
        """Drops steps, then single actions, while the chain still fails. At most `budget` runs."""
        best = mismatch
        best.chain.steps = best.chain.steps[: best.step + 1]
        scratch = BitmapArena(self.directory, self.driver, BitmapTally())
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
