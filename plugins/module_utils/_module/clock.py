# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task of several guests has left of its time."""

from __future__ import annotations

import time

from ..sandbox import errors
from ..sandbox.images.image import Limits, Report
from .group import LEAST_SECONDS

_HOST_SECONDS = 3600  # for what no guest does, where nobody gave a time


class Clock:
    """The time that is left for the task, and the reports of its guests."""

    def __init__(self, seconds: int | None) -> None:
        """seconds: that somebody gave for the task, None: nobody did."""
        self.reports: list[Report] = []
        self._seconds = _HOST_SECONDS if seconds is None else seconds
        self._is_given = seconds is not None
        self._end = time.monotonic() + self._seconds

    def left(self) -> float | None:
        return max(self._end - time.monotonic(), LEAST_SECONDS) if self._is_given else None

    def limits(self) -> Limits:
        """Of the next guest."""
        return Limits.within(self.left())

    def check(self) -> None:
        """For work that no guest does. Raises TimeLimitError when no time is left."""
        if time.monotonic() >= self._end:
            from ..sandbox.words import advice  # words, and there is time as a rule

            raise errors.TimeLimitError(
                f"The task did not finish within {self._seconds} seconds and was stopped. {advice.say('more_time')}"
            )
