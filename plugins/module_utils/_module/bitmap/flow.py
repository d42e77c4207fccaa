# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of qcow2_bitmap: decide for all images, then change all of them or none."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ...sandbox import errors
from ...sandbox.facts import facts
from ...sandbox.images.bitmaps import Bitmap
from ..bounded import Room, check_limit
from ..group import for_each, open_images, sandbox_summary
from ..progress_place import progress_place
from .options import BitmapWanted
from .plan import BitmapPlan
from .sources import Sources


def bitmap_flow(module: AnsibleModule) -> dict[str, t.Any]:
    """Carries out the task; returns what RETURN of qcow2_bitmap says. Raises errors.ArgumentError, GroupError."""
    params = module.params
    timeout, force_share = params["timeout"], params["force_share"]
    check_limit(params["limit"])
    wanted = BitmapWanted(params)
    if force_share and not module.check_mode:
        raise errors.ArgumentError(
            "force_share is for reading only. Use it in check mode, or use qcow2_info; to change an image, stop "
            "whoever uses it.",
            "force_share",
        )
    with (
        progress_place(params) as progress_file,
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
        plans = for_each(lambda subject: BitmapPlan.read(subject, wanted, sources), subjects)
        if any(plan.changed for plan in plans) and not module.check_mode:
            from ..all_or_none import change_all  # most tasks of a playbook find nothing to do

            change_all(plans, BitmapPlan.carry_out, progress_file)
    opened = [*subjects, *(source.opened for source in sources.values())]
    return {**_result(module, plans), "sandbox": sandbox_summary(opened)}


def _result(module: AnsibleModule, plans: t.Sequence[BitmapPlan]) -> dict[str, t.Any]:
    images = [_image_record(plan, len(plans), module.params["limit"]) for plan in plans]
    result: dict[str, t.Any] = {
        "changed": any(plan.changed for plan in plans),
        "images": images,
        "truncated": any(image["truncated"] for image in images),
    }
    if len(images) == 1:
        result["bitmap"] = images[0]["bitmap"]
        if not result["truncated"]:
            result["bitmaps"] = images[0]["bitmaps"]
    if module._diff:
        result["diff"] = [_image_diff(plan, len(plans)) for plan in plans]
    for plan in plans:
        if plan.leaked_clusters:
            from ..leaks import leak_warning

            module.warn(leak_warning(plan.path, plan.leaked_clusters))
    return result


def _image_record(plan: BitmapPlan, images: int, limit: int) -> dict[str, t.Any]:
    """One element of RETURN's `images`, of so many. limit: of bitmaps."""
    records = Room(images, limit).last_of(plan.after, facts.bitmap_facts)
    meant = next((bitmap for bitmap in plan.after if bitmap.name == plan.wanted.name), None)
    return {
        "path": plan.path,
        "changed": plan.changed,
        "virtual_size": plan.virtual_size,
        "bitmap": None if meant is None else facts.bitmap_facts(meant),
        "bitmaps": records,
        "bitmap_count": len(plan.after),
        "truncated": len(records) < len(plan.after),
        "damage": plan.damage or None,
        "leaked_clusters": plan.leaked_clusters,
    }


def _image_diff(plan: BitmapPlan, images: int) -> dict[str, str]:
    """One element of the diff, of so many, made from the values that the task works with."""
    from ..diffs import both_sides

    before, after = both_sides(plan.before, plan.after, _diff_line, images)
    return {
        "before_header": errors.clean(plan.path, errors.PATH_LIMIT),
        "after_header": errors.clean(plan.path, errors.PATH_LIMIT),
        "before": _diff_text(plan.virtual_size, before, plan.damage),
        "after": _diff_text(plan.virtual_size, after),
    }


def _diff_text(virtual_size: int, lines: t.Sequence[str], damage: str = "") -> str:
    """One side of an image's diff."""
    damaged = [f"damaged bitmaps: {damage}"] if damage else []
    return "\n".join([f"disk size: {virtual_size} bytes", *damaged, *lines]) + "\n"


def _diff_line(bitmap: Bitmap) -> str:
    state = "recording" if bitmap.recording else "not recording"
    if bitmap.inconsistent:
        bits = "inconsistent (stale)" if bitmap.stale else "inconsistent (in use)"
    else:
        bits = f"{bitmap.dirty_bytes} bytes dirty"
    return f"bitmap {errors.clean(bitmap.name)}: granularity {bitmap.granularity}, {state}, {bits}"
