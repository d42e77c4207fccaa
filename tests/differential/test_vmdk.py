# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commits and rebases of random chains with vmdk images, side by side with qemu-img's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tests.support.families import agree_on_seed
from tests.support.vmdk_chains import VmdkArena

LONG = os.environ.get("AIRLOCK_LONG") == "1"
CHAINS = 1000 if LONG else 30
REBASES = 300 if LONG else 20
SLOW = 40 if LONG else 6
BATCH = 10


@pytest.fixture
def arena() -> Iterator[VmdkArena]:
    """A directory, in memory if there is such a thing."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = tempfile.mkdtemp(prefix="airlock-test-", dir=parent)
    yield VmdkArena(os.path.join(directory, "arena"))
    shutil.rmtree(directory)


@pytest.mark.parametrize("first", range(1, CHAINS + 1, BATCH))
def test_random_chains(arena: VmdkArena, first: int) -> None:
    for seed in range(first, first + BATCH):
        agree_on_seed("vmdk", arena, seed)
    assert sum(arena.outcomes.values()) == BATCH
    assert arena.outcomes["to the byte"] + arena.outcomes["in effect"] > BATCH // 2


@pytest.mark.parametrize("seed", range(1, SLOW + 1))
def test_one_operation_at_a_time(arena: VmdkArena, seed: int) -> None:
    """The base is qemu-img's, to the byte."""
    agree_on_seed("vmdk-slow", arena, seed)
    assert arena.outcomes["to the byte"] == 1


@pytest.mark.parametrize("first", range(1, REBASES + 1, BATCH))
def test_random_rebases(arena: VmdkArena, first: int) -> None:
    """All files are qemu-img's, to the byte."""
    for seed in range(first, first + BATCH):
        agree_on_seed("vmdk-rebase", arena, seed)
    assert sum(arena.outcomes.values()) == BATCH
