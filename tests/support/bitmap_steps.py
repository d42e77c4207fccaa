# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps of a random chain of bitmap actions: drawn from a seed, and carried out on an image."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field, replace

from . import qemu
from .bitmap_drivers import BitmapCall
from .cells import CLUSTER_BITS, EXTENDED_L2_MIN_BITS, KILO, MEGA, REFCOUNT_BITS, Cell, random_cell
from .drivers import SnapshotCall
from .patch import Patch
from .steps import Drawing, Fill, Step

NAMES = (b"b0", b"b1", b"a longer name, with blanks", b"\xc3\xa4\xc3\xb6", b"b2", b"n" * 1023)
BAD_NAMES = (b"", b"n" * 1024, b"nobody")
GRANULARITIES = (512, 1 << 10, 4 << 10, 64 << 10, 128 << 10, 1 << 20, 2 << 20, 16 << 20)
BAD_GRANULARITIES = (1, 511, 768, 3 << 20, 1 << 32)
BITS_MAX = 1 << 26  # of one bitmap: QEMU holds them all in memory, each time it opens the image
OTHER = "other.qcow2"


@dataclass(frozen=True)
class Other:
    """Another image to merge from: made anew, with bitmaps of its own that writes have dirtied."""

    cell: Cell
    bitmaps: tuple[tuple[bytes, int], ...]  # name, granularity
    io: tuple[str, ...]
    broken: bool = False  # its bitmaps are in use

    def make(self, path: str) -> None:
        if os.path.exists(path):
            os.unlink(path)
        directory = os.path.dirname(path)
        qemu.create(path, self.cell.size, self.cell.options(directory))
        for name, granularity in self.bitmaps:
            qemu.must(["qemu-img", "bitmap", "--add", "-g", str(granularity), "-f", "qcow2", path, name])
        (qemu.crash if self.broken else qemu.io)(path, *self.io)


@dataclass(frozen=True)
class BitmapStep:
    """One step: a call that both sides make, or something that prepares the image, by QEMU.

    crash: whoever has the image open dies, after these writes. stale: a program that knows no bitmaps writes to it.
    """

    call: BitmapCall | None = None
    step: Step | None = None
    other: Other | None = None
    crash: tuple[str, ...] = ()
    stale: bool = False

    def __str__(self) -> str:
        if self.call:
            return str(self.call)
        if self.crash:
            return "crash after " + "; ".join(self.crash)
        return "autoclear bits off" if self.stale else str(self.step or self.other)

    def prepare(self, path: str) -> None:
        """Carries out a step that is no call."""
        if self.other:
            self.other.make(os.path.join(os.path.dirname(path), OTHER))
        elif self.crash:
            qemu.crash(path, *self.crash, "flush")
        elif self.stale:
            with Patch(path) as patch:
                patch.header(autoclear_features=0)
        elif self.step and self.step.call:
            call = self.step.call
            qemu.snapshot(path, {"create": "-c", "delete": "-d"}[call.verb], call.argument, call.date)
        elif self.step:
            self.step.prepare(path)


