# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file that says how far a task has come: what is in the way of it, and what is not."""

from __future__ import annotations

import importlib
import json
import pathlib
import typing as t

import pytest

from tests.unit.plugins.running import PLUGINS


@pytest.fixture
def progress_file(collection_tree: None) -> t.Any:
    return importlib.import_module(f"{PLUGINS}.module_utils._module.progress_file")


@pytest.fixture
def place(progress_file: t.Any, tmp_path: pathlib.Path) -> t.Iterator[t.Any]:
    with progress_file.find_progress_file(str(tmp_path / "progress"), False) as found:
        yield found


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_draft_that_a_killed_task_left_behind(
    progress_file: t.Any, place: t.Any, tmp_path: pathlib.Path, kind: str
) -> None:
    """It is replaced, and nothing is left; what it leads to is not touched."""
    where, outside = tmp_path / "progress", tmp_path / "outside"
    left = tmp_path / ".progress.airlock"
    outside.write_text("precious")
    if kind == "file":
        left.write_text("half")
    else:
        left.symlink_to(outside)
    with progress_file.ProgressFile(place) as progress:
        progress.step(1, 2)
    assert json.loads(where.read_text())["finished"] is True
    assert sorted(tmp_path.iterdir()) == [outside, where]
    assert outside.read_text() == "precious"


def test_what_cannot_be_replaced_in_the_place_of_the_draft(
    progress_file: t.Any, place: t.Any, tmp_path: pathlib.Path, errors: t.Any
) -> None:
    (tmp_path / ".progress.airlock").mkdir()
    with pytest.raises(errors.ArgumentError, match="cannot be written"), progress_file.ProgressFile(place):
        pass
    assert not (tmp_path / "progress").exists()


def test_a_directory_that_is_exchanged_for_a_link(progress_file: t.Any, tmp_path: pathlib.Path) -> None:
    """The file stays where it was looked for."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    with (
        progress_file.find_progress_file(str(home / "progress"), False) as place,
        progress_file.ProgressFile(place) as progress,
    ):
        home.rename(tmp_path / "away")
        home.symlink_to(elsewhere)
        progress.step(1, 2)
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in (tmp_path / "away").iterdir()] == ["progress"]


def test_a_long_name(progress_file: t.Any, tmp_path: pathlib.Path) -> None:
    """The draft's name is not longer than a file system takes."""
    path = tmp_path / ("p" * 255)
    with progress_file.find_progress_file(str(path), False) as place, progress_file.ProgressFile(place):
        pass
    assert json.loads(path.read_text())["finished"] is True


def test_rows_side_by_side(progress_file: t.Any, place: t.Any, tmp_path: pathlib.Path) -> None:
    """Whatever an operation counts in, it is a part of what it stands for; one that is over is done."""
    with progress_file.ProgressFile(place) as progress:
        rows = [progress.parts([100, 300], 600), progress.parts([200], 600)]
        first, other = (next(row) for row in rows)
        for tell, done, total, at in ((first, 1, 4, 25), (other, 3, 6, 125), (first, 9, 4, 200), (first, 0, 0, 100)):
            tell(done, total)
            assert (progress._done, progress._total) == (at, 600)
        next(rows[0])(1, 3)
        assert progress._done == 300
    facts = json.loads((tmp_path / "progress").read_text())
    assert (facts["bytes_done"], facts["bytes_total"]) == (600, 600)


def test_nobody_listens_without_a_file(progress_file: t.Any) -> None:
    with progress_file.ProgressFile(None) as progress:
        assert list(progress.parts([1, 2])) == [None, None]
