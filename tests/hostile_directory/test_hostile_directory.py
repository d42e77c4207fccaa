# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Root works on images in a directory of a tenant who exchanges what is in there while it does: no file outside is
changed, read or removed.

AIRLOCK_LONG=1 attacks each operation for AIRLOCK_SECONDS (600), not for some rounds.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.hostile_directory.arena import TENANT, Arena
from tests.hostile_directory.attack import MODES, Attack, Attacker, Operation
from tests.hostile_directory.operations import operations
from tests.unit.plugins.running import make_tree

LONG = os.environ.get("AIRLOCK_LONG") == "1"
SECONDS = int(os.environ.get("AIRLOCK_SECONDS", "600"))
LOG = pathlib.Path(__file__).parents[2] / "build/hostile_directory.log"  # of long runs
ROUNDS = 6
NAIVE_ROUNDS = 2000  # at most, until a victim that looks up twice is caught
OPERATIONS = operations()

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a tenant against root: needs root")


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    make_tree(tmp_path_factory.mktemp("tree"))
    arena = Arena()
    yield arena
    arena.close()


@pytest.fixture(scope="session")
def attacker(arena: Arena) -> Iterator[Attacker]:
    attacker = Attacker(arena)
    yield attacker
    attacker.close()


def going(rounds: int) -> Iterator[str]:
    """The modes, one after the other: so many, or as long as AIRLOCK_LONG says."""
    end = time.monotonic() + SECONDS
    for number, mode in enumerate(itertools.cycle(MODES)):
        if time.monotonic() >= end if LONG else number >= rounds:
            return
        yield mode


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name: str, arena: Arena, attacker: Attacker) -> None:
    attack = Attack(arena, attacker, OPERATIONS[name], time.time_ns() if LONG else 1)
    code, said = attack.at_rest()
    assert code == 0, said
    record = attack.rounds(going(ROUNDS))
    if LONG:
        rounds = sum(record.codes.values())
        with open(LOG, "a") as log:
            print(name, rounds, record.codes, record.exchanges, record.events, record.findings, sep=" | ", file=log)
    assert not record.findings, "\n".join(record.findings)
    assert record.exchanges > 0


# ---- that all this can fail -----------------------------------------------------------------------------


def _naive(spell: Callable[[str], str]) -> tuple[int, str]:
    """Looks at a file and opens it later by its path, as is done everywhere."""
    path = spell("one.qcow2")
    for flags in (os.O_RDONLY, os.O_RDWR):
        with contextlib.suppress(OSError):
            os.close(os.open(path, flags | os.O_NONBLOCK))
    return 0, ""


@pytest.mark.parametrize("mode", MODES)
def test_who_looks_up_twice_is_caught(mode: str, arena: Arena, attacker: Attacker) -> None:
    attack = Attack(arena, attacker, Operation(_naive, ("one.qcow2",)), 1)
    record = attack.rounds(itertools.repeat(mode, NAIVE_ROUNDS))
    assert record.findings
    assert record.events > 0 or mode == "blind"


def _read(arena: Arena) -> None:
    (arena.outside["root"] / "one.qcow2").read_bytes()


def _write(arena: Arena) -> None:
    with open(arena.outside["other"] / "vm/sub/base.raw", "r+b") as file:
        file.write(b"x")


def _write_unseen(arena: Arena) -> None:
    """To a file that may be opened."""
    with open(arena.linked / "base.raw", "r+b") as file:
        file.write(b"x")


def _give_away(arena: Arena) -> None:
    os.chown(arena.shared / "base.raw", TENANT, TENANT)


def _make(arena: Arena) -> None:
    (arena.outside["root"] / "vm/added.qcow2").touch()


def _remove(arena: Arena) -> None:
    (arena.outside["root"] / "pool/low.raw").unlink()


def _copy(arena: Arena) -> None:
    shutil.copyfile(arena.linked / "base.raw", arena.vm / "copy")


@pytest.mark.parametrize("deed", [_read, _write, _write_unseen, _give_away, _make, _remove, _copy])
def test_the_judge(deed: Callable[[Arena], None], arena: Arena) -> None:
    arena.reset(())
    assert not arena.judge.findings(arena.tenant)
    deed(arena)
    assert arena.judge.findings(arena.tenant)
    arena.reset(())
    arena.judge.begin()


def test_the_judge_looks_into_what_is_compressed(arena: Arena) -> None:
    arena.reset(())
    path = arena.vm / "one.qcow2"
    convert = ["qemu-img", "convert", "-c", "-O", "qcow2", arena.outside["root"] / "one.qcow2", path]
    subprocess.run(convert, check=True)
    os.chown(path, TENANT, TENANT)
    assert arena.judge.leaks_as_read(path, "qcow2")
    arena.judge.begin()
