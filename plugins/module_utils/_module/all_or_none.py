# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the plans of a task say is carried out: on all images or on none."""

from __future__ import annotations

import contextlib
import itertools
import typing as t

from ..sandbox import errors
from ..sandbox.host import ending
from ..sandbox.images import transaction
from .group import OpenImage, for_each
from .outcome import UNDONE, UNKNOWN, UNTOUCHED, GroupError

if t.TYPE_CHECKING:
    from ..sandbox.host.places import Place


class ChangePlan(t.Protocol):
    """What is to be done with one image. changed: whether there is anything to do; path: as the task names it; steps:
    how many operations that takes."""

    subject: OpenImage
    changed: bool

    @property
    def steps(self) -> int: ...

    @property
    def path(self) -> str: ...


Listeners = t.Iterator[t.Optional[t.Callable[[int, int], None]]]
"""What the operations on one image tell their progress to, one after the other."""

AnyPlan = t.TypeVar("AnyPlan", bound=ChangePlan)


def change_all(
    plans: t.Sequence[AnyPlan],
    carry_out: t.Callable[[AnyPlan, Listeners], None],
    progress_file: Place | None = None,
) -> None:
    """Carries out all plans or none. Raises GroupError, which says what became of each image.

    carry_out: changes one image, and fills in what has come of it. progress_file: is told how far all of them are; each
    operation counts for as much as the image's file is long.
    """
    with contextlib.ExitStack() as stack:
        listeners = dict[int, Listeners]()
        if progress_file is not None:
            from .progress_file import ProgressFile  # few tasks have one

            todo = [plan for plan in plans if plan.changed]
            sizes = [[plan.subject.image.disk.size] * plan.steps for plan in todo]
            progress = stack.enter_context(ProgressFile(progress_file))
            total = sum(map(sum, sizes))
            listeners.update((id(plan), progress.parts(size, total)) for plan, size in zip(todo, sizes))
        _change_all(plans, lambda plan: carry_out(plan, listeners.get(id(plan), itertools.repeat(None))))


def _change_all(plans: t.Sequence[AnyPlan], carry_out: t.Callable[[AnyPlan], None]) -> None:
    todo = [plan for plan in plans if plan.changed]
    written: list[AnyPlan] = []

    def noted(plan: AnyPlan) -> None:
        written.append(plan)
        try:
            carry_out(plan)
        except (errors.RefusalError, errors.TooLongError) as error:
            if not error.modified:
                written.remove(plan)
            raise

    try:
        with ending.held(), transaction.Transaction([plan.subject.image for plan in todo]) as group:
            ending.check()
            for_each(noted, todo)
            group.keep()
    except Exception as error:  # whatever it was, the transaction has undone what was done
        from .unexpected import told

        undone = UNKNOWN if isinstance(error, errors.TransactionError) else UNDONE
        outcomes = [(plan.path, undone if plan in written else UNTOUCHED) for plan in plans]
        raise GroupError(told(error), outcomes) from error
