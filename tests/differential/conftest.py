# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of the differential tests.

AIRLOCK_LONG=1 makes the random parts long; AIRLOCK_DRIVER=qemu compares qemu-img with itself (does the test test?).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import qemu
from tests.support.chains import Arena, Tally
from tests.support.drivers import DRIVERS, Driver
from tests.support.hostile_bitmaps import with_bitmaps


@pytest.fixture(scope="session")
def driver() -> Driver:
    return DRIVERS[os.environ.get("AIRLOCK_DRIVER", "airlock")]()


@pytest.fixture
def arena(driver: Driver) -> Iterator[Arena]:
    """An empty directory, in memory if there is such a thing, where disk.qcow2 can be made and operated on."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = tempfile.mkdtemp(prefix="airlock-test-", dir=parent)
    yield Arena(directory, driver, Tally())
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def sound_bitmaps(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """sound_bitmaps(options): an image with three bitmaps and a snapshot, made once; to be copied."""
    directory: Path = tmp_path_factory.mktemp("bitmaps")
    made: dict[str, str] = {}

    def get(options: str) -> str:
        if options not in made:
            path = str(directory / f"{len(made)}.qcow2")
            with_bitmaps(path, options)
            qemu.snapshot(path, "-c", "s1")
            made[options] = path
        return made[options]

    return get
