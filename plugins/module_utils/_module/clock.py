# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task of several guests has left of its time."""

from __future__ import annotations

import time

from ..sandbox.images.image import Limits, Report
from .group import LEAST_SECONDS


class Clock:
    """The time that is left for the task, and the reports of its guests."""

    def __init__(self, seconds: int | None) -> None:
        """seconds: that somebody gave for the task, None: nobody did."""
        self.reports: list[Report] = []
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        return None if self._end is None else max(self._end - time.monotonic(), LEAST_SECONDS)

    def limits(self) -> Limits:
        """Of the next guest."""
        return Limits.within(self.left())
