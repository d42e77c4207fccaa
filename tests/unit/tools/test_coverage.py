# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What `make coverage` says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sandbox.images.image import Image
from sandbox.images.snapshot_changes import create_snapshot
from sandbox.vmm import machine
from tests import coverage
from tests.support import native, native_runs, qemu


def test_a_row_has_shares_and_what_was_missed() -> None:
    counts = coverage.Counts({7: 2, 8: 0, 9: 1, 30: 0}, {(7, 0): 1, (7, 1): 0})
    assert counts.row("guest/a.c") == "  50.0 %   50.0 %  guest/a.c  8 30"
    assert coverage.Counts({1: 1}).row("guest/a.h") == " 100.0 %        -  guest/a.h"


def test_the_table_is_of_the_guest_alone_and_ends_with_the_whole() -> None:
    guest = coverage.TOP / "guest"
    found = {
        guest / "b.c": coverage.Counts({1: 1, 2: 0}, {(1, 0): 1, (1, 1): 3}),
        guest / "a.c": coverage.Counts({1: 1, 2: 5}, {(1, 0): 0, (1, 1): 3}),
        coverage.TOP / "tests/support/c/host.c": coverage.Counts({1: 0}),
    }
    assert coverage.table(found) == [
        " lines   branches",
        " 100.0 %   50.0 %  guest/a.c",
        "  50.0 %  100.0 %  guest/b.c  2",
        "  75.0 %   75.0 %  of 4 lines, 4 branches",
    ]


@pytest.mark.kvm
def test_a_native_run_leaves_what_the_guest_in_kvm_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image"
    qemu.create(str(image), "8M")
    qemu.io(str(image), "write -P 5 1M 300k")
    before, left = image.read_bytes(), []
    stand_in = native_runs.Machine()
    for run in (machine.run, stand_in.run):
        monkeypatch.setattr(machine, "run", run)
        image.write_bytes(before)
        with Image.open(str(image), writable=True) as opened:
            done = create_snapshot(opened, b"one", native.DATE)
        left.append((image.read_bytes(), done.id, list(done.now.snapshots), image.stat().st_blocks))
    assert left[0] == left[1]
    assert left[0][0] != before
    assert (stand_in.guests, done.report.layers) == (1, ("native",))


@pytest.mark.slow
def test_all_programs_are_counted_together(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The short form from end to end: it once failed because two rooms have files of one name."""
    found: dict[Path, coverage.Counts] = {}
    monkeypatch.setattr(sys, "argv", ["coverage", "--short"])
    monkeypatch.setattr(coverage, "table", lambda counts: [found.update(counts) or "the table"])
    assert coverage.main() == 0
    assert capfd.readouterr().out.endswith("the table\n")
    assert set(native.sources()) <= set(found)
    for room in ("qcow2", "vmdk"):
        assert any(found[coverage.TOP / "guest" / room / "header.c"].lines.values())
