# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a recorded operation to the files that a power cut can leave behind.

Between two flushes a disk may do the writes in any order, and lose any of them; a write may arrive in part, in units of
a sector. So for each epoch (the events up to a flush) all that came before it is there, and of its own events: every
prefix, every subset while there are few, else single losses and seeded random subsets, and every event torn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import product

from sandbox.journal import Event

SECTOR = 512
ALL_SUBSETS = 8  # events of an epoch of which all subsets are tried

WRITE, ZERO, DISCARD, RESIZE, FLUSH = "write", "zero", "discard", "resize", "flush"


def operation_names() -> dict[int, str]:
    """The doorbell's numbers for what a Recorder stores."""
    from sandbox import kvm

    ffi, _library = kvm.bindings()
    return {ffi.integer_const(f"DOORBELL_{name.upper()}"): name for name in (WRITE, ZERO, DISCARD, RESIZE, FLUSH)}


class Change:
    """One event as a change of a file's bytes. Offset and length in bytes."""

    def __init__(self, kind: str, offset: int, length: int, data: bytes = b"") -> None:
        self.kind, self.offset, self.length, self.data = kind, offset, length, data

    def apply(self, content: bytearray) -> None:
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
        """Both parts of a write or zeroing that is cut at a sector's boundary; of a long one at 16 boundaries."""
        if self.kind not in (WRITE, ZERO):
            return
        cuts = range((self.offset // SECTOR + 1) * SECTOR, self.offset + self.length, SECTOR)
        for cut in cuts[:: max(1, len(cuts) // 16)]:
            split = cut - self.offset
            head = Change(self.kind, self.offset, split, self.data[:split])
            yield head, Change(self.kind, cut, self.length - split, self.data[split:])

    def __repr__(self) -> str:
        return f"{self.kind} {self.offset:#x}+{self.length}"


def epochs(events: Sequence[Event], names: dict[int, str]) -> list[list[Change]]:
    """The changes between flushes; what follows the last flush is the last epoch."""
    found: list[list[Change]] = [[]]
    for event in events:
        kind = names[event.operation]
        if kind == FLUSH:
            found.append([])
        else:
            found[-1].append(Change(kind, event.offset, event.length, event.data))
    return [epoch for epoch in found if epoch]


def _selections(count: int, rng: random.Random, extra: int) -> Iterator[tuple[bool, ...]]:
    """Which of `count` events arrive. Of a long epoch: `extra` prefixes, single losses and random subsets each."""
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


def states(before: bytes, log: Sequence[Sequence[Change]], seed: int, extra: int = 100) -> Iterator[tuple[str, bytes]]:
    """Every file that a cut can leave, once: (how it came about, content). `extra`: random subsets of a long epoch."""
    rng = random.Random(seed)
    known: set[int] = set()
    settled = bytearray(before)
    for number, epoch in enumerate(log):
        for story, content in _epoch_states(settled, epoch, rng, extra):
            state = bytes(content)
            if hash(state) not in known:
                known.add(hash(state))
                yield f"epoch {number} of {len(log)}: {story}", state
        for change in epoch:
            change.apply(settled)


def _epoch_states(
    settled: bytearray, epoch: Sequence[Change], rng: random.Random, extra: int
) -> Iterator[tuple[str, bytearray]]:
    for selection in _selections(len(epoch), rng, extra):
        content = bytearray(settled)
        for change, arrives in zip(epoch, selection):
            if arrives:
                change.apply(content)
        yield "lost " + str([c for c, arrives in zip(epoch, selection) if not arrives]), content
    prefix = bytearray(settled)
    for number, change in enumerate(epoch):
        for parts in change.torn():
            for part in parts:
                content = bytearray(prefix)
                part.apply(content)
                yield f"only {part} of {change}, nothing behind it", content
                content = bytearray(content)
                for later in epoch[number + 1 :]:
                    later.apply(content)
                yield f"only {part} of {change}, all else", content
        change.apply(prefix)
