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
from collections.abc import Iterator

import pytest

from tests.differential.harness.chains import Arena, Tally
from tests.differential.harness.drivers import DRIVERS, Driver


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
