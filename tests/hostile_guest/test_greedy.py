# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that asks for memory: it gets it once, no more than its files account for and the limit allows, and not when
it has written something, whatever it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from guests import program

from sandbox.images.image import Image, run_guest
from sandbox.vmm import machine, memory

MIB = 1 << 20


class GaveUpError(Exception):
    """The guest has, for lack of memory."""


@pytest.fixture
def greedy(tmp_path, monkeypatch):
    """greedy(operation, held, limit) -> the sizes of memory of its runs, and what it took at most, in MiB."""
    reports = []
    real = machine.run

    def run(what):
        answer = real(what)
        reports.append(answer.report)
        return answer

    def attack(operation, held, limit):
        path = tmp_path / "image"
        path.touch()
        with open(path, "r+b") as file:
            file.truncate(1 << 40)
        monkeypatch.setattr(machine, "run", run)
        monkeypatch.setattr(memory, "held", lambda _disk: held)
        monkeypatch.setattr(memory, "_available", lambda _page: 1 << 40)
        memory.set_limit(limit)
        writable = (0,) if operation == "snapshot_create" else ()
        with Image.open(str(path), writable=True) as image, pytest.raises(GaveUpError):
            run_guest([image], program("greedy"), operation, {}, None, GaveUpError, writable=writable)
        memory.set_limit(0)
        # The pages that a child shares with its parent count as its own.
        shared = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        peak = max(report.peak_memory for report in reports) - shared
        return [report.memory // MIB for report in reports], peak // MIB

    return attack


def test_it_gets_what_its_file_accounts_for(greedy):
    sizes, taken = greedy("snapshot_list", held=512 * MIB, limit=1 << 30)
    assert sizes == [128, 128 + 64]
    assert taken < 128 + 64 + 16


def test_a_file_that_holds_nothing_gives_it_nothing(greedy):
    sizes, taken = greedy("snapshot_list", held=4096, limit=1 << 30)
    assert sizes == [128, 128]
    assert taken < 128 + 16


def test_the_limit_holds(greedy):
    sizes, _taken = greedy("snapshot_list", held=1 << 40, limit=200 * MIB)
    assert sizes == [128, 200]


def test_who_has_written_gets_nothing(greedy):
    sizes, _taken = greedy("snapshot_create", held=1 << 40, limit=1 << 30)
    assert sizes == [128]
