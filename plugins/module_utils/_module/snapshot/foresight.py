# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What carrying out the plans of qcow2_snapshot would lead to, for check mode; refuses what that would refuse."""

from __future__ import annotations

import typing as t

from ...sandbox import errors
from ...sandbox.images import info
from ...sandbox.images.snapshots import Comparison, Snapshot, SnapshotList
from ...sandbox.words import advice
from ..group import for_each
from .plan import SnapshotPlan


def foresee_all(plans: t.Sequence[SnapshotPlan]) -> None:
    """Fills in each plan's `after`, reading only. Raises what carrying it out would, as far as that can be told."""
    for_each(_foresee, [plan for plan in plans if plan.changed])


def _foresee(plan: SnapshotPlan) -> None:
    snapshots = tuple(plan.before.snapshots)
    size = plan.before.virtual_size
    if plan.outdated:
        gone = set(plan.outdated)
        snapshots = tuple(snapshot for snapshot in snapshots if snapshot not in gone)
    if plan.creates:
        seconds, nanoseconds = plan.wanted.date
        snapshots += (
            Snapshot(
                id=b"",
                name=plan.wanted.name,
                date_seconds=seconds,
                date_nanoseconds=nanoseconds,
                vm_state_size=0,
                vm_clock=0,
                icount=0,
                disk_size=size,
            ),
        )
    elif plan.wanted.state == "absent":
        snapshots = tuple(snapshot for at, snapshot in enumerate(snapshots) if at != plan.found_at)
    elif plan.comparison is not None:
        _refuse(plan, plan.comparison)
        size = plan.comparison.disk_size
    plan.after = SnapshotList(snapshots=snapshots, virtual_size=size, report=plan.before.report)


def _refuse(plan: SnapshotPlan, comparison: Comparison) -> None:
    """What keeps a guest from applying a snapshot, as far as reading tells."""
    image = errors.clean(plan.path)
    facts = plan.subject.run(info.image_info)
    if facts.bitmap_count is None:
        from ...sandbox.words import refused

        raise refused.damaged_bitmaps(plan.path, "the header's part about them breaks the format")
    if facts.bitmap_count:
        raise errors.SnapshotError(
            f"{image}: the image has {facts.bitmap_count} persistent bitmaps, which would be wrong afterwards. "
            "Remove them first, each with module airlock.images.qcow2_bitmap and state 'absent', and then make a full "
            "backup.",
            "has_bitmaps",
        )
    if comparison.same_size:
        return
    sizes = f"{image}: the disk has {plan.before.virtual_size} bytes, the snapshot {comparison.disk_size}."
    if not plan.wanted.allow_resize:
        raise errors.SnapshotError(
            f"{sizes} Set allow_resize to true, if a disk of that size is what you want.", "resize_not_allowed"
        )
    if facts.version == 2:
        raise errors.SnapshotError(
            f"{sizes} A version 2 image with snapshots cannot be resized. "
            + advice.say("upgrade", {"image": errors.quote(plan.path)}),
            "resize_v2",
        )
