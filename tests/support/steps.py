# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps of a random chain: drawn from a seed, and carried out on an image."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from . import qemu
from .cells import Cell, random_cell
from .drivers import SnapshotCall
from .patch import Patch
from .qcow2 import Qcow2

NAMES = (b"s1", b"s2", b"1", b"2", b"3", b"a longer name with blanks", b"\xc3\xa4\xc3\xb6", b"", b"n" * 300)
FILL_LIMIT = 9 << 20  # bytes that one fill step may write


@dataclass(frozen=True)
class Fill:
    """Guest writes until the file ends `spare` clusters before the next refcount block's range, or, with `table`,
    before what the refcount table can hold. That is where a snapshot makes the structures grow."""

    table: bool
    spare: int
    offset: int  # guest bytes: where the writes start

    def run(self, path: str) -> None:
        """Comes close in one long write, then closer in short ones. Does nothing when the boundary is far away."""
        offset = self.offset
        for _unused in range(4):
            with Qcow2(path) as image:
                span = image.block_entries * (len(image.refcount_blocks()) if self.table else 1)
                left = span - -(-image.length // image.cluster_size) % span - self.spare
                overhead = left // image.l2_entries + (left // image.block_entries if self.table else 0) + 1
                clusters = left - overhead if left > overhead else 1
                if left <= 0 or clusters * image.cluster_size > FILL_LIMIT or offset >= image.size:
                    return
                length = min(clusters * image.cluster_size, (image.size - offset) // 512 * 512)
            if length > 0:
                qemu.io(path, f"write -P 0x77 {offset} {length}")
            offset += length


def trim_l1(path: str) -> None:
    """Cuts the active L1 table to what the disk size needs, as after a shrink by another writer: the only way to an
    active table that is shorter than a snapshot's."""
    with Qcow2(path) as image:
        needed = -(-image.size // (image.cluster_size * image.l2_entries))
        l1 = image.active_l1()
        if needed >= len(l1) or any(l1[needed:]):
            return
        start = image.header["l1_table_offset"]
        kept, old = (-(-entries * 8 // image.cluster_size) for entries in (needed, len(l1)))
        first = start // image.cluster_size
    with Patch(path) as patch:
        patch.header(l1_size=needed)
        for cluster in range(first + kept, first + old):
            patch.refcount(cluster, 0)


@dataclass(frozen=True)
class Step:
    """One step of a chain: a snapshot call that both sides make, or something that prepares the image."""

    call: SnapshotCall | None = None
    io: tuple[str, ...] = ()
    resize: int = 0  # bytes; 0: no resize
    fill: Fill | None = None
    trim: bool = False

    def __str__(self) -> str:
        if self.call:
            seconds, nanoseconds = self.call.date
            return f"snapshot {self.call.verb} {self.call.argument!r} at {seconds}.{nanoseconds:09d}"
        if self.resize:
            return f"qemu-img resize --shrink {self.resize}"
        if self.fill or self.trim:
            return str(self.fill or "trim the L1 table")
        return "qemu-io " + " ".join(f"-c '{command}'" for command in self.io)

    def prepare(self, path: str) -> None:
        """Carries out a step that is no snapshot call. That some writes fail (behind the end) is part of the game."""
        if self.resize:
            qemu.run(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", path, str(self.resize)])
        elif self.fill:
            self.fill.run(path)
        elif self.trim:
            trim_l1(path)
        else:
            qemu.io(path, *self.io)


def up_to_call(steps: list[Any], number: int) -> list[Any]:
    """The steps of any chain up to its operation of this number, from 1: the others only prepare."""
    calls = [index for index, step in enumerate(steps, 1) if step.call is not None]
    return steps[: calls[min(number, len(calls)) - 1]]


@dataclass
class Chain:
    """A cell and the steps that are done to an image of it."""

    seed: int
    cell: Cell
    steps: list[Step]

    def __str__(self) -> str:
        return "\n".join([f"seed {self.seed}, cell {self.cell}", *(f"  {i}: {s}" for i, s in enumerate(self.steps))])

    def shorter(self) -> list[Chain]:
        """All chains with one step, or one qemu-io command, less; big cuts first. The last step always stays."""
        steps = self.steps
        cuts = []
        if len(steps) > 6:
            half = len(steps) // 2
            cuts.append(steps[half:])
            cuts.append(steps[: half // 2] + steps[half:])
        cuts += [steps[:i] + steps[i + 1 :] for i in range(len(steps) - 1)]
        for i, step in enumerate(steps):
            if len(step.io) > 1:
                for j in range(len(step.io)):
                    less = Step(io=step.io[:j] + step.io[j + 1 :])
                    cuts.append([*steps[:i], less, *steps[i + 1 :]])
        return [Chain(self.seed, self.cell, cut) for cut in cuts]


@dataclass
class Drawing:
    """What the generator believes of the image while it draws: names by id, hot spots, the highest id so far."""

    rng: random.Random
    cell: Cell
    spots: list[int]
    live: list[tuple[int, bytes]] = field(default_factory=list)

    def place(self) -> int:
        """A guest offset, 512-aligned: often near one that is in use."""
        rng, cell = self.rng, self.cell
        if rng.random() < 0.8:
            offset = rng.choice(self.spots) + rng.randrange(-4, 5) * cell.cluster_size + rng.choice((0, 0, 512, 1024))
        else:
            offset = rng.randrange(cell.size)
        return max(0, min(offset, cell.size - 512)) // 512 * 512

    def compressed_write(self, whole: int, pattern: int) -> str:
        cluster = self.cell.cluster_size
        start = whole + self.rng.randrange(3) * cluster
        start = start if start < self.cell.size else whole
        return f"write -c -P {pattern} {start} {min(cluster, self.cell.size - start)}"

    def io_command(self) -> str:
        rng, cell = self.rng, self.cell
        offset, cluster = self.place(), cell.cluster_size
        whole = offset // cluster * cluster
        bits = cell.cluster_bits
        clusters = rng.choice((1, 1, 2, 3, 9 if bits < 16 else 2, 40 if bits < 12 else 1))
        kind, pattern = rng.random(), rng.randrange(1, 256)
        if kind < 0.25 and cell.compression != "none":
            return self.compressed_write(whole, pattern)
        if rng.random() < 0.6:
            offset, length = whole, clusters * cluster
        else:
            length = rng.choice((512, 4096, cluster // 2 // 512 * 512 or 512, clusters * cluster + 512))
        length = max(512, min(length, (cell.size - offset) // 512 * 512))
        if kind < 0.32:
            return f"discard {offset} {length}"
        if kind < 0.44:
            return f"write -z {'-u ' if kind < 0.38 else ''}{offset} {length}"
        return f"write -P {pattern} {offset} {length}"

    def call(self) -> SnapshotCall:
        """A snapshot operation; one in ten names a snapshot that is not there."""
        rng = self.rng
        # faketime reads its time as a double: 64ths of a second come through exactly.
        date = (qemu.DATE[0] + rng.randrange(1 << 20), rng.choice((0, rng.randrange(64) * 15_625_000)))
        kind = rng.random()
        highest = max((number for number, _unused in self.live), default=0)
        if kind < 0.4 or not self.live:
            name = rng.choice(NAMES) if rng.random() < 0.3 else b"snap%d" % (highest + 1)
            self.live.append((highest + 1, name[:255]))
            return SnapshotCall("create", name, date)
        number, name = rng.choice(self.live)
        if rng.random() < 0.1:
            number, name = 77, b"nobody"
        if kind < 0.72:
            return SnapshotCall("apply", b"%d" % number if rng.random() < 0.4 else name, date)
        first = next((pair for pair in self.live if pair[1] == name), None)
        if first:
            self.live.remove(first)
        return SnapshotCall("delete", name, date)

    def mixed_step(self) -> Step:
        rng, cell = self.rng, self.cell
        kind = rng.random()
        if kind < 0.36:
            return Step(io=tuple(self.io_command() for _unused in range(rng.randrange(1, 7))))
        if kind < 0.42:
            return self.resize()
        if kind < 0.46 and cell.cluster_bits <= 12:
            return Step(fill=self.fill())
        return Step(call=self.call())

    def fill(self) -> Fill:
        rng = self.rng
        return Fill(rng.random() < 0.5, rng.choice((0, 0, 1, 1, 2, 3, 5, 8)), rng.choice((0, rng.choice(self.spots))))

    def resize(self) -> Step:
        cell, rng = self.cell, self.rng
        reach = rng.choice((cell.l2_reach, cell.size // 2, cell.cluster_size))
        return Step(resize=max(512, (cell.size + rng.randrange(-reach, 2 * reach)) // 512 * 512))

    def resizing_step(self) -> Step:
        """Disk sizes that change between snapshots: what apply has to follow."""
        kind = self.rng.random()
        if kind < 0.3:
            return self.resize()
        if kind < 0.4:
            return Step(trim=True)
        return self.mixed_step()

    def growing_step(self) -> Step:
        """Snapshots at the edge of what the refcount structure holds."""
        return Step(fill=self.fill()) if self.rng.random() < 0.4 else self.mixed_step()


def make_chain(seed: int, cell: Cell | None = None) -> Chain:
    """The chain of a seed: the same on every machine."""
    rng = random.Random(seed)
    style = rng.choice(("mixed", "mixed", "mixed", "resizing", "growing"))
    drawn = random_cell(rng)
    if style == "growing":
        bits, width = rng.choice(((9, 64), (9, 64), (9, 32), (9, 16), (10, 64), (11, 64), (12, 64)))
        size = rng.randrange(4 << 20, 32 << 20) // 512 * 512
        drawn = Cell(cluster_bits=bits, refcount_bits=width, size=size, backing=rng.random() < 0.2)
    elif style == "resizing" and rng.random() < 0.8:
        drawn = replace(drawn, compat="1.1", data_file=False)
    cell = cell or drawn
    spots = [0, cell.size // 2, *(rng.randrange(cell.size) for _unused in range(3))]
    drawing = Drawing(rng, cell, spots)
    step = {"mixed": drawing.mixed_step, "resizing": drawing.resizing_step, "growing": drawing.growing_step}[style]
    return Chain(seed, cell, [step() for _unused in range(rng.randrange(8, 20))])
