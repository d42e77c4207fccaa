# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commits of random chains, side by side with qemu-img's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tests.support.commits import CommitArena
from tests.support.families import agree_on_seed

LONG = os.environ.get("AIRLOCK_LONG") == "1"
CHAINS = 1000 if LONG else 40
SLOW = 40 if LONG else 4
BATCH = 10


@pytest.fixture
def arena() -> Iterator[CommitArena]:
    """A directory, in memory if there is such a thing."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = tempfile.mkdtemp(prefix="airlock-test-", dir=parent)
    yield CommitArena(os.path.join(directory, "arena"))
    shutil.rmtree(directory)


@pytest.mark.parametrize("first", range(1, CHAINS + 1, BATCH))
def test_random_chains(arena: CommitArena, first: int) -> None:
    for seed in range(first, first + BATCH):
        agree_on_seed("commit", arena, seed)
    assert sum(arena.tally.outcomes.values()) == BATCH
    assert arena.tally.outcomes["to the byte"] + arena.tally.outcomes["in effect"] > BATCH // 2


@pytest.mark.parametrize("seed", [152, 604])
def test_bitmaps_of_a_base_that_is_larger(arena: CommitArena, seed: int) -> None:
    """The top ends within a chunk: the base's bitmaps record no more than what was written."""
    agree_on_seed("commit", arena, seed)


@pytest.mark.parametrize("seed", range(1, SLOW + 1))
def test_one_operation_at_a_time(arena: CommitArena, seed: int) -> None:
    """Every file is qemu-img's, to the byte."""
    agree_on_seed("commit-slow", arena, seed)
    assert arena.tally.outcomes["to the byte"] == 1