@dataclass
class BitmapChain:
    """A cell and the steps that are done to an image of it."""

    seed: int
    cell: Cell
    steps: list[BitmapStep]

    def __str__(self) -> str:
        return "\n".join([f"seed {self.seed}, cell {self.cell}", *(f"  {i}: {s}" for i, s in enumerate(self.steps))])

    def shorter(self) -> list[BitmapChain]:
        """All chains with less: half of the steps, one step, one action of a list. The last step always stays."""
        steps = self.steps
        cuts = []
        if len(steps) > 6:
            half = len(steps) // 2
            cuts += [steps[half:], steps[: half // 2] + steps[half:]]
        cuts += [steps[:i] + steps[i + 1 :] for i in range(len(steps) - 1)]
        for i, step in enumerate(steps):
            call = step.call
            for j in range(len(call.actions) if call and len(call.actions) > 1 else 0):
                less = replace(step, call=replace(call, actions=call.actions[:j] + call.actions[j + 1 :]))
                cuts.append([*steps[:i], less, *steps[i + 1 :]])
        return [BitmapChain(self.seed, self.cell, cut) for cut in cuts]


@dataclass
class _Drawing:
    """What the generator believes of the image while it draws: which bitmaps there are here and in the other image."""

    rng: random.Random
    cell: Cell
    drawing: Drawing
    granularities: list[int]
    live: list[bytes] = field(default_factory=list)
    broken: set[bytes] = field(default_factory=set)  # of these, in use: a list has to begin with their removal
    others: list[bytes] = field(default_factory=list)
    snapshots: int = 0

    def granularity(self) -> int:
        return self.rng.choice(self.granularities) if self.rng.random() < 0.75 else 0

    def actions(self, name: bytes, sources: list[bytes]) -> list[tuple[str, bytes]]:
        """A list that mostly succeeds: it begins with what the bitmap's state calls for, and adds after a removal."""
        rng, there, broken = self.rng, name in self.live, name in self.broken
        found: list[tuple[str, bytes]] = []
        for _unused in range(rng.choice((1, 1, 1, 2, 2, 3, 4, 7, 12))):
            kind = rng.choice(("merge", "merge", "merge", "clear", "enable", "disable", "remove", "add"))
            if rng.random() < 0.98:
                if broken:
                    kind = "remove"
                elif not there:
                    kind = "add"
                elif kind == "add" or (kind == "merge" and not sources):
                    kind = "disable"
            there, broken = kind != "remove" and (there or kind == "add"), broken and kind != "remove"
            source = rng.choice(sources or [b"nobody"]) if rng.random() < 0.98 else rng.choice(BAD_NAMES)
            found.append((kind, source if kind == "merge" else b""))
        return found

    def believe(self, name: bytes, actions: list[tuple[str, bytes]], sources: list[bytes]) -> None:
        """Follows a list as far as it is seen to succeed."""
        there, broken = name in self.live, name in self.broken
        for kind, source in actions:
            if there == (kind == "add") or (broken and kind != "remove"):
                return
            if kind == "merge" and source not in sources:
                return
            there, broken = kind != "remove", False
        if name in self.live:
            self.live.remove(name)
        self.broken.discard(name)
        if there:
            self.live.append(name)

    def call(self) -> BitmapCall:
        rng = self.rng
        name = rng.choice(self.live if self.live and rng.random() < 0.6 else NAMES)
        if rng.random() < 0.02:
            name = rng.choice(BAD_NAMES)
        elsewhere = bool(self.others) and rng.random() < 0.3
        sources = self.others if elsewhere else [*(set(self.live) - self.broken - {name}), name]
        sources = sorted(sources)
        actions = self.actions(name, sources)
        granularity = self.granularity() if ("add", b"") in actions else 0
        bad = granularity and rng.random() < 0.02
        if name not in BAD_NAMES and not bad:
            self.believe(name, actions, sources)
        merges = any(kind == "merge" for kind, _unused in actions)
        where = OTHER if elsewhere and merges else ""
        return BitmapCall(name, tuple(actions), rng.choice(BAD_GRANULARITIES) if bad else granularity, where)

    def other(self) -> Other:
        """Mostly of the same size: only then bitmaps can be merged."""
        rng = self.rng
        # Tables of small clusters map no large disk.
        bits = rng.choice([bits for bits in CLUSTER_BITS if bits >= 14 or self.cell.size < 1 << 36])
        size = self.cell.size if rng.random() < 0.9 else max(512, self.cell.size // 2 // 512 * 512)
        self.others = rng.sample(NAMES, rng.choice((1, 2, 3)))
        extended = bits >= EXTENDED_L2_MIN_BITS and rng.random() < 0.3
        cell = Cell(cluster_bits=bits, refcount_bits=rng.choice(REFCOUNT_BITS), extended_l2=extended, size=size)
        bitmaps = tuple((name, self.granularity() or 65536) for name in self.others)
        broken = rng.random() < 0.05
        other = Other(cell, bitmaps, self.writes(), broken)
        if broken or size != self.cell.size:
            self.others = self.others if rng.random() < 0.3 else []
        return other

    def writes(self) -> tuple[str, ...]:
        """Short ones, and now and then one that dirties a long range at once."""
        rng, size = self.rng, self.cell.size
        commands = [self.drawing.io_command() for _unused in range(rng.randrange(1, 9))]
        if rng.random() < 0.3:
            start = rng.randrange(size) // 512 * 512
            length = min(rng.randrange(size), size - start, 256 * MEGA) // 512 * 512
            if length and length >> self.cell.cluster_bits < 1 << 14:
                commands.append(f"write -z {start} {length}")
        return tuple(commands)

    def dirty_other(self) -> Other:
        """All of whose disk is dirty: a merge from it takes more clusters than there are holes."""
        self.others = [NAMES[0]]
        return Other(Cell(size=self.cell.size), ((NAMES[0], 512),), (f"write -z 0 {self.cell.size}",))

    def growing_step(self) -> BitmapStep:
        """Bitmaps at the edge of what the refcount structure holds."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.4:
            # Somewhere else each time: what is there already does not make the file longer.
            place = rng.randrange(self.cell.size) // 512 * 512
            return BitmapStep(step=Step(fill=Fill(rng.random() < 0.5, rng.choice((0, 0, 1, 1, 2, 3, 5, 8)), place)))
        if kind > 0.9:
            return self.step()
        missing = [name for name in NAMES if name not in self.live]
        if not missing or kind > 0.75:
            return BitmapStep(call=self.call())
        name = rng.choice(missing)
        self.live.append(name)
        return BitmapStep(call=BitmapCall(name, (("add", b""), ("merge", NAMES[0])), 512, OTHER))

    def step(self) -> BitmapStep:
        rng, kind = self.rng, self.rng.random()
        if kind < 0.5:
            return BitmapStep(call=self.call())
        if kind < 0.78:
            return BitmapStep(step=Step(io=self.writes()))
        if kind < 0.84:
            return BitmapStep(other=self.other())
        if kind < 0.90:
            verb = rng.choice(("create", "create", "delete"))
            self.snapshots += verb == "create"
            return BitmapStep(step=Step(call=SnapshotCall(verb, b"s%d" % rng.randrange(1, self.snapshots + 2))))
        if kind < 0.93:
            return BitmapStep(step=self.drawing.resize())
        if kind < 0.97:
            fill = Fill(rng.random() < 0.5, rng.choice((0, 0, 1, 2, 3, 5, 8)), 0)
            return BitmapStep(step=Step(fill=fill) if self.cell.cluster_bits <= 12 else Step(io=self.writes()))
        if kind < 0.985:
            self.broken.update(self.live)
            return BitmapStep(crash=self.writes())
        self.live.clear()
        self.broken.clear()
        return BitmapStep(stale=True)


def make_bitmap_chain(seed: int, cell: Cell | None = None) -> BitmapChain:
    """The chain of a seed: the same on every machine."""
    rng = random.Random(seed)
    drawn = random_cell(rng)
    if drawn.compat == "0.10" and rng.random() < 0.8:  # there, bitmaps can only be refused
        drawn = replace(drawn, compat="1.1", refcount_bits=rng.choice(REFCOUNT_BITS))
    growing = rng.random() < 0.2
    if growing:
        bits, width = rng.choice(((9, 64), (9, 64), (9, 32), (10, 64), (11, 64)))
        drawn = Cell(cluster_bits=bits, refcount_bits=width, size=rng.randrange(64 * MEGA, 200 * MEGA) // 512 * 512)
    elif rng.random() < 0.1:
        drawn = replace(drawn, size=rng.randrange(1, 64) * 512 if rng.random() < 0.5 else 64 * KILO)
    elif rng.random() < 0.06:
        drawn = replace(drawn, compat="1.1", backing=False, compression="none", data_file=True, preallocation="off")
    cell = cell or drawn
    spots = [0, cell.size // 2, *(rng.randrange(cell.size) for _unused in range(3))]
    granularities = [g for g in GRANULARITIES if cell.size // g <= BITS_MAX]
    drawing = _Drawing(rng, cell, Drawing(rng, cell, spots), granularities)
    if growing and cell.size < 1 << 28:
        first = BitmapStep(other=drawing.dirty_other())
        return BitmapChain(seed, cell, [first, *(drawing.growing_step() for _unused in range(rng.randrange(8, 24)))])
    return BitmapChain(seed, cell, [drawing.step() for _unused in range(rng.randrange(8, 24))])
