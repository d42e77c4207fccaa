# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a failure says of the images of a group."""

from __future__ import annotations

import typing as t

import pytest

from tests.unit.plugins.scripted import Script


@pytest.mark.parametrize(("count", "more"), [(10, ""), (11, ", and 1 more"), (5000, ", and 4990 more")])
@pytest.mark.parametrize("state", ["untouched", "undone"])
def test_a_message_names_ten_images_at_most(outcome: t.Any, errors: t.Any, count: int, more: str, state: str) -> None:
    error = outcome.GroupError(errors.AirlockError("It failed."), [(f"i{number}", state) for number in range(count)])
    names = ", ".join(f"i{number}" for number in range(10)) + more
    assert error.message.endswith(f"{names}.")
    assert error.message.count("i4") == 1
    assert len(error.outcomes) == count


def test_a_task_that_reads_does_not_say_that_it_changed_nothing(outcome: t.Any, errors: t.Any) -> None:
    images = [("a", "untouched"), ("b", "untouched")]
    cause = errors.AirlockError("It failed.")
    assert outcome.GroupError(cause, images, changes=False).message == "It failed."
    assert outcome.GroupError(cause, images).message == "It failed. No image was changed: a, b."


# ---- waiting for locks -----------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, outcome: t.Any) -> list[float]:
    """The time that has passed for the module, which passes by sleeping alone."""
    now = [0.0]
    monkeypatch.setattr(outcome.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(outcome.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


@pytest.mark.parametrize("module", ["qcow2_info", "qcow2_snapshot", "qcow2_bitmap"])
def test_an_image_that_is_let_go_in_time(
    run_module: t.Callable[..., dict[str, t.Any]], script: Script, errors: t.Any, clock: list[float], module: str
) -> None:
    writable = module != "qcow2_info"
    for _look in range(3):
        script.expect("open", "a", writable, False, gives=errors.ImageInUseError("a is in use."))
    script.expect("open", "a", writable, False)
    if module == "qcow2_info":
        script.expect("image_info", "a", gives=script.info())
        script.expect("list_bitmaps", "a", True, gives=script.with_bitmaps())
    elif module == "qcow2_snapshot":
        script.expect("list_snapshots", "a", gives=script.listed(script.snapshot(1, b"n")))
    else:
        script.expect("list_bitmaps", "a", gives=script.with_bitmaps(script.bitmap(b"n")))
    script.expect("close", "a")
    named = {"name": "n"} if writable else {}
    answer = run_module(module, path="a", lock_timeout=1, **named)
    assert (answer["rc"], answer["changed"]) == (0, False)
    assert clock == [pytest.approx(0.6)]


@pytest.mark.parametrize(("seconds", "looks"), [(0, 1), (1, 6)])
def test_an_image_that_is_not(
    run_module: t.Callable[..., dict[str, t.Any]],
    script: Script,
    errors: t.Any,
    clock: list[float],
    seconds: int,
    looks: int,
) -> None:
    for _look in range(looks):
        script.expect("open", "a", True, False, gives=errors.ImageInUseError("a is in use."))
    answer = run_module("qcow2_snapshot", path="a", name="n", lock_timeout=seconds)
    assert (answer["failed"], answer["error_code"]) == (True, "in_use")
    assert clock[0] <= seconds + 0.2


def test_what_was_begun_is_not_begun_anew(outcome: t.Any, errors: t.Any) -> None:
    held = errors.ImageInUseError("a is in use.")
    assert outcome._is_held(outcome.GroupError(held, [("a", "untouched")]))
    assert not outcome._is_held(outcome.GroupError(held, [("a", "untouched"), ("b", "undone")]))
    assert not outcome._is_held(outcome.GroupError(errors.ImageOpenError("No."), [("a", "untouched")]))
    held.modified = True
    assert not outcome._is_held(held)


def test_a_negative_time(run_module: t.Callable[..., dict[str, t.Any]], script: Script) -> None:
    answer = run_module("qcow2_snapshot", path="a", name="n", lock_timeout=-1)
    assert (answer["error_code"], "lock_timeout" in answer["msg"]) == ("bad_timeout", True)
