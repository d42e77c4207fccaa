# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks on chains with fewer descriptors than they need: they say so before they change anything."""

from __future__ import annotations

import pathlib
import re
import typing as t

import pytest

from tests.unit.plugins.chains import overlay
from tests.unit.plugins.running import run_alone

TASKS: dict[str, dict[str, t.Any]] = {
    "qcow2_commit": {"path": "top", "progress_file": "progress"},
    "qcow2_chain": {"layers": ["base", "top", "new", "newer"], "method": "commit", "drop": True},
}


@pytest.mark.parametrize("module", TASKS)
def test_a_task_says_how_many_it_needs(module: str, tmp_path: pathlib.Path) -> None:
    """What the message says is done until the task is; and then, to its end."""
    home = tmp_path / "home"
    home.mkdir()
    overlay(home, "base", None, "write -P 1 0 700k")
    overlay(home, "middle", "base", "write -P 2 512k 64k")
    overlay(home, "top", "base" if module == "qcow2_commit" else "middle", "write -P 4 1M 900k")
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    limit, messages = 20, []
    while True:
        answer = run_alone(module, home, TASKS[module], limit=limit)
        if not answer.get("failed"):
            break
        assert {path.name: path.read_bytes() for path in home.iterdir()} == before
        assert answer["error_code"] == "host", answer
        found = re.search(rf"may have {limit}\. Nothing was changed\. .* to at least (\d+);", answer["msg"])
        assert found, answer
        assert int(found.group(1)) > limit
        limit = int(found.group(1))
        messages.append(answer["msg"])
    assert "layers is open" in messages[-1], "the last one counts what the whole task takes"
    assert answer["changed"]
    assert (home / "top").read_bytes() != before["top"]
