# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of qcow2_bitmap: decide for all images, then change all of them or none."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..sandbox import errors, facts
from .bitmap_plan import Plan
from .bitmap_sources import Sources
from .bitmap_wanted import Wanted
from .group import for_each, open_images, sandbox_summary


def bitmap_flow(module: AnsibleModule) -> dict[str, t.Any]:
    """Carries out the task; returns what RETURN of qcow2_bitmap says. Raises errors.ArgumentError, GroupError."""
    params = module.params
    timeout, force_share = params["timeout"], params["force_share"]
    wanted = Wanted(params)
    if force_share and not module.check_mode:
        raise errors.ArgumentError(
            "force_share is for reading only. Use it in check mode, or use qcow2_info; to change an image, stop "
            "whoever uses it.",
            "force_share",
        )
    with (
        Sources(wanted.merges, params["follow_links"]) as merged,
        open_images(
            params["path"],
            timeout,
            writable=not module.check_mode,
            force_share=force_share,
            follow_links=params["follow_links"],
            check=merged.check,
        ) as subjects,
        merged.opened(timeout, force_share) as sources,
    ):
        plans = for_each(lambda subject: Plan(subject, wanted, sources), subjects)
        if any(plan.changed for plan in plans) and not module.check_mode:
            from .all_or_none import change_all  # most tasks of a playbook find nothing to do

            change_all(plans, Plan.carry_out)
    opened = [*subjects, *(source.opened for source in sources.values())]
    return {**_result(module, plans), "sandbox": sandbox_summary(opened)}


def _result(module: AnsibleModule, plans: t.Sequence[Plan]) -> dict[str, t.Any]:
    result: dict[str, t.Any] = {
        "changed": any(plan.changed for plan in plans),
        "images": [_image_record(plan) for plan in plans],
    }
    if len(plans) == 1:
        result["bitmap"] = result["images"][0]["bitmap"]
        result["bitmaps"] = result["images"][0]["bitmaps"]
    if module._diff:
        result["diff"] = [_image_diff(plan) for plan in plans]
    for plan in plans:
        if plan.leaked_clusters:
            from .report import leak_warning

            module.warn(leak_warning(plan.path, plan.leaked_clusters))
    return result


def _image_record(plan: Plan) -> dict[str, t.Any]:
    """One element of RETURN's `images`."""
    records = [facts.bitmap_facts(bitmap) for bitmap in plan.after]
    meant = [record for record, bitmap in zip(records, plan.after) if bitmap.name == plan.wanted.name]
    return {
        "path": plan.path,
        "changed": plan.changed,
        "virtual_size": plan.virtual_size,
        "bitmap": meant[0] if meant else None,
        "bitmaps": records,
        "bitmap_count": len(records),
        "leaked_clusters": plan.leaked_clusters,
    }


def _image_diff(plan: Plan) -> dict[str, str]:
    """One element of the diff, made from the values that the task works with."""
    return {
        "before_header": plan.path,
        "after_header": plan.path,
        "before": _diff_text(plan.virtual_size, plan.before),
        "after": _diff_text(plan.virtual_size, plan.after),
    }


def _diff_text(virtual_size: int, bitmaps: t.Sequence[t.Any]) -> str:
    """One side of an image's diff."""
    lines = [f"disk size: {virtual_size} bytes"]
    for bitmap in bitmaps:
        state = "recording" if bitmap.recording else "not recording"
        if bitmap.inconsistent:
            bits = "inconsistent (stale)" if bitmap.stale else "inconsistent (in use)"
        else:
            bits = f"{bitmap.dirty_bytes} bytes dirty"
        lines.append(f"bitmap {errors.clean(bitmap.name)}: granularity {bitmap.granularity}, {state}, {bits}")
    return "\n".join(lines) + "\n"
