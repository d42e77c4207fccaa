# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a task has come, in a file for who waits for it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import stat
import time
import typing as t

from ..sandbox import errors

_EVERY_SECONDS = 0.5
_LENGTH_MAX = 4096  # bytes; it has one short line


def check_place(path: str | None) -> None:
    """Raises ArgumentError when the file of a task could not be there, or would replace what is none: an image, by
    mistake, or a device."""
    if path is None:
        return
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise errors.ArgumentError(
            f"There is no directory for progress_file {errors.quote(path)}. Make it first.", "bad_progress_file"
        )
    with contextlib.suppress(OSError, ValueError):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LENGTH_MAX:
            raise errors.ArgumentError(
                f"progress_file {errors.quote(path)} is there, and is no such file. It would be replaced: name another "
                "one.",
                "bad_progress_file",
            )


class ProgressFile:
    """A file of one line of JSON, replaced as a whole each time, so that a reader never sees half of it.

    bytes_done, bytes_total; percent; bytes_per_second and seconds_left, None while nothing is known; finished.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._started = time.monotonic()
        self._last = 0.0
        self._done = self._total = 0

    def __enter__(self) -> ProgressFile:
        """Raises ArgumentError when the file cannot be written: before anything has begun."""
        try:
            self._write(finished=False)
        except OSError as error:
            raise errors.ArgumentError(
                f"progress_file {errors.quote(self._path or '')} cannot be written: {os.strerror(error.errno or 0)}. "
                "Name another one.",
                "bad_progress_file",
            ) from error
        return self

    def __exit__(self, kind: t.Any, *_exception: object) -> None:
        if kind is None:
            self._done = self._total
            self._try(finished=True)

    def step(self, done: int, total: int) -> None:
        """So many bytes of so many are done."""
        self._done, self._total = min(done, total), total
        now = time.monotonic()
        if now - self._last >= _EVERY_SECONDS:
            self._last = now
            self._try(finished=False)

    def parts(self, sizes: t.Sequence[int]) -> t.Iterator[t.Callable[[int, int], None] | None]:
        """For operations that follow one another, each of so many bytes: what each is to tell its steps to."""
        before = 0
        for size in sizes:
            yield functools.partial(self._part, before, size, sum(sizes)) if self._path else None
            before += size

    def _part(self, before: int, size: int, total: int, done: int, _size: int) -> None:
        self.step(before + min(done, size), total)

    def _try(self, finished: bool) -> None:
        with contextlib.suppress(OSError):  # what is under way is worth more than the news of it
            self._write(finished)

    def _write(self, finished: bool) -> None:
        """Raises OSError."""
        if self._path is None:
            return
        # By chance, so that what a killed task left behind is not in the way.
        draft = f"{self._path}.{os.urandom(4).hex()}.tmp"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(self._facts(finished), file)
                file.write("\n")
            os.replace(draft, self._path)
        except OSError:
            os.unlink(draft)
            raise

    def _facts(self, finished: bool) -> dict[str, t.Any]:
        seconds = time.monotonic() - self._started
        rate = int(self._done / seconds) if self._done and seconds > 0 else None
        percent = 100.0 if finished else round(100 * self._done / self._total, 2) if self._total else 0.0
        return {
            "bytes_done": self._done,
            "bytes_total": self._total,
            "percent": percent,
            "bytes_per_second": rate,
            "seconds_left": 0 if finished else round((self._total - self._done) / rate) if rate else None,
            "finished": finished,
        }
