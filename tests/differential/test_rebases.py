# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rebases of random chains, side by side with qemu-img's: to the byte."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tests.support.families import agree_on_seed
from tests.support.rebases import RebaseArena

LONG = os.environ.get("AIRLOCK_LONG") == "1"
CHAINS = 1000 if LONG else 40
BATCH = 10


@pytest.fixture
def arena() -> Iterator[RebaseArena]:
    """A directory, in memory if there is such a thing."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = tempfile.mkdtemp(prefix="airlock-test-", dir=parent)
    yield RebaseArena(os.path.join(directory, "arena"))
    shutil.rmtree(directory)


@pytest.mark.parametrize("first", range(1, CHAINS + 1, BATCH))
def test_random_chains(arena: RebaseArena, first: int) -> None:
    for seed in range(first, first + BATCH):
        agree_on_seed("rebase", arena, seed)
    assert arena.outcomes["to the byte"] + arena.outcomes["in effect"] > BATCH // 2
