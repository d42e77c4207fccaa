# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file that says how far a task has come: what is in the way of it, and what is not."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import typing as t

import pytest

from tests.unit.plugins.running import PLUGINS


@pytest.fixture
def progress_file(collection_tree: None) -> t.Any:
    return importlib.import_module(f"{PLUGINS}.module_utils._module.progress_file")


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_draft_that_a_killed_task_left_behind(progress_file: t.Any, tmp_path: pathlib.Path, kind: str) -> None:
    """Its process may have had the number of this one."""
    where, outside = tmp_path / "progress", tmp_path / "outside"
    left = tmp_path / f"progress.{os.getpid()}.tmp"
    if kind == "file":
        left.write_text("half")
    else:
        left.symlink_to(outside)
    with progress_file.ProgressFile(str(where)) as progress:
        progress.step(1, 2)
    assert json.loads(where.read_text())["finished"] is True
    assert sorted(tmp_path.iterdir()) == [where, left]
    assert not outside.exists()


def test_a_link_in_the_place_of_the_draft(
    progress_file: t.Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, errors: t.Any
) -> None:
    """It is not followed, should somebody guess the name."""
    outside = tmp_path / "outside"
    (tmp_path / "progress.00000000.tmp").symlink_to(outside)
    monkeypatch.setattr(progress_file.os, "urandom", bytes)
    with pytest.raises(errors.ArgumentError, match="File exists"), progress_file.ProgressFile(f"{tmp_path}/progress"):
        pass
    assert not outside.exists()
