# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks of qcow2_chain on real images."""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest

from tests.unit.plugins.chains import Task, overlay, shown

Run = t.Callable[..., dict[str, t.Any]]


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    """base <- a <- b <- top: b has most."""
    overlay(tmp_path, "base", None, "write -P 1 0 700k")
    overlay(tmp_path, "a", "base", "write -P 2 512k 64k")
    overlay(tmp_path, "b", "a", "write -P 3 1M 1M", "write -z 0 64k")
    overlay(tmp_path, "top", "b", "write -P 4 1M 900k", "write -P 5 3M 64k")
    return tmp_path


@pytest.fixture
def task(run_module: Run, home: pathlib.Path) -> Task:
    """The task in check mode, for real, and both again: the third and fourth change nothing, and the top shows the
    same. Returns the answer of the real run, with that of check mode as `foreseen`."""

    def run_task(*layers: str, **arguments: t.Any) -> dict[str, t.Any]:
        paths = [str(home / layer) for layer in layers]
        top = next(layer for layer in reversed(layers) if (home / layer).exists())
        content = shown(home / top)
        files = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
        answers = []
        for number in range(4):
            check = number in (0, 2)
            answers.append(run_module("qcow2_chain", layers=paths, check=check, diff=True, **arguments))
            assert answers[-1]["rc"] == 0, answers[-1]
            if number == 0:
                assert {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()} == files
        foreseen, done, *again = answers
        assert [foreseen["changed"], done["changed"], *(each["changed"] for each in again)] == [
            True,
            True,
            False,
            False,
        ]
        assert foreseen["plan"] == done["plan"]
        assert foreseen["diff"] == done["diff"]
        assert [each["plan"] for each in again] == [[], []]
        assert again[1]["diff"]["before"] == again[1]["diff"]["after"]
        for one, other in zip(foreseen["chain"], done["chain"]):
            assert {**one, "file_size": 0} == {**other, "file_size": 0}
        assert again[1]["chain"] == done["chain"]
        assert [os.path.basename(each["path"]) for each in done["chain"]] == list(layers)[::-1]
        assert shown(home / layers[-1]) == content
        return {**done, "foreseen": foreseen}

    return run_task


@pytest.fixture
def refused(run_module: Run, home: pathlib.Path) -> Task:
    """A task that fails and touches nothing."""

    def run_task(*layers: str, **arguments: t.Any) -> dict[str, t.Any]:
        files = {path.name: path.read_bytes() for path in home.rglob("*") if path.is_file()}
        answer = run_module("qcow2_chain", layers=[str(home / layer) for layer in layers], **arguments)
        assert answer["rc"] == 1, answer
        assert {path.name: path.read_bytes() for path in home.rglob("*") if path.is_file()} == files
        return answer

    return run_task
