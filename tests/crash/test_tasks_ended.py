# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A task on a group of images that is told to end by SIGTERM, SIGHUP or SIGINT at any moment of its changes: it undoes
them all, says so, and leaves no guest behind.

AIRLOCK_LONG=1 ends at every moment, not at some of them, and by each signal.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import shutil
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.crash.cut import LONG
from tests.crash.killed import killing
from tests.crash.test_tasks_killed import in_process
from tests.support import qemu
from tests.unit.plugins.running import PLUGINS

GROUP = ("a", "b", "c")
FAILED, DONE = 3, 4


@pytest.fixture
def images(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    """Three images with a snapshot and data behind it."""
    first = tmp_path / GROUP[0]
    qemu.create(str(first), "4M", "cluster_size=4096")
    qemu.io(str(first), "write -P 1 0 1M")
    qemu.must(["qemu-img", "snapshot", "-c", "old", str(first)])
    qemu.io(str(first), "write -P 2 512k 1M")
    return [first, *(pathlib.Path(shutil.copy(first, tmp_path / name)) for name in GROUP[1:])]


def ended(result: pathlib.Path, code: int) -> Callable[..., None]:
    """Stands in for fail_json() and exit_json(): by then every guest has been reaped."""

    def end(**answer: Any) -> None:
        result.write_text(json.dumps(answer, default=str))
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            os._exit(code)
        os._exit(1)

    return end


def task_on(images: list[pathlib.Path], module: Any, result: pathlib.Path, **given: Any) -> Callable[[], None]:
    options = importlib.import_module(f"{PLUGINS}.modules.qcow2_snapshot").ARGUMENTS
    params = {name: option.get("default") for name, option in options.items()}
    answers = {"fail_json": ended(result, FAILED), "exit_json": ended(result, DONE)}
    fake = SimpleNamespace(
        params={**params, "path": [str(path) for path in images], **given},
        check_mode=False,
        _diff=False,
        fault=None,
        get_ready=lambda: None,
        **answers,
    )
    return lambda: module("_module.outcome").run_module(fake, module("_module.snapshot.flow").snapshot_flow)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if LONG else [])])
@pytest.mark.parametrize("state", ["present", "applied", "absent"])
def test_group(
    number: int,
    state: str,
    module: Any,
    images: list[pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = images[0].read_bytes()
    result = tmp_path / "result"
    name = "new" if state == "present" else "old"
    task = task_on(images, module, result, name=name, state=state)
    with killing(-1, monkeypatch, module) as nobody:
        assert os.waitstatus_to_exitcode(in_process(task, nobody)) == DONE
    assert all(path.read_bytes() != before for path in images)
    for path in images:
        path.write_bytes(before)
    assert nobody.moments > 3 * len(images)
    step = 1 if LONG else max(1, nobody.moments // 4)
    # The last image's last request: all of it is done, but for being kept.
    for moment in sorted({*range(0, nobody.moments, step), nobody.moments - 1}):
        with killing(moment, monkeypatch, module, number) as killer:
            code = os.waitstatus_to_exitcode(in_process(task, killer))
        if not killer.killed:  # one run has an exit or two less than another: how much is done at once varies
            assert code == DONE, moment
            for path in images:
                path.write_bytes(before)
            continue
        assert code == FAILED, moment
        answer = json.loads(result.read_text())
        assert answer["error_code"] == "terminated"
        assert signal.Signals(number).name in answer["msg"]
        assert {outcome["outcome"] for outcome in answer["outcomes"]} <= {"undone", "untouched"}
        assert [path.read_bytes() == before for path in images] == [True] * len(images), moment
