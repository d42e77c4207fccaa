# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of qcow2_snapshot: decide for all images, then change all of them or none."""

from __future__ import annotations

import functools
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ...sandbox import errors
from ...sandbox.facts.snapshot_facts import snapshot_facts
from ...sandbox.images.snapshots import Snapshot
from ..bounded import Room, check_limit, size_of
from ..group import for_each, open_images, sandbox_summary
from ..progress_place import progress_place
from . import report
from .plan import SnapshotPlan, SnapshotWanted

if t.TYPE_CHECKING:
    from ...sandbox.host.places import Place


def snapshot_flow(module: AnsibleModule) -> dict[str, t.Any]:
    """Carries out the task; returns what RETURN of qcow2_snapshot says.

    Raises errors.ArgumentError, GroupError.
    """
    params = module.params
    check_limit(params["limit"])
    wanted = SnapshotWanted(params)
    if params["force_share"] and not module.check_mode:
        raise errors.ArgumentError(
            "force_share is for reading only. Use it in check mode, or use qcow2_info; to change an image, stop "
            "whoever uses it.",
            "force_share",
        )
    with (
        progress_place(params) as progress_file,
        open_images(
            params["path"],
            params["timeout"],
            writable=not module.check_mode,
            force_share=params["force_share"],
            follow_links=params["follow_links"],
        ) as subjects,
    ):
        plans = for_each(lambda subject: SnapshotPlan.read(subject, wanted), subjects)
        if any(plan.changed for plan in plans):
            _go_on(plans, module.check_mode, progress_file)
    return _result(module, plans)


def _go_on(plans: t.Sequence[SnapshotPlan], check_mode: bool, progress_file: Place | None) -> None:
    """Foresees or carries out what is to be done. Loaded only then: most tasks of a playbook find nothing to do."""
    if check_mode:
        from .foresight import foresee_all

        foresee_all(plans)
    else:
        from ..all_or_none import change_all
        from .carry_out import carry_out

        change_all(plans, carry_out, progress_file)


def _result(module: AnsibleModule, plans: t.Sequence[SnapshotPlan]) -> dict[str, t.Any]:
    images = [_image_record(module, plan, len(plans)) for plan in plans]
    result: dict[str, t.Any] = {
        "changed": any(plan.changed for plan in plans),
        "images": images,
        "truncated": any(image["truncated"] for image in images),
        "sandbox": sandbox_summary([plan.subject for plan in plans]),
    }
    if len(images) == 1 and not result["truncated"]:
        result["snapshots"] = images[0]["snapshots"]
        result["listing"] = images[0]["listing"]
    if module._diff:
        result["diff"] = [_image_diff(module, plan, len(plans)) for plan in plans]
    for plan in plans:
        if plan.leaked_clusters:
            from ..leaks import leak_warning  # few images have some

            module.warn(leak_warning(plan.path, plan.leaked_clusters))
    return result


def _facts(module: AnsibleModule, plan: SnapshotPlan, snapshot: Snapshot) -> dict[str, t.Any]:
    """The record of a snapshot that there is now, or in check mode would be."""
    foreseen = module.check_mode and plan.creates and not snapshot.id and snapshot == plan.after.snapshots[-1]
    return report.predicted_record(snapshot) if foreseen else snapshot_facts(snapshot)


def _image_record(module: AnsibleModule, plan: SnapshotPlan, images: int) -> dict[str, t.Any]:
    """One element of RETURN's `images`, of so many."""
    after = plan.after.snapshots
    named = next((_facts(module, plan, each) for each in after if plan.wanted.matches(each)), None)
    room = Room(images, module.params["limit"], taken=size_of(named))
    removed = room.last_of(plan.outdated, snapshot_facts, share=0.5)
    shown = room.last_of(after, functools.partial(_facts, module, plan), report.row)
    truncated = len(shown) < len(after) or len(removed) < len(plan.outdated)
    record = {
        "path": plan.path,
        "changed": plan.changed,
        "virtual_size": plan.after.virtual_size,
        "snapshot": named,
        "snapshots": shown,
        "snapshot_count": len(after),
        "truncated": truncated,
        "leaked_clusters": plan.leaked_clusters,
    }
    if not truncated:
        record["listing"] = report.listing(after)
    if plan.wanted.retention is not None:
        record["removed"] = removed
        record["removed_count"] = len(plan.outdated)
    if plan.comparison is not None:
        record["differing_clusters"] = plan.comparison.differing_clusters
    return record


def _image_diff(module: AnsibleModule, plan: SnapshotPlan, images: int) -> dict[str, str]:
    """One element of the diff, of so many, made from the values that the task works with."""
    from ..diffs import both_sides

    before, after = "", ""
    if plan.comparison is not None:
        after = f"equals snapshot {plan.wanted}"
        clusters = plan.comparison.differing_clusters
        before = f"differs from snapshot {plan.wanted} in {clusters} clusters" if plan.changed else after

    def line(snapshot: Snapshot) -> str:
        return report.diff_line(_facts(module, plan, snapshot))

    lines = both_sides(plan.before.snapshots, plan.after.snapshots, line, images)
    return {
        "before_header": errors.clean(plan.path, errors.PATH_LIMIT),
        "after_header": errors.clean(plan.path, errors.PATH_LIMIT),
        "before": report.diff_text(plan.before.virtual_size, before, lines[0]),
        "after": report.diff_text(plan.after.virtual_size, after, lines[1]),
    }
