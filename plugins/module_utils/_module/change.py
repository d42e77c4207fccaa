# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What qcow2_snapshot plans is carried out: on all images or on none."""

from __future__ import annotations

import typing as t

from ..sandbox import errors, snapshot_changes, transaction
from .group import for_each
from .outcome import UNDONE, UNKNOWN, UNTOUCHED, GroupError
from .plan import Plan


def change_all(plans: t.Sequence[Plan]) -> None:
    """Carries out all plans or none. Raises GroupError, which says what became of each image."""
    todo = [plan for plan in plans if plan.changed]
    written: list[Plan] = []

    def noted(plan: Plan) -> None:
        written.append(plan)
        try:
            _carry_out(plan)
        except errors.RefusalError as error:
            if not error.modified:
                written.remove(plan)
            raise

    try:
        with transaction.Transaction([plan.subject.image for plan in todo]) as group:
            for_each(noted, todo)
            group.keep()
    except errors.AirlockError as error:
        undone = UNKNOWN if isinstance(error, errors.TransactionError) else UNDONE
        outcomes = [(plan.path, undone if plan in written else UNTOUCHED) for plan in plans]
        raise GroupError(error, outcomes) from error


def _carry_out(plan: Plan) -> None:
    """Changes one image, and fills in what has come of it."""
    wanted, run = plan.wanted, plan.subject.run
    if wanted.state == "present":
        done = run(snapshot_changes.create_snapshot, wanted.name, wanted.date)
    elif wanted.state == "absent":
        done = run(snapshot_changes.delete_snapshot, plan.selector)
    else:
        done = run(snapshot_changes.apply_snapshot, plan.selector, wanted.allow_resize)
    plan.leaked_clusters = done.leaked_clusters
    plan.after = done.now
