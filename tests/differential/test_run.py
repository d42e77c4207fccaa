# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each random family is run by one command, and what fails names the one that runs it again."""

from __future__ import annotations

import pathlib
import shlex
import subprocess
import sys
from typing import Any

import pytest

from tests.differential.run import main, parse_arguments
from tests.support import commits, rebases, vmdk_chains
from tests.support.bitmap_chains import BitmapArena, BitmapTally
from tests.support.bitmap_drivers import CliBitmaps, PythonBitmaps
from tests.support.bitmap_steps import make_bitmap_chain
from tests.support.cells import Cell
from tests.support.chains import Arena, Tally
from tests.support.drivers import CliDriver, PythonDriver, Result
from tests.support.families import KINDS, SCENARIOS, agree_on_seed, agree_on_steps
from tests.support.steps import make_chain

TOP = pathlib.Path(__file__).parents[2]
SEEDS = {**dict.fromkeys(KINDS, 3), "rebase": 1, "rebase-compressed": 1, "vmdk": 2}  # whose operation changes something
COMMAND = "python -m tests.differential.run "


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Ours says that it has done everything, and does nothing."""

    def only_foresees(holder: Any, name: str) -> None:
        real = getattr(holder, name)
        monkeypatch.setattr(holder, name, lambda one, two, *_more, **_named: real(one, two, dry_run=True))

    for module in (commits, rebases, vmdk_chains):
        only_foresees(module, "by_airlock")
    monkeypatch.setattr(vmdk_chains, "rebase", lambda *_unused: None)
    monkeypatch.setattr(PythonDriver, "run", lambda *_unused: Result(0, ""))
    bitmaps = PythonBitmaps.run
    monkeypatch.setattr(PythonBitmaps, "run", lambda self, path, call, dry_run=False: bitmaps(self, path, call, True))
    return monkeypatch


def again(text: str) -> list[str]:
    """The arguments of the command that a failure names."""
    (line,) = (line for line in text.splitlines() if line.startswith("again: "))
    assert line.startswith(f"again: {COMMAND}")
    return shlex.split(line)[4:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_run_again(
    kind: str, idle: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that is printed fails as well, and with what is sound it finds no mismatch."""
    seed = str(SEEDS[kind])
    no_reduce = [] if kind in SCENARIOS else ["--no-reduce"]
    assert main(["--kind", kind, "--seed", seed, "--directory", str(tmp_path), *no_reduce]) == 1
    told = capsys.readouterr().out
    arguments = again(told)
    assert arguments == ["--kind", kind, "--seed", seed, "--directory", str(tmp_path)]
    assert "Traceback" not in told
    (place,) = (line[len("images: ") :] for line in told.splitlines() if line.startswith("images: "))
    assert list(pathlib.Path(place).iterdir())
    assert main([*arguments, *no_reduce]) == 1
    assert again(capsys.readouterr().out) == arguments
    left = sorted(tmp_path.iterdir())
    idle.undo()
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 chains, ")
    assert "mismatches: 0\n" in out
    assert "compared: none" not in out
    assert "outcomes: none" not in out
    assert sorted(tmp_path.iterdir()) == left


def test_as_a_program() -> None:
    """Two seeds, in a process of its own."""
    arguments = [*shlex.split(COMMAND)[1:], "--kind", "vmdk-rebase", "--seed", "3", "--count", "2"]
    done = subprocess.run([sys.executable, *arguments], check=False, cwd=TOP, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 chains, ")


def test_what_raises_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(*_unused: object, **_named: object) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(commits, "by_airlock", breaks)
    monkeypatch.setattr(PythonDriver, "run", breaks)
    for kind in ("commit", "snapshot"):
        assert main(["--kind", kind, "--seed", "3", "--directory", str(tmp_path)]) == 1
        told = capsys.readouterr().out
        assert "KeyError: 'broken'" in told
        assert again(told)[:4] == ["--kind", kind, "--seed", "3"]


@pytest.mark.usefixtures("idle")
def test_tests_name_the_command(tmp_path: pathlib.Path) -> None:
    directory = str(tmp_path / "arena")
    with pytest.raises(AssertionError) as caught:
        agree_on_seed("commit", SCENARIOS["commit"].arena(directory), 3)
    assert again(str(caught.value)) == ["--kind", "commit", "--seed", "3"]
    with pytest.raises(AssertionError) as caught:
        agree_on_steps(Arena(directory, PythonDriver(), Tally()), make_chain(3))
    assert again(str(caught.value)) == ["--kind", "snapshot", "--seed", "3"]
    with pytest.raises(AssertionError) as caught:
        agree_on_steps(BitmapArena(directory, PythonBitmaps(), BitmapTally()), make_bitmap_chain(3))
    assert again(str(caught.value)) == ["--kind", "bitmap", "--seed", "3"]


def test_the_command_has_all_that_matters(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """A driver, a cell and verbs that are not the usual ones."""
    monkeypatch.setattr(CliDriver, "run", lambda *_unused: Result(0, ""))
    directory, cell = str(tmp_path / "arena"), Cell(compat="0.10", cluster_bits=9, size=1 << 20)
    verbs = frozenset({"create", "delete"})
    with pytest.raises(AssertionError) as caught:
        agree_on_steps(Arena(directory, CliDriver(), Tally(), verbs), make_chain(3, cell))
    options = parse_arguments(again(str(caught.value)))
    assert (options.kind, options.seed, options.driver) == ("snapshot", 3, "cli")
    assert (options.cell, options.verbs) == (cell, verbs)
    monkeypatch.setattr(CliBitmaps, "run", PythonBitmaps.run)  # whose words are others
    with pytest.raises(AssertionError) as caught:
        agree_on_steps(BitmapArena(directory, CliBitmaps(), BitmapTally()), make_bitmap_chain(3, cell))
    options = parse_arguments(again(str(caught.value)))
    assert (options.kind, options.seed, options.driver, options.cell) == ("bitmap", 3, "cli", cell)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "the following arguments are required: --kind"),
        ("--kind chain", "invalid choice: 'chain'"),
        ("--kind commit --driver cli", "--driver is only for --kind snapshot or bitmap, not for commit"),
        ("--kind vmdk --cell default", "--cell is only for --kind snapshot or bitmap, not for vmdk"),
        ("--kind rebase --axes", "--axes is only for --kind snapshot or bitmap, not for rebase"),
        ("--kind rebase --no-reduce", "--no-reduce is only for --kind snapshot or bitmap, not for rebase"),
        ("--kind bitmap --verbs create", "--verbs is only for --kind snapshot, not for bitmap"),
        ("--kind snapshot --verbs make", "'make' is not some of apply,create,delete"),
        ("--kind snapshot --axes --cell default", "not allowed with argument --axes"),
        ("--kind snapshot --cell colour=red", "a cell has no 'colour'"),
        ("--kind snapshot --count 0", "'0' is not a number from 1"),
        ("--kind snapshot --directory /none/at/all", "there is no directory '/none/at/all'"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
