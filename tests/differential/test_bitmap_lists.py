# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lists of bitmap actions: a chain for every cell of the grid, and random chains over all of it, compared by meaning
with what qemu-img makes of them. `run.py --kind bitmap` does the same at length.
"""

from __future__ import annotations

import os

import pytest

from tests.support.bitmap_chains import BitmapArena, BitmapTally
from tests.support.bitmap_drivers import BITMAP_DRIVERS, CliBitmaps
from tests.support.bitmap_steps import make_bitmap_chain
from tests.support.cells import Cell, every_axis
from tests.support.chains import Arena
from tests.support.families import agree_on_steps
from tests.support.steps import up_to_call

LONG = os.environ.get("AIRLOCK_LONG") == "1"
CELLS = list(every_axis())[:: 1 if LONG else 3]


@pytest.fixture
def lists(arena: Arena) -> BitmapArena:
    driver = BITMAP_DRIVERS[os.environ.get("AIRLOCK_DRIVER", "airlock")]()
    return BitmapArena(arena.directory, driver, BitmapTally())


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_cell(lists: BitmapArena, cell: Cell) -> None:
    chain = make_bitmap_chain(CELLS.index(cell), cell)
    if not LONG:
        chain.steps = up_to_call(chain.steps, 5)
    agree_on_steps(lists, chain)
    assert lists.tally.operations > 0


@pytest.mark.parametrize("seed", range(3000, 3400 if LONG else 3015))
def test_random_chain(lists: BitmapArena, seed: int) -> None:
    agree_on_steps(lists, make_bitmap_chain(seed))


@pytest.mark.parametrize("seed", range(4000, 4050 if LONG else 4006))
def test_command_line(lists: BitmapArena, seed: int) -> None:
    """build/airlock beside qemu-img: what it leads to, exit codes, and the words of refusals."""
    agree_on_steps(BitmapArena(lists.directory, CliBitmaps(), BitmapTally()), make_bitmap_chain(seed))
