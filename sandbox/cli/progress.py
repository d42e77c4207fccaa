# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a command has come: qemu-img's line, and on a terminal a bar with the rate and the time that is left."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from ..facts.listing import format_size
from .common import say

if t.TYPE_CHECKING:
    from ..images.image import Progress as Listener

_BAR = 30  # characters
_WIDTH = 79  # of the line with a bar: on a narrower terminal each would begin a new one; 0 columns: not known
_STEP = 1.0  # of a hundred: qemu-img's lines are no closer


class Progress:
    """One line that is written over and over, and ends with the block. shown: whether there is one."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self._bar = shown and os.isatty(1) and os.get_terminal_size(1).columns not in range(1, _WIDTH)
        self._last = 0.0
        self._started = time.monotonic()

    def __enter__(self) -> Progress:
        if self.shown:
            self._print(0, 1)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.shown:
            _tell(b"\n")

    @property
    def listener(self) -> Listener:
        """What an operation tells; None: nobody looks."""
        return self.step if self.shown else None

    def step(self, done: int, total: int) -> None:
        """So many bytes of so many are done."""
        percent = _percent(done, total)
        if self.shown and (percent > self._last + _STEP or percent >= 100):
            self._last = percent
            self._print(done, total)

    def _print(self, done: int, total: int) -> None:
        line = gauge(done, total, time.monotonic() - self._started) if self._bar else "    "
        _tell(f"{line}({_percent(done, total):.2f}/100%)\r".encode())


def _tell(text: bytes) -> None:
    """What is under way goes on when nobody listens."""
    with contextlib.suppress(OSError):
        say(text)


def gauge(done: int, total: int, seconds: float) -> str:
    """What stands in front of the percentage on a terminal, and behind what was there before: always as long.

    done, total: bytes. seconds: that it took.
    """
    filled = int(_percent(done, total) * _BAR / 100)
    rate = left = ""
    if done and total > 1 and seconds > 0:
        rate = f"{format_size(int(done / seconds))}/s"
        left = f"{_clock((total - done) * seconds / done)} left"
    return f"    [{'=' * filled:{_BAR}}] {rate:>13} {left:>14} "


def _percent(done: int, total: int) -> float:
    return 100.0 * min(done, total) / total if total > 0 else 100.0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
