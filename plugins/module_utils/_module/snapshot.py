# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of qcow2_snapshot: decide for all images, then change all of them or none."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..sandbox import errors
from ..sandbox.snapshot_facts import snapshot_facts
from . import report
from .group import for_each, open_images, sandbox_summary
from .plan import Plan, Wanted


def snapshot_flow(module: AnsibleModule) -> dict[str, t.Any]:
    """Carries out the task; returns what RETURN of qcow2_snapshot says.

    Raises errors.ArgumentError, GroupError.
    """
    params = module.params
    wanted = Wanted(params)
    if params["force_share"] and not module.check_mode:
        raise errors.ArgumentError(
            "force_share is for reading only. Use it in check mode, or use qcow2_info; to change an image, stop "
            "whoever uses it.",
            "force_share",
        )
    with open_images(
        params["path"],
        params["timeout"],
        writable=not module.check_mode,
        force_share=params["force_share"],
        follow_links=params["follow_links"],
    ) as subjects:
        plans = for_each(lambda subject: Plan(subject, wanted), subjects)
        if any(plan.changed for plan in plans):
            _go_on(plans, module.check_mode)
    return _result(module, plans)


def _go_on(plans: t.Sequence[Plan], check_mode: bool) -> None:
    """Foresees or carries out what is to be done. Loaded only then: most tasks of a playbook find nothing to do."""
    if check_mode:
        from .foresight import foresee_all

        foresee_all(plans)
    else:
        from .all_or_none import change_all
        from .change import carry_out

        change_all(plans, carry_out)


def _result(module: AnsibleModule, plans: t.Sequence[Plan]) -> dict[str, t.Any]:
    result: dict[str, t.Any] = {
        "changed": any(plan.changed for plan in plans),
        "images": [_image_record(module, plan) for plan in plans],
        "sandbox": sandbox_summary([plan.subject for plan in plans]),
    }
    if len(plans) == 1:
        result["snapshots"] = result["images"][0]["snapshots"]
        result["listing"] = result["images"][0]["listing"]
    if module._diff:
        result["diff"] = [_image_diff(module, plan) for plan in plans]
    for plan in plans:
        if plan.leaked_clusters:
            module.warn(report.leak_warning(plan.path, plan.leaked_clusters))
    return result


def _records(module: AnsibleModule, plan: Plan) -> list[dict[str, t.Any]]:
    """What there is now, or in check mode would be."""
    records = [snapshot_facts(snapshot) for snapshot in plan.after.snapshots]
    if module.check_mode and plan.creates:
        records[-1] = report.predicted_record(plan.after.snapshots[-1])
    return records


def _image_record(module: AnsibleModule, plan: Plan) -> dict[str, t.Any]:
    """One element of RETURN's `images`."""
    record = {
        "path": plan.path,
        "changed": plan.changed,
        "virtual_size": plan.after.virtual_size,
        "snapshots": _records(module, plan),
        "listing": report.listing(plan.after.snapshots),
        "leaked_clusters": plan.leaked_clusters,
    }
    if plan.wanted.retention is not None:
        record["removed"] = [snapshot_facts(snapshot) for snapshot in plan.outdated]
    if plan.comparison is not None:
        record["differing_clusters"] = plan.comparison.differing_clusters
    return record


def _image_diff(module: AnsibleModule, plan: Plan) -> dict[str, str]:
    """One element of the diff, made from the values that the task works with."""
    before, after = "", ""
    if plan.comparison is not None:
        after = f"equals snapshot {plan.wanted}"
        clusters = plan.comparison.differing_clusters
        before = f"differs from snapshot {plan.wanted} in {clusters} clusters" if plan.changed else after
    records = [snapshot_facts(snapshot) for snapshot in plan.before.snapshots]
    return {
        "before_header": plan.path,
        "after_header": plan.path,
        "before": report.diff_text(plan.before.virtual_size, before, records),
        "after": report.diff_text(plan.after.virtual_size, after, _records(module, plan)),
    }
