# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task of several guests has left of its time."""

from __future__ import annotations

import time

from ..sandbox.images.image import Report
from .group import LEAST_SECONDS


class Clock:
    """The time that is left for the task, and the reports of its guests."""

    def __init__(self, seconds: int) -> None:
        self.reports: list[Report] = []
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return max(self._end - time.monotonic(), LEAST_SECONDS)
