# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guest as a library, in several makes, and images to run it on."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.native import Guest, compiled
from tests.support.recipes import RECIPES

MAKES = {
    "plain": (),
    "windows": ("-DCELLS_BYTES_MORE=64", "-DCELLS_A_CLUSTER=0"),  # 64 counters at a time
    "narrow": ("-DBYTE_COUNT=1u",),  # two references to one cluster are too many for 8 bits
    "wide": ("-DBYTE_COUNT=1u", "-DNARROW_COUNT=1u"),  # and for 16
    "payload windows": ("-DPAYLOAD_WINDOW=512",),  # a cluster of bits at a time, where clusters have 512 bytes
    "narrow windows": ("-DCELLS_BYTES_MORE=128", "-DCELLS_A_CLUSTER=0", "-DBYTE_COUNT=1u"),
    "wide windows": ("-DCELLS_BYTES_MORE=256", "-DCELLS_A_CLUSTER=0", "-DBYTE_COUNT=1u", "-DNARROW_COUNT=1u"),
}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory that all workers of this session have in common."""
    base = tmp_path_factory.getbasetemp()
    directory = (base if worker_id == "master" else base.parent) / "guest"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def made() -> dict[str, Guest]:
    """Those of MAKES that some test has asked for."""
    return {}


@pytest.fixture(autouse=True)
def rest(made: dict[str, Guest]) -> Iterator[None]:
    """A worker that stays large makes every fork of the tests behind it slow: page tables are copied."""
    yield
    for guest in made.values():
        guest.rest()


@pytest.fixture(scope="session")
def make(made: dict[str, Guest]) -> Callable[[str], Guest]:
    """make(name) is one of MAKES, compiled when it is first asked for."""

    def get(name: str) -> Guest:
        if name not in made:
            made[name] = Guest(compiled(MAKES[name]))
        return made[name]

    return get


@pytest.fixture
def guest(make: Callable[[str], Guest]) -> Guest:
    return make("plain")


@pytest.fixture(scope="session")
def library(make: Callable[[str], Guest]) -> Guest:
    """The same, for tests that hypothesis runs many times: each of them loads its own image."""
    return make("plain")


@pytest.fixture(scope="session")
def image(shared: Path) -> Callable[[str], Path]:
    """image(name) is the path of one of RECIPES, made when it is first asked for; not to be changed."""

    def get(name: str) -> Path:
        path = shared / f"{name}.qcow2"
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                RECIPES[name].make(path.with_suffix(".draft")).rename(path)
        return path

    return get
