# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""progress_file of the modules that change images beside commit and chain, with real guests."""

from __future__ import annotations

import itertools
import json
import pathlib
import subprocess
import typing as t

import pytest

pytestmark = pytest.mark.kvm

Run = t.Callable[..., dict[str, t.Any]]
TASKS: dict[str, dict[str, t.Any]] = {
    "create": {"module": "qcow2_snapshot", "name": "new"},
    "apply": {"module": "qcow2_snapshot", "name": "old", "state": "applied"},
    "delete": {"module": "qcow2_snapshot", "name": "old", "state": "absent"},
    "retention": {"module": "qcow2_snapshot", "name": "o-3", "retention": {"prefix": "o", "keep": 1}},
    "add": {"module": "qcow2_bitmap", "name": "b"},
    "remove": {"module": "qcow2_bitmap", "name": "there", "state": "absent"},
}
WITH_BITMAP = ("remove",)


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two images, with snapshots that one was written to since; and one with a bitmap."""
    for name in ("a", "c", "marked"):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", name, "4M"], cwd=tmp_path, check=True)
    for name in ("a", "c"):
        for snapshot in ("old", "o-2"):
            subprocess.run(["qemu-img", "snapshot", "-c", snapshot, name], cwd=tmp_path, check=True)
        subprocess.run(["qemu-io", "-c", "write 0 1M", name], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run(["qemu-img", "bitmap", "--add", "marked", "there"], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_changes(name: str, run_module: Run, home: pathlib.Path) -> None:
    """Each image counts for as much as its file is long, for each of its operations."""
    task = dict(TASKS[name])
    module = task.pop("module")
    paths = ["marked"] if name in WITH_BITMAP else ["a", "c"]
    sizes = sum((home / path).stat().st_size for path in paths)
    where = home / "progress"
    done = run_module(module, path=[str(home / path) for path in paths], progress_file=str(where), **task)
    assert (done["rc"], done["changed"]) == (0, True), done
    facts = json.loads(where.read_text())
    operations = 3 if name == "retention" else 1
    assert facts["bytes_done"] == facts["bytes_total"] == operations * sizes
    assert (facts["finished"], facts["percent"], facts["seconds_left"]) == (True, 100.0, 0)


@pytest.mark.parametrize(("name", "check"), [*itertools.product(TASKS, [True]), ("create", False)])
def test_a_task_that_changes_nothing(name: str, check: bool, run_module: Run, home: pathlib.Path) -> None:
    """Neither in check mode nor where all is as it should be; and the file is looked at all the same."""
    task = dict(TASKS[name])
    module = task.pop("module")
    image = str(home / ("marked" if name in WITH_BITMAP else "a"))
    if not check:
        task["name"] = "old"
    before = sorted(home.iterdir())
    done = run_module(module, path=image, check=check, progress_file=str(home / "progress"), **task)
    assert done["changed"] == check, done
    for wrong in (home / "c", home / "nowhere/file"):
        answer = run_module(module, path=image, check=check, progress_file=str(wrong), **task)
        assert answer["error_code"] == "bad_progress_file"
    assert sorted(home.iterdir()) == before


def test_a_task_that_fails_is_not_finished(run_module: Run, home: pathlib.Path) -> None:
    """The second image of the group cannot be changed."""
    subprocess.run(["qemu-img", "bitmap", "--add", "c", "there"], cwd=home, check=True)
    paths = [str(home / name) for name in ("a", "c")]
    where = home / "progress"
    answer = run_module("qcow2_snapshot", path=paths, name="old", state="applied", progress_file=str(where))
    assert answer["error_code"] == "has_bitmaps"
    facts = json.loads(where.read_text())
    assert not facts["finished"]
    assert facts["bytes_done"] <= facts["bytes_total"]
