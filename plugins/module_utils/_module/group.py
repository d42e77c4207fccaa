# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The images of one task: opened and locked together, worked on one by one, closed together."""

from __future__ import annotations

import contextlib
import time
import typing as t

from ..sandbox import errors
from ..sandbox.host import descriptors, ending
from ..sandbox.host.places import Key, Place, find_place
from ..sandbox.images.image import Image, Limits, Report, get_ready_for_threads
from .arguments import check_timeout
from .outcome import UNTOUCHED, GroupError

LEAST_SECONDS = 0.001
LOOK_SECONDS = 0.25
AT_ONCE = 8  # images; more than processors, because a guest waits for the disk most of the time


class OpenImage:
    """One image of the task, with the time that is left for it, and the reports of its guests."""

    def __init__(self, image: Image, seconds: float | None) -> None:
        """seconds: that somebody gave for it, None: nobody did."""
        self.image = image
        self.reports: list[Report] = []
        self._seconds = seconds

    @property
    def path(self) -> str:
        """As the task names it."""
        return self.image.path

    def run(self, operation: t.Callable[..., t.Any], *arguments: t.Any, **more: t.Any) -> t.Any:
        """An operation of the sandbox on this image, within the time that is left; its answer."""
        started = time.monotonic()
        answer = operation(self.image, *arguments, limits=Limits.within(self._seconds), **more)
        self.reports.append(answer.report)
        if self._seconds is not None:
            # To read a long answer takes time as well.
            spent = max(answer.report.milliseconds / 1000, time.monotonic() - started)
            self._seconds = max(self._seconds - spent, LEAST_SECONDS)
        return answer


class Reported(t.Protocol):
    """Whatever guests have worked on."""

    reports: list[Report]


def sandbox_summary(subjects: t.Sequence[Reported]) -> dict[str, t.Any]:
    """RETURN's `sandbox`: what all guests of the task were confined by, and what they cost together."""
    reports = [report for subject in subjects for report in subject.reports]
    return {
        "layers": list(reports[-1].layers) if reports else [],
        "exits": sum(report.exits for report in reports),
        "memory": max((report.memory for report in reports), default=0),
        "milliseconds": round(sum(report.milliseconds for report in reports), 3),
    }


Item = t.TypeVar("Item")
Result = t.TypeVar("Result")


def for_each(function: t.Callable[[Item], Result], items: t.Sequence[Item]) -> list[Result]:
    """The function's results for all items, in their order; AT_ONCE of them at a time.

    When one fails, those that run are waited for, no more than a few others are begun, and its exception goes on.
    """
    workers = min(len(items), AT_ONCE)
    if workers < 2:
        return [function(item) for item in items]
    from concurrent import futures  # for groups only, and not quick to import

    get_ready_for_threads()

    with futures.ThreadPoolExecutor(workers) as pool:
        runs = [pool.submit(function, item) for item in items]
        try:
            # Not for good: a signal that another thread gets is handled in this one, but does not wake it.
            while futures.wait(runs, LOOK_SECONDS, futures.FIRST_EXCEPTION).not_done:
                failed = [run for run in runs if run.done() and run.exception()]
                if failed:
                    return [failed[0].result()]
            return [run.result() for run in runs]
        finally:
            for run in runs:
                run.cancel()


@contextlib.contextmanager
def open_images(
    paths: t.Sequence[str],
    timeout: int | None,
    writable: bool,
    force_share: bool,
    follow_links: bool = False,
    check: t.Callable[[t.Sequence[Place]], None] | None = None,
) -> t.Iterator[tuple[OpenImage, ...]]:
    """Opens and locks all images of a task, and closes them behind it.

    follow_links: as of places.find_place(). check: looks at them before any is opened. What fails before anything is
    written, here or in the body, leaves as a GroupError that says so.
    """
    check_arguments(paths, timeout)
    with contextlib.ExitStack() as stack:
        try:
            found = [stack.enter_context(find_place(path, follow_links, writable=writable)) for path in paths]
            check_named_once(found, "path", "each image")
            if check:
                check(found)
            yield tuple(
                OpenImage(
                    stack.enter_context(Image.open(place, writable=writable, force_share=force_share)),
                    timeout,
                )
                for place in found
            )
        except errors.AirlockError as error:
            raise GroupError(error, [(path, UNTOUCHED) for path in paths], writable) from error
        except GroupError:
            raise
        except Exception as error:
            if ending.is_done():
                raise
            from .unexpected import told

            raise GroupError(told(error), [(path, UNTOUCHED) for path in paths], writable) from error


def check_arguments(paths: t.Sequence[str], timeout: int | None) -> None:
    """Raises ArgumentError for an empty list, or a time limit of nothing; HostError for more than can be open."""
    if not paths:
        raise errors.ArgumentError("The list of images is empty. Name at least one in path.", "no_images")
    check_timeout(timeout)
    descriptors.need(len(paths))


def check_named_once(places: t.Sequence[Place | errors.AirlockError], option: str, what: str) -> None:
    """Raises ArgumentError for one file that is named twice. what: is named, for the advice."""
    names: dict[Key, str] = {}
    for number, place in enumerate(places):
        if isinstance(place, errors.AirlockError):
            continue
        key = place.key
        if key is None:
            continue  # opening it will say what is wrong
        if key in names:
            raise errors.ArgumentError(
                f"{errors.quote(names[key])} and {errors.quote(place.path)}, element {number + 1} of {option}, are the "
                f"same file. Name {what} once.",
                "duplicate_path",
            )
        names[key] = place.path
