# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a change says of how far it is: it never goes back, ends at all of it, and costs no ring of the doorbell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import recipes as images
from tests.support.native import BitmapAction, Guest, Request
from tests.unit.guest.conftest import MAKES
from tests.unit.guest.test_operations import OPERATIONS, REFUSED, run

CHANGES = ("WRITE", "ZERO", "DISCARD", "RESIZE", "RESERVE")
# A mapping of two tables, so that a verification has more than one thing to go over.
TABLES = images.Recipe(images.TINY, 512 * images.KILO, ("write -P 1 0 200k", "+one", "write -P 2 0 100k"))


def told(log: list[Request]) -> list[tuple[int, int]]:
    """(done, total), and held against what is always so."""
    found = [(request.offset, request.length) for request in log if request.operation == "PROGRESS"]
    assert found
    for (done, total), (more, after) in zip(found, found[1:]):
        assert done <= more, found
        assert after <= total, found
    assert all(done <= total for done, total in found)
    done, total = found[-1]
    assert done == total > 0
    return found


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize(
    ("name", "verb", "argument"), [each for each in OPERATIONS if each[:2] not in REFUSED], ids=str
)
def test_progress(
    make: Callable[[str], Guest], image: Callable[[str], Path], kind: str, name: str, verb: str, argument: bytes
) -> None:
    """Also where the counters were too small at first, and where the tables are gone over window by window."""
    guest = make(kind)
    run(guest, image(name), verb, argument)
    told(guest.log())


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("work") / "tables.qcow2"
    TABLES.make(path)
    return path


@pytest.mark.parametrize(("verb", "argument"), [("create", b"new"), ("apply", b"one"), ("delete", b"one")])
def test_all_that_is_gone_over_counts(guest: Guest, tables: Path, verb: str, argument: bytes) -> None:
    """The total is what was read of tables and blocks, and it is known before the first change: a host that is to
    foresee the end hears of it in front of that request."""
    run(guest, tables, verb, argument)
    log = guest.log()
    found = told(log)
    first = next(index for index, request in enumerate(log) if request.operation in CHANGES)
    before = [(request.offset, request.length) for request in log[:first] if request.operation == "PROGRESS"]
    assert before[-1][1] == found[-1][1]
    assert 0 < before[-1][0] < before[-1][1]
    # All that is told is told on the way, not in one leap at the end.
    steps = [after[0] - earlier[0] for earlier, after in zip(found, found[1:])]
    assert max(steps) <= found[-1][1] // 2


def test_nothing_is_told_twice_nor_in_a_ring_of_its_own(guest: Guest, tables: Path) -> None:
    run(guest, tables, "create", b"new")
    log = guest.log()
    told(log)
    for batch in range(log[-1].batch + 1):
        kinds = [request.operation for request in log if request.batch == batch]
        assert kinds.count("PROGRESS") <= 2  # what was known in front of the batch, and what came with it
        assert set(kinds) != {"PROGRESS"}


ACTIONS = [
    ("bitmaps", [BitmapAction("add")]),
    ("bitmaps", [BitmapAction("add", 512)]),
    ("coarse", [BitmapAction("add")]),
    ("bitmaps", [BitmapAction("remove_damaged")]),
]


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize(("name", "actions"), ACTIONS)
def test_bitmaps(
    make: Callable[[str], Guest], image: Callable[[str], Path], kind: str, name: str, actions: list[BitmapAction]
) -> None:
    guest = make(kind)
    guest.load(image(name))
    named = b"" if actions[0].kind == "remove_damaged" else b"fresh"
    assert guest.change_bitmap(named, *actions).refusal == ""
    told(guest.log())


def test_what_only_reads_tells_nothing(guest: Guest, tables: Path) -> None:
    guest.load(tables)
    guest.compare(b"one")
    guest.verify()
    guest.change_bitmap(b"new", BitmapAction("add"), dry_run=True)
    assert not [request for request in guest.log() if request.operation == "PROGRESS"]


def test_bits_that_are_merged(guest: Guest, image: Callable[[str], Path]) -> None:
    """They are something to go over behind the verification; here they change nothing, and nothing is written."""
    guest.load(image("tiny"))
    for name in (b"one", b"two"):
        assert guest.change_bitmap(name, BitmapAction("add", 512)).refusal == ""
    before = len(guest.log())
    assert not guest.change_bitmap(b"two", BitmapAction("merge", source=b"one")).result.changed
    log = guest.log()[before:]
    done, total = [(request.offset, request.length) for request in log if request.operation == "PROGRESS"][-1]
    assert 0 < done < total
