# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The grid: a chain for every cell, and random chains over all of it, byte for byte. `run.py --kind snapshot` does the
same at length."""

from __future__ import annotations

import os

import pytest

from tests.support.cells import Cell, every_axis
from tests.support.chains import Arena, Tally
from tests.support.drivers import CliDriver, Driver
from tests.support.families import agree_on_steps
from tests.support.steps import make_chain, up_to_call

CELLS = list(every_axis())
LONG = os.environ.get("AIRLOCK_LONG") == "1"
SEEDS = range(5000, 5400 if LONG else 5030)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_cell(arena: Arena, cell: Cell) -> None:
    chain = make_chain(CELLS.index(cell), cell)
    if not LONG:
        chain.steps = up_to_call(chain.steps, 4)
    agree_on_steps(arena, chain)
    assert arena.tally.operations > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_random_chain(arena: Arena, seed: int) -> None:
    agree_on_steps(arena, make_chain(seed))


@pytest.mark.parametrize("seed", range(7000, 7050 if LONG else 7006))
def test_command_line(arena: Arena, seed: int) -> None:
    """build/airlock beside qemu-img: bytes, exit codes, and the words of refusals."""
    agree_on_steps(Arena(arena.directory, CliDriver(), Tally()), make_chain(seed))


def test_on_a_disk_file_system(driver: Driver, tmp_path: os.PathLike[str]) -> None:
    """Holes in memory and holes on a disk are two implementations."""
    arena = Arena(os.path.join(tmp_path, "chain"), driver, Tally())
    for seed in range(6000, 6005):
        agree_on_steps(arena, make_chain(seed), directory="build")
