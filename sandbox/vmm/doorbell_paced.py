# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serving the doorbell of a guest that writes no faster than it may, or whose flushes go nowhere.

Runs in the jailed child, loaded before the fork.
"""

from __future__ import annotations

import functools
import time
import typing as t

from .doorbell_rules import File
from .doorbell_writes import ChangingServer

_CLOCK_NANOSLEEP = 230  # the system call by its number: the C library's sleep() is another one on every system
_SLICE_SECONDS = 0.1
_STEP_MIN, _STEP_MAX = 4096, 64 << 20


class Pace(t.NamedTuple):
    """How a guest may write. rate: bytes a second that are written and copied, 0: any. flushes: False: its requests for
    a flush do nothing."""

    rate: int = 0
    flushes: bool = True

    def server(self, **more: t.Any) -> t.Callable[..., PacedServer]:
        """What makes the server. more: for ChangingServer."""
        return functools.partial(PacedServer, rate=self.rate, flushes=self.flushes, **more)


class PacedServer(ChangingServer):
    """Serves a guest that writes. What is written and copied goes at a rate, as ever on average of a slice of time."""

    def __init__(
        self,
        memory: t.Any,
        files: t.Sequence[File],
        byte_budget: int,
        progress: t.Callable[[int, int], None] | None = None,
        rate: int = 0,
        flushes: bool = True,
        **more: t.Any,
    ) -> None:
        """rate: bytes a second, 0: any. flushes: False: flushing does nothing."""
        self._rate = rate
        self._flushes = flushes
        self._due = 0.0  # until then the rate is kept to with what has gone so far
        self._step = min(max(int(rate * _SLICE_SECONDS), _STEP_MIN), _STEP_MAX) if rate else _STEP_MAX
        super().__init__(memory, files, byte_budget, progress, **more)
        # Made now: nothing may fail later.
        self._duration = self._ffi.new("int64_t[2]")  # struct timespec
        self._arguments = [self._ffi.cast("long", number) for number in (time.CLOCK_MONOTONIC, 0)]

    def _write(self, disk: int, offset: int, length: int, memory: int, *unused: int) -> int:
        done = super()._write(disk, offset, length, memory, *unused)
        self._pace(done)
        return done

    def _copy_range(self, source: int, source_offset: int, target: int, offset: int, length: int) -> int:
        moved = 0
        while moved < length:
            step = min(self._step, length - moved)
            done = super()._copy_range(source, source_offset + moved, target, offset + moved, step)
            if done < 0:
                return done
            moved += done
            self._pace(done)
            if done < step:
                break
        return moved

    def _write_behind(self, disk: int, moved: int) -> None:
        if self._flushes:
            super()._write_behind(disk, moved)

    def _flush(self, disk: int, *unused: int) -> int:
        return super()._flush(disk, *unused) if self._flushes else 0

    def _pace(self, moved: int) -> None:
        """Sleeps until so many more bytes were not too fast."""
        if not self._rate or moved <= 0:
            return
        now = time.monotonic()
        self._due = max(self._due, now - _SLICE_SECONDS) + moved / self._rate
        left = self._due - now
        if left > 0:
            self._duration[0] = int(left)
            self._duration[1] = int(left % 1 * 1e9)
            self._library.syscall(_CLOCK_NANOSLEEP, *self._arguments, self._duration, self._ffi.NULL)
