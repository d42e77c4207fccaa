# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What qcow2_snapshot plans for one image is carried out."""

from __future__ import annotations

import typing as t

from ...sandbox import errors
from ...sandbox.images import snapshot_changes
from ...sandbox.images.snapshots import Selector
from .plan import SnapshotPlan

if t.TYPE_CHECKING:
    from ..all_or_none import Listeners


def carry_out(plan: SnapshotPlan, listeners: Listeners) -> None:
    """Changes the image, and fills in what has come of it. listeners: one for each operation."""
    begun = False
    for operation, *arguments in _operations(plan):
        try:
            done = plan.subject.run(operation, *arguments, progress=next(listeners))
        except errors.AirlockError as error:
            error.modified = error.modified or begun
            raise
        begun = True
        plan.leaked_clusters = done.leaked_clusters
        plan.after = done.now


def _operations(plan: SnapshotPlan) -> t.Iterator[tuple[t.Any, ...]]:
    """(Function, its arguments behind the image...) in the order of doing: first what is new, then what goes."""
    wanted = plan.wanted
    if plan.creates:
        yield snapshot_changes.create_snapshot, wanted.name, wanted.date
    for snapshot in plan.outdated:
        yield snapshot_changes.delete_snapshot, Selector.by_id(snapshot.id, name=snapshot.name)
    if wanted.state == "absent":
        yield snapshot_changes.delete_snapshot, plan.selector
    elif wanted.state == "applied":
        yield snapshot_changes.apply_snapshot, plan.selector, wanted.allow_resize
