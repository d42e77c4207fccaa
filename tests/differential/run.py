# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs random chains of operations by qemu-img and by us and compares the results.

Snapshot operations are compared byte for byte, lists of bitmap actions by meaning.

    python3 tests/differential/run.py --seed 1 --count 2000
    python3 tests/differential/run.py --seed 77 --count 1 --driver cli      # one chain, through build/airlock
    python3 tests/differential/run.py --seed 5 --count 50 --cell compat=0.10,cluster_bits=9
    python3 tests/differential/run.py --driver qemu                          # self test: qemu-img against itself
    python3 tests/differential/run.py --bitmaps --seed 1 --count 2000

Chain N of a run has the seed SEED + N. A mismatch prints its chain, reduced, and what differs; the images stay in the
directory that is named (before.qcow2, qemu.qcow2, ours.qcow2: for dump.py).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.differential.harness.bitmap_chains import BitmapArena, BitmapMismatch, BitmapTally
from tests.differential.harness.bitmap_drivers import BITMAP_DRIVERS
from tests.differential.harness.bitmap_steps import BitmapChain, make_bitmap_chain
from tests.differential.harness.cells import Cell, every_axis
from tests.differential.harness.chains import Arena, Mismatch, Tally
from tests.differential.harness.drivers import DRIVERS
from tests.differential.harness.steps import Chain, make_chain


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="seed of the first chain")
    parser.add_argument("--count", type=int, default=200, help="stop after this many compared operations")
    parser.add_argument("--driver", choices=sorted(DRIVERS), default="airlock", help="who is compared with qemu-img")
    parser.add_argument("--cell", help="only this cell: name=value,... (default: random cells)")
    parser.add_argument("--verbs", default="create,apply,delete", help="compare only these; others are done by qemu")
    parser.add_argument("--axes", action="store_true", help="one chain for each cell of the systematic grid")
    parser.add_argument("--bitmaps", action="store_true", help="lists of bitmap actions instead of snapshots")
    parser.add_argument("--directory", help="where the images go (default: a directory in memory)")
    parser.add_argument("--mismatches", type=int, default=1, help="stop after this many")
    parser.add_argument("--no-reduce", action="store_true", help="do not shorten a failing chain")
    return parser.parse_args(arguments)


def show(mismatch: Mismatch | BitmapMismatch, directory: str, options: argparse.Namespace) -> None:
    print(f"\nMISMATCH at step {mismatch.step}: {mismatch.operation}")
    print(mismatch.chain)
    print(mismatch.report)
    again = f"python3 tests/differential/run.py --seed {mismatch.chain.seed} --count 1 --driver {options.driver}"
    again += " --bitmaps" if options.bitmaps else ""
    if options.cell or options.axes:
        again += f" --cell {mismatch.chain.cell}"
    print(f"again: {again}\nimages: {directory}/{{before,qemu,ours}}.qcow2", flush=True)


def chains(options: argparse.Namespace) -> Iterator[Chain | BitmapChain]:
    """The chains of the systematic grid, or random ones without end."""
    make = make_bitmap_chain if options.bitmaps else make_chain
    if options.axes:
        for i, cell in enumerate(every_axis()):
            yield make(options.seed + i, cell)
        return
    cell = Cell.parse(options.cell) if options.cell else None
    for number in count():
        yield make(options.seed + number, cell)


def run_chain(
    chain: Chain | BitmapChain, directory: str, tally: Tally | BitmapTally, options: argparse.Namespace
) -> Mismatch | BitmapMismatch | None:
    """One chain; a mismatch is reduced unless that is not wanted."""
    if isinstance(chain, BitmapChain):
        bitmaps = BitmapArena(directory, BITMAP_DRIVERS[options.driver](), tally)
        found = bitmaps.run(chain)
        return bitmaps.reduce(found) if found and not options.no_reduce else found
    arena = Arena(directory, DRIVERS[options.driver](), tally, frozenset(options.verbs.split(",")))
    mismatch = arena.run(chain)
    return arena.reduce(mismatch) if mismatch and not options.no_reduce else mismatch


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    parent = options.directory or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    top = tempfile.mkdtemp(prefix="airlock-differential-", dir=parent)
    tally = BitmapTally() if options.bitmaps else Tally()
    started, found, number = time.monotonic(), 0, 0
    for chain in chains(options):
        if tally.operations >= options.count or found >= options.mismatches:
            break
        number += 1
        directory = os.path.join(top, f"chain{chain.seed}")
        mismatch = run_chain(chain, directory, tally, options)
        if mismatch is None:
            shutil.rmtree(directory)
            continue
        found += 1
        show(mismatch, directory, options)
    seconds = time.monotonic() - started
    print(f"{tally.operations} operations in {number} chains, {seconds:.1f} s: {dict(tally.compared)}")
    if isinstance(tally, BitmapTally):
        print(f"actions: {dict(tally.actions)}")
    print(f"refused by both: {dict(tally.refused)}; on purpose: {dict(tally.divergences)}; mismatches: {found}")
    print(f"happened: {dict(tally.events)}")
    print("cells: " + ", ".join(f"{name}: {times}" for name, times in sorted(tally.cells.items())))
    if not found:
        shutil.rmtree(top)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
