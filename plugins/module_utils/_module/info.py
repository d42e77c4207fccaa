# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of qcow2_info: reads, never writes."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..sandbox import facts, info
from . import report
from .group import OpenImage, for_each, open_images, sandbox_summary


def info_flow(module: AnsibleModule) -> dict[str, t.Any]:
    """Reads the images; returns what RETURN of qcow2_info says. Raises GroupError."""
    params = module.params
    with open_images(params["path"], params["timeout"], writable=False, force_share=params["force_share"]) as subjects:
        images = for_each(_image_record, subjects)
    result: dict[str, t.Any] = {"changed": False, "images": images, "sandbox": sandbox_summary(subjects)}
    if len(images) == 1:
        result["snapshots"] = images[0]["snapshots"]
        result["listing"] = images[0]["listing"]
    return result


def _image_record(subject: OpenImage) -> dict[str, t.Any]:
    """One element of RETURN's `images`."""
    image: info.ImageInfo = subject.run(info.image_info)
    return {**facts.image_facts(subject.path, image), "path": subject.path, "listing": report.listing(image.snapshots)}
