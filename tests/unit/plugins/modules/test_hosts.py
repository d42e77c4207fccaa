# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks on hosts as they are: locales, no home, no place for temporary files, no standard streams."""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest

from tests.unit.plugins.chains import overlay
from tests.unit.plugins.running import run_alone

LESS = ("HOME", "TMPDIR", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
HOSTS: dict[str, tuple[dict[str, str], str]] = {
    "LANG=C": ({"LANG": "C"}, ""),
    "a locale that is not there": ({"LC_ALL": "xx_YY.ISO-8859-1"}, ""),
    "nothing": ({}, ""),
    "no standard input": ({}, "<&-"),
    "no standard error": ({}, "2>&-"),
    "neither": ({}, "<&- 2>&-"),
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_task_on_such_a_host(host: str, tmp_path: pathlib.Path) -> None:
    """What is done is done, and what fails says why, with a name that is no ASCII."""
    more, redirections = HOSTS[host]
    environment = {name: value for name, value in os.environ.items() if name not in LESS}
    environment.update(more)
    overlay(tmp_path, "z\u00fcrich", None)
    for arguments, code in (
        ({"path": "z\u00fcrich", "name": "caf\u00e9"}, None),
        ({"path": "z\u00fcrich", "name": "caf\u00e9"}, None),
        ({"path": "z\u00fcrich", "name": "\u65e5", "state": "applied"}, "snapshot_not_found"),
        ({"path": "nothing\u00fc", "name": "n"}, "not_found"),
    ):
        answer = run_alone("qcow2_snapshot", tmp_path, arguments, environment=environment, redirections=redirections)
        assert answer.get("error_code") == code, answer
        assert answer["rc"] == (0 if code is None else 1)
        assert "Traceback" not in answer["stderr"]
    assert run_alone("qcow2_info", tmp_path, {"path": "z\u00fcrich"})["snapshots"][0]["name"] == "caf\u00e9"


IN_AN_OPTION = {"path": "a", "chain": True, "allowed_roots": ["\u65e5"]}


@pytest.mark.parametrize("arguments", [{"path": "z\u00fcrich"}, IN_AN_OPTION])
def test_a_name_that_the_locale_does_not_have(arguments: dict[str, t.Any], tmp_path: pathlib.Path) -> None:
    """It is not said to be wrong: with a locale that has it, as the message says, it is found."""
    for name in ("z\u00fcrich", "a", "\u65e5"):
        overlay(tmp_path, name, None)
    environment = {name: value for name, value in os.environ.items() if name not in LESS}
    answer = run_alone("qcow2_info", tmp_path, arguments, environment={**environment, **ASCII})
    assert answer["rc"] == 1
    assert "LC_ALL: C.UTF-8" in answer["msg"], answer
    environment.update(ASCII, LC_ALL="C.UTF-8")
    assert run_alone("qcow2_info", tmp_path, arguments, environment=environment)["rc"] == 0
