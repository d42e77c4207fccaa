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
import threading
import time
import typing as t

from ..sandbox import errors
from ..sandbox.host.places import Place, find_place

_EVERY_SECONDS = 0.5
_LENGTH_MAX = 4096  # bytes; it has one short line
_NAME_KEPT = 200  # bytes of its name that stand in the draft's: no file system has names of more than 255


def find_progress_file(path: str | None, follow_links: bool) -> Place | None:
    """Where the file of a task will be; the caller closes it. Raises ArgumentError when it could not be there, or would
    replace what is none: an image, by mistake, or a device."""
    if path is None:
        return None
    try:
        place = find_place(path, follow_links)
    except errors.ImageOpenError as error:
        advice = error.message if error.code == "unsafe_link" else "Make it first."
        raise errors.ArgumentError(
            f"There is no directory for progress_file {errors.quote(path)}. {advice}", "bad_progress_file"
        ) from error
    if place.there:
        status = place.status
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LENGTH_MAX:
            place.close()
            raise errors.ArgumentError(
                f"progress_file {errors.quote(path)} is there, and is no such file. It would be replaced: name another "
                "one.",
                "bad_progress_file",
            )
    return place


class ProgressFile:
    """A file of one line of JSON, replaced as a whole each time, so that a reader never sees half of it.

    bytes_done, bytes_total; percent; bytes_per_second and seconds_left, None while nothing is known; finished.
    """

    def __init__(self, place: Place | None) -> None:
        """place: stays the caller's. None: nothing is written."""
        self._place = place
        self._started = time.monotonic()
        self._last = 0.0
        self._done = self._total = 0
        self._parts: list[int] = []  # bytes that are done of each
        self._lock = threading.RLock()  # images of a group are changed side by side

    def __enter__(self) -> ProgressFile:
        """Raises ArgumentError when the file cannot be written: before anything has begun."""
        try:
            self._write(finished=False)
        except OSError as error:
            raise errors.ArgumentError(
                f"progress_file {errors.quote(self._place.path if self._place else '')} cannot be written: "
                f"{os.strerror(error.errno or 0)}. Name another one.",
                "bad_progress_file",
            ) from error
        return self

    def __exit__(self, kind: t.Any, *_exception: object) -> None:
        if kind is None:
            self._done = self._total
            self._try(finished=True)

    def step(self, done: int, total: int) -> None:
        """So many bytes of so many are done."""
        with self._lock:
            self._done, self._total = min(done, total), total
            now = time.monotonic()
            if now - self._last >= _EVERY_SECONDS:
                self._last = now
                self._try(finished=False)

    def parts(
        self, sizes: t.Sequence[int], total: int | None = None
    ) -> t.Iterator[t.Callable[[int, int], None] | None]:
        """For operations that follow one another: what each is to tell its steps to, in whatever it counts.

        sizes: what each of them stands for, bytes. total: of all such rows that go on side by side, None: it is the
        only one. To ask for the next one says that the one before is done.
        """
        whole = sum(sizes) if total is None else total
        for size in sizes:
            with self._lock:
                index = len(self._parts)
                self._parts.append(0)
            yield functools.partial(self._part, index, size, whole) if self._place else None
            with self._lock:
                self._parts[index] = size

    def _part(self, index: int, size: int, whole: int, done: int, total: int) -> None:
        with self._lock:
            self._parts[index] = size * min(done, total) // total if total else 0
            self.step(sum(self._parts), whole)

    def _try(self, finished: bool) -> None:
        with contextlib.suppress(OSError):  # what is under way is worth more than the news of it
            self._write(finished)

    def _write(self, finished: bool) -> None:
        """Raises OSError."""
        if self._place is None:
            return
        home, name = self._place.directory.descriptor, self._place.name
        # One name, so that what a killed task has left is replaced by the next one.
        draft = b"." + name[:_NAME_KEPT] + b".airlock"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=home)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(draft, flags, 0o644, dir_fd=home)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(self._facts(finished), file)
                file.write("\n")
            os.replace(draft, name, src_dir_fd=home, dst_dir_fd=home)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(draft, dir_fd=home)
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
