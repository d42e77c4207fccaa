# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a failure says of the images of a group."""

from __future__ import annotations

import typing as t

import pytest


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
