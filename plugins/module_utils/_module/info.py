# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of qcow2_info: reads, never writes."""

from __future__ import annotations

import functools
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..sandbox import bitmaps, errors, facts, info
from . import report
from .arguments import image_text
from .bounded import Room, check_limit, size_of
from .group import OpenImage, for_each, open_images, sandbox_summary

# Told at the top for one image, as far as its record has them.
SINGLE = ("listing", "dirty_extents", "extents_next", "chain", "chain_drawing")
LISTS = ("snapshots", "bitmaps")  # these if they are whole


def info_flow(module: AnsibleModule) -> dict[str, t.Any]:
    """Reads the images; returns what RETURN of qcow2_info says. Raises errors.ArgumentError, GroupError."""
    params = module.params
    limit = check_limit(params["limit"])
    wanted = Extents(params) if params["dirty_extents"] else None

    def record(subject: OpenImage) -> dict[str, t.Any]:
        if params["format"] == "vmdk":
            return _vmdk_record(subject, wanted)
        return _image_record(subject, wanted, len(params["path"]), limit)

    with open_images(
        params["path"],
        params["timeout"],
        writable=False,
        force_share=params["force_share"],
        follow_links=params["follow_links"],
    ) as subjects:
        images = for_each(lambda subject: {**record(subject), **_chain(subject, params)}, subjects)
    result: dict[str, t.Any] = {
        "changed": False,
        "images": images,
        "truncated": any(image["truncated"] for image in images),
        "sandbox": sandbox_summary(subjects),
    }
    if len(images) == 1:
        keys = SINGLE if result["truncated"] else LISTS + SINGLE
        result.update({key: images[0][key] for key in keys if key in images[0]})
    return result


class Extents:
    """The dirty ranges that the task asks for. bitmap: its name; start, bytes; limit: how many at most."""

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        self.bitmap = image_text("bitmap", params["bitmap"], bitmaps.NAME_MAX, plain=False)
        self.start: int = params["extents_start"]
        self.limit: int = params["extents_limit"]
        if not 1 <= self.limit <= bitmaps.EXTENTS_MAX or not 0 <= self.start < 1 << 63:
            raise errors.ArgumentError(
                f"extents_limit is {self.limit} and extents_start {self.start}. The first is from 1 to "
                f"{bitmaps.EXTENTS_MAX}, the second a position on the disk in bytes.",
                "bad_extents",
            )


def _image_record(subject: OpenImage, wanted: Extents | None, images: int, limit: int) -> dict[str, t.Any]:
    """One element of RETURN's `images`, of so many. limit: of snapshots, and of bitmaps."""
    image: info.ImageInfo = subject.run(info.image_info)
    asked = (wanted.bitmap, wanted.limit, wanted.start) if wanted else ()
    listed: bitmaps.BitmapList = subject.run(bitmaps.list_bitmaps, True, *asked)
    extents = [extent._asdict() for extent in listed.extents]
    room = Room(images, limit, size_of(extents))
    shown = room.last_of(listed.bitmaps, facts.bitmap_facts, share=0.5)
    snapshots = room.last_of(image.snapshots, facts.snapshot_facts, report.row)
    record = facts.image_facts(subject.path, image, shown, snapshots)
    whole = len(shown) == len(listed.bitmaps) and len(snapshots) == len(image.snapshots)
    record.update(path=subject.path, truncated=not whole)
    if whole:
        record["listing"] = report.listing(image.snapshots)
    if wanted:
        complete = listed.extents_end >= listed.virtual_size
        record["dirty_extents"] = extents
        record["extents_next"] = None if complete else listed.extents_end
    return record


def _vmdk_record(subject: OpenImage, wanted: Extents | None) -> dict[str, t.Any]:
    """The same of a vmdk image. Raises ArgumentError where a bitmap is asked for."""
    from ..sandbox.vmdk import vmdk_info  # another guest

    if wanted:
        raise errors.ArgumentError(
            f"{errors.quote(subject.path)} is read as vmdk, and there are no bitmaps in such images. Leave "
            "dirty_extents out.",
            "bitmap_not_found",
        )
    record = facts.vmdk_facts(subject.path, subject.run(vmdk_info))
    return {**record, "path": subject.path, "truncated": False, "listing": ""}


def _chain(subject: OpenImage, params: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What an element has of the image's chain."""
    if not params["chain"]:
        return {}
    from ..sandbox.chain_facts import ChainFacts, read_chain  # most tasks look at the images alone

    read = functools.partial(read_chain, top_format=params["format"])
    chain: ChainFacts = subject.run(read, params["backing_format"], params["allowed_roots"], params["force_share"])
    return {"chain": chain.layers, "chain_drawing": chain.drawing}
