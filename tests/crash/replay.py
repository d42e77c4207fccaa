# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From recorded operations to the files that a power cut can leave behind.

Between two flushes a disk may do the writes in any order, and lose any of them; a write may arrive in part, in units of
a sector. A flush settles the writes to one file: those to others may still be lost, so that nothing but flushes orders
what is done to two files. So at each flush all that is settled is there, and of what is pending: every prefix, every
subset while there are few, else single losses and seeded random subsets, and every event torn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

SECTOR = 512
ALL_SUBSETS = 8  # pending events of which all subsets are tried
CUTS = 16  # of one torn event, at most

WRITE, ZERO, DISCARD, RESIZE, FLUSH = "write", "zero", "discard", "resize", "flush"

Files = dict[str, bytes]


def operation_names() -> dict[int, str]:
    """The doorbell's numbers for what a Recorder tells."""
    from sandbox.vmm import kvm

    ffi, _library = kvm.bindings()
    return {ffi.integer_const(f"DOORBELL_{name.upper()}"): name for name in (WRITE, ZERO, DISCARD, RESIZE, FLUSH)}


class Change:
    """One event as a change of a file's bytes, or the flush of that file. Offset and length in bytes."""

    def __init__(self, file: str, kind: str, offset: int, length: int, data: bytes = b"") -> None:
        self.file, self.kind, self.offset, self.length, self.data = file, kind, offset, length, data

    def apply(self, content: bytearray) -> None:
        """content: of the file."""
        if self.kind == FLUSH:
            return
        if self.kind == RESIZE:
            del content[self.length :]
            content.extend(bytes(self.length - len(content)))
            return
        end = self.offset + self.length
        if self.kind == DISCARD:
            end = min(end, len(content))
        if end > len(content):
            content.extend(bytes(end - len(content)))
        if end > self.offset:
            content[self.offset : end] = self.data if self.kind == WRITE else bytes(end - self.offset)

    def torn(self) -> Iterator[tuple[Change, Change]]:
        """Both parts of a write or zeroing that is cut at a sector's boundary; of a long one at CUTS boundaries."""
        if self.kind not in (WRITE, ZERO):
            return
        cuts = range((self.offset // SECTOR + 1) * SECTOR, self.offset + self.length, SECTOR)
        for cut in cuts[:: max(1, len(cuts) // CUTS)]:
            split = cut - self.offset
            head = Change(self.file, self.kind, self.offset, split, self.data[:split])
            yield head, Change(self.file, self.kind, cut, self.length - split, self.data[split:])

    def __repr__(self) -> str:
        return f"{self.kind} {self.file.rpartition('/')[2]} {self.offset:#x}+{self.length}"


def _selections(count: int, rng: random.Random, extra: int) -> Iterator[tuple[bool, ...]]:
    """Which of `count` events arrive. Of many: `extra` prefixes, single losses and random subsets each."""
    if count <= ALL_SUBSETS:
        yield from product((False, True), repeat=count)
        return
    step = max(1, count // extra)
    for i in range(0, count + 1, step):
        yield tuple(j < i for j in range(count))
    for i in range(0, count, step):
        yield tuple(j != i for j in range(count))
        yield tuple(j == i for j in range(count))
    for _unused in range(extra):
        share = rng.random()
        yield tuple(rng.random() < share for _unused in range(count))


class _Disks:
    """Files that are written to; what is not written to is shared with the ones that they are copies of."""

    def __init__(self, files: Mapping[str, bytes | bytearray]) -> None:
        self._files = dict(files)
        self._own: set[str] = set()

    def apply(self, change: Change) -> None:
        if change.file not in self._own:
            self._own.add(change.file)
            self._files[change.file] = bytearray(self._files[change.file])
        change.apply(self._files[change.file])

    def copy(self) -> _Disks:
        self._own.clear()
        return _Disks(self._files)

    def files(self) -> Files:
        """As they are now. A file that nobody has written to is the same object each time."""
        self._files.update({name: bytes(self._files[name]) for name in self._own})
        self._own.clear()
        return {name: bytes(content) for name, content in self._files.items()}


def states(
    before: Files, log: Sequence[Change], seed: int, extra: int = 100, tears: int | None = None
) -> Iterator[tuple[str, Files]]:
    """All that a cut can leave, once: (how it came about, the files). extra: random subsets of many pending events.
    tears: of one flush, so many at most, chosen at random; None: every one."""
    rng = random.Random(seed)
    known: set[int] = set()
    settled = _Disks(before)
    pending: list[Change] = []
    flushes = sum(change.kind == FLUSH for change in log)
    done = 0
    for change in (*log, None):
        if change is not None and change.kind != FLUSH:
            pending.append(change)
            continue
        if change is None or any(each.file == change.file for each in pending):
            for story, disks in _pending_states(settled, pending, rng, extra, tears):
                state = disks.files()
                key = hash(tuple(sorted(state.items())))
                if key not in known:
                    known.add(key)
                    yield f"flush {done} of {flushes}: {story}", state
        done += 1
        for each in pending:
            if change is not None and each.file == change.file:
                settled.apply(each)
        pending = [each for each in pending if change is not None and each.file != change.file]


def replayed(before: Files, log: Sequence[Change]) -> Files:
    """The files when nothing is lost."""
    disks = _Disks(before)
    for change in log:
        disks.apply(change)
    return disks.files()


def _pending_states(
    settled: _Disks, pending: Sequence[Change], rng: random.Random, extra: int, tears: int | None
) -> Iterator[tuple[str, _Disks]]:
    for selection in _selections(len(pending), rng, extra):
        disks = settled.copy()
        for change, arrives in zip(pending, selection):
            if arrives:
                disks.apply(change)
        yield "lost " + str([c for c, arrives in zip(pending, selection) if not arrives][:12]), disks
    torn = [(number, parts) for number, change in enumerate(pending) for parts in change.torn()]
    if tears is not None and len(torn) > tears:
        torn = sorted(rng.sample(torn, tears), key=lambda one: one[0])
    prefix, applied = settled.copy(), 0
    for number, parts in torn:
        for change in pending[applied:number]:
            prefix.apply(change)
        applied = number
        for part in parts:
            disks = prefix.copy()
            disks.apply(part)
            yield f"only {part} of {pending[number]}, nothing behind it", disks
            disks = disks.copy()
            for later in pending[number + 1 :]:
                disks.apply(later)
            yield f"only {part} of {pending[number]}, all else", disks
