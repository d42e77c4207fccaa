# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several images at a time."""

from __future__ import annotations

import importlib
import threading
import typing as t

import pytest

from tests.unit.plugins.running import PLUGINS

MEETING_SECONDS = 60  # a limit for a test that would hang


@pytest.fixture
def group(collection_tree: None) -> t.Any:
    return importlib.import_module(f"{PLUGINS}.module_utils._module.group")


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_results_come_in_order(group: t.Any, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(group, "AT_ONCE", at_once)
    assert group.for_each(lambda number: number * 2, range(50)) == list(range(0, 100, 2))
    assert group.for_each(lambda number: number, []) == []


def test_several_run_at_once(group: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "AT_ONCE", 3)
    meeting = threading.Barrier(3)
    assert sorted(group.for_each(lambda _number: meeting.wait(MEETING_SECONDS), range(3))) == [0, 1, 2]


@pytest.mark.parametrize("at_once", [1, 2])
def test_all_have_ended_when_a_failure_is_seen(group: t.Any, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(group, "AT_ONCE", at_once)
    begun: list[int] = []
    ended: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            ended.append(number)
            raise ValueError(f"{number} failed")
        ended.append(number)

    with pytest.raises(ValueError, match="1 failed"):
        group.for_each(work, range(1000))
    assert sorted(begun) == sorted(ended)
    if at_once == 1:
        assert begun == [0, 1]
