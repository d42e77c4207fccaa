# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images of one task: opened and locked together, worked on one by one, closed together."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ..sandbox import errors, operations
from .outcome import UNTOUCHED, GroupError

LEAST_SECONDS = 0.001


class Meter:
    """What all guests of one task have cost."""

    def __init__(self) -> None:
        self._layers: tuple[str, ...] = ()
        self._exits = 0
        self._milliseconds = 0.0

    def add(self, report: operations.Report) -> None:
        """Counts one guest."""
        self._layers = tuple(report.layers)
        self._exits += report.exits
        self._milliseconds += report.milliseconds

    def summary(self) -> dict[str, t.Any]:
        """RETURN's `sandbox`."""
        return {
            "layers": list(self._layers),
            "exits": self._exits,
            "milliseconds": round(self._milliseconds, 3),
        }


class OpenImage:
    """One image of the task, with the time that is left for it."""

    def __init__(self, image: operations.Image, seconds: float, meter: Meter) -> None:
        self.image = image
        self._seconds = seconds
        self._meter = meter

    @property
    def path(self) -> str:
        """As the task names it."""
        return self.image.path

    def run(self, operation: t.Callable[..., t.Any], *arguments: t.Any) -> t.Any:
        """One of the functions of operations, on this image, within the time that is left; its answer."""
        answer = operation(self.image, *arguments, limits=operations.Limits(seconds=self._seconds))
        self._meter.add(answer.report)
        self._seconds = max(self._seconds - answer.report.milliseconds / 1000, LEAST_SECONDS)
        return answer


@contextlib.contextmanager
def open_images(
    paths: t.Sequence[str], timeout: int, meter: Meter, writable: bool, force_share: bool
) -> t.Iterator[tuple[OpenImage, ...]]:
    """Opens and locks all images of a task, and closes them behind it.

    What fails before anything is written, here or in the body, leaves as a GroupError that says so.
    """
    _check_arguments(paths, timeout)
    with contextlib.ExitStack() as stack:
        try:
            yield tuple(
                OpenImage(
                    stack.enter_context(operations.Image.open(path, writable=writable, force_share=force_share)),
                    timeout,
                    meter,
                )
                for path in paths
            )
        except errors.AirlockError as error:
            raise GroupError(error, [(path, UNTOUCHED) for path in paths]) from error


def _check_arguments(paths: t.Sequence[str], timeout: int) -> None:
    """Raises ArgumentError for an empty list, one file that is named twice, or a time limit of nothing."""
    if not paths:
        raise errors.ArgumentError("The list of images is empty. Name at least one in path.", "no_images")
    if timeout < 1:
        raise errors.ArgumentError(f"timeout is {timeout} seconds. It must be at least 1.", "bad_timeout")
    names: dict[tuple[int, int], str] = {}
    for number, path in enumerate(paths):
        try:
            status = os.stat(path)
        except OSError:
            continue  # opening it will say what is wrong
        if (status.st_dev, status.st_ino) in names:
            first = names[status.st_dev, status.st_ino]
            raise errors.ArgumentError(
                f"{errors.quote(first)} and {errors.quote(path)}, element {number + 1} of path, are the same file. "
                "Name each image once.",
                "duplicate_path",
            )
        names[status.st_dev, status.st_ino] = path
