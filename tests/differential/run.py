# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs random chains by qemu-img and by us and compares the results.

    python -m tests.differential.run --kind commit --seed 77                  # one chain: a failing one, once more
    python -m tests.differential.run --kind bitmap --seed 1 --count 2000      # seeds 1 to 2000
    python -m tests.differential.run --kind snapshot --seed 77 --driver cli   # through build/airlock
    python -m tests.differential.run --kind snapshot --seed 5 --count 50 --cell compat=0.10,cluster_bits=9
    python -m tests.differential.run --kind snapshot --count 50 --driver qemu # self test: qemu-img against itself

To be run where the Makefile is, after `make build cli`. A mismatch prints its chain (a list of steps: reduced), what
differs, and the command that runs it once more; the images stay in the directory that is named.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice

from tests.support.cells import Cell, every_axis
from tests.support.chains import ALL_VERBS
from tests.support.drivers import DRIVERS
from tests.support.families import (
    KINDS,
    SCENARIOS,
    STEPS,
    counted,
    failure_of_seed,
    failure_of_steps,
)

ONLY_FOR = {"driver": STEPS, "cell": STEPS, "axes": STEPS, "no_reduce": STEPS, "verbs": ("snapshot",)}
"""Options that not every kind has."""


def _cell(text: str) -> Cell:
    try:
        return Cell.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _verbs(text: str) -> frozenset[str]:
    verbs = frozenset(text.split(","))
    if not verbs <= ALL_VERBS:
        raise argparse.ArgumentTypeError(f"{text!r} is not some of {','.join(sorted(ALL_VERBS))}")
    return verbs


def _directory(text: str) -> str:
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"there is no directory {text!r}")
    return text


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.differential.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kind", choices=KINDS, required=True, help="what is compared")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first chain; the next has the next one")
    parser.add_argument("--count", type=_number, help="how many chains (default: one; with --axes: one for each cell)")
    parser.add_argument("--directory", type=_directory, help="where the images go (default: a directory in memory)")
    parser.add_argument("--mismatches", type=_number, default=1, help="stop after this many")
    steps = parser.add_argument_group("only for snapshot and bitmap")
    steps.add_argument("--driver", choices=sorted(DRIVERS), help="who is compared with qemu-img (default: airlock)")
    cells = steps.add_mutually_exclusive_group()
    cells.add_argument("--cell", type=_cell, help="only this cell: name=value,... (default: random cells)")
    cells.add_argument("--axes", action="store_true", help="a chain for each cell of the systematic grid")
    steps.add_argument("--no-reduce", action="store_true", help="do not shorten a failing chain")
    snapshots = parser.add_argument_group("only for snapshot")
    snapshots.add_argument("--verbs", type=_verbs, help="compare only these (verb,verb); qemu-img does the others")
    options = parser.parse_args(arguments)
    for name, kinds in ONLY_FOR.items():
        if getattr(options, name) and options.kind not in kinds:
            parser.error(f"--{name.replace('_', '-')} is only for --kind {' or '.join(kinds)}, not for {options.kind}")
    return options


def chains(options: argparse.Namespace) -> Iterator[tuple[int, Cell | None]]:
    """Seeds, and the cells that they are for: of the systematic grid, the one that is given, or any."""
    if options.axes:
        cells = ((options.seed + index, cell) for index, cell in enumerate(every_axis()))
        return islice(cells, options.count)
    return islice(((seed, options.cell) for seed in count(options.seed)), options.count or 1)


def run_chain(
    seed: int, cell: Cell | None, directory: str, options: argparse.Namespace
) -> tuple[str, dict[str, Counter[str]]]:
    """One chain, in an arena of its own: what happens must not depend on the chains before. Returns what is to be said
    of a mismatch, or "", and what was counted."""
    if options.kind in SCENARIOS:
        arena = SCENARIOS[options.kind].arena(directory)
        return failure_of_seed(options.kind, arena, seed, options.directory or ""), counted(arena)
    family = STEPS[options.kind]
    verbs = (options.verbs,) if options.verbs else ()
    arena = family.arena(directory, family.drivers[options.driver or "airlock"](), family.tally(), *verbs)
    failure = failure_of_steps(arena, family.make(seed, cell), not options.no_reduce, options.directory or "")
    return failure, counted(arena)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 1 after a mismatch."""
    options = parse_arguments(arguments)
    parent = options.directory or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    top = tempfile.mkdtemp(prefix="airlock-differential-", dir=parent)
    total: dict[str, Counter[str]] = {}
    started, found, number = time.monotonic(), 0, 0
    for seed, cell in chains(options):
        number += 1
        directory = os.path.join(top, f"chain{seed}")
        failure, counters = run_chain(seed, cell, directory, options)
        for name, counter in counters.items():
            total.setdefault(name, Counter()).update(counter)
        if not failure:
            shutil.rmtree(directory)
            continue
        print(f"\nMISMATCH\n{failure}\nimages: {directory}", flush=True)
        found += 1
        if found == options.mismatches:
            break
    print(f"{number} chains, {time.monotonic() - started:.1f} s, mismatches: {found}")
    for name, counter in total.items():
        print(f"{name}: " + (", ".join(f"{what}: {times}" for what, times in sorted(counter.items())) or "none"))
    if not found:
        shutil.rmtree(top)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
