# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of qcow2_info: reads, never writes."""

from __future__ import annotations

import contextlib
import functools
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..sandbox import errors
from ..sandbox.facts import facts
from ..sandbox.guests._limits import BITMAP_NAME_MAX, EXTENTS_MAX
from ..sandbox.host import ending
from ..sandbox.host.places import Place, find_place
from ..sandbox.images import bitmaps, info
from ..sandbox.images.image import Image
from .arguments import image_text
from .bounded import Room, check_limit, size_of
from .group import OpenImage, check_arguments, check_named_once, for_each, sandbox_summary
from .outcome import PartError, holders
from .snapshot import report

# Told at the top for one image, as far as its record has them.
SINGLE = ("listing", "dirty_extents", "extents_next", "chain", "chain_drawing")
LISTS = ("snapshots", "bitmaps")  # these if they are whole


def info_flow(module: AnsibleModule) -> dict[str, t.Any]:
    """Reads the images; returns what RETURN of qcow2_info says. Raises errors.ArgumentError, PartError."""
    params = module.params
    paths: list[str] = params["path"]
    limit = check_limit(params["limit"])
    wanted = Extents(params) if params["dirty_extents"] else None
    check_arguments(paths, params["timeout"])

    def record(subject: OpenImage | errors.AirlockError) -> dict[str, t.Any] | errors.AirlockError:
        if isinstance(subject, errors.AirlockError):
            return subject
        try:
            if params["format"] == "vmdk":
                found = _vmdk_record(subject, wanted)
            else:
                found = _image_record(subject, wanted, len(paths), limit)
            return {**found, **_chain(subject, params)}
        except errors.ArgumentError:
            raise  # of the task, not of the image
        except errors.AirlockError as error:
            return error
        except Exception as error:  # the others shall be read all the same
            from .unexpected import told

            return told(error)

    with contextlib.ExitStack() as stack:
        places = [_find(stack, path, params) for path in paths]
        check_named_once(places, "path", "each image")
        subjects = [_open(stack, place, params) for place in places]
        found = for_each(record, subjects)
    ending.check()  # which would be an image's fault otherwise, and fail_on may have none of them matter
    faults = [each for each in found if isinstance(each, errors.AirlockError)]
    records = [
        _fault(each, path) if isinstance(each, errors.AirlockError) else each for each, path in zip(found, paths)
    ]
    result: dict[str, t.Any] = {
        "changed": False,
        "images": records,
        "truncated": any(each["truncated"] for each in records),
        "sandbox": sandbox_summary([each for each in subjects if isinstance(each, OpenImage)]),
    }
    if faults and (params["fail_on"] == "any" or (params["fail_on"] == "all" and len(faults) == len(paths))):
        raise PartError(faults, result)
    if len(records) == 1:
        keys = SINGLE if result["truncated"] else LISTS + SINGLE
        result.update({key: records[0][key] for key in keys if key in records[0]})
    return result


def _find(stack: contextlib.ExitStack, path: str, params: t.Mapping[str, t.Any]) -> Place | errors.AirlockError:
    """Where the image is, or why that cannot be told."""
    try:
        return stack.enter_context(find_place(path, params["follow_links"]))
    except errors.AirlockError as error:
        return error


def _open(
    stack: contextlib.ExitStack, place: Place | errors.AirlockError, params: t.Mapping[str, t.Any]
) -> OpenImage | errors.AirlockError:
    """The image, which stays open as long as the stack; or why it cannot be opened."""
    if isinstance(place, errors.AirlockError):
        return place
    try:
        image = stack.enter_context(Image.open(place, writable=False, force_share=params["force_share"]))
    except errors.AirlockError as error:
        return error
    return OpenImage(image, params["timeout"])


def _fault(error: errors.AirlockError, path: str) -> dict[str, t.Any]:
    """One element of RETURN's `images`, of an image that could not be read."""
    return {"path": path, "error_code": error.code, "msg": error.message, "truncated": False, **holders(error)}


class Extents:
    """The dirty ranges that the task asks for. bitmap: its name; start, bytes; limit: how many at most."""

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        self.bitmap = image_text("bitmap", params["bitmap"], BITMAP_NAME_MAX, plain=False)
        self.start: int = params["extents_start"]
        self.limit: int = params["extents_limit"]
        if not 1 <= self.limit <= EXTENTS_MAX or not 0 <= self.start < 1 << 63:
            raise errors.ArgumentError(
                f"extents_limit is {self.limit} and extents_start {self.start}. The first is from 1 to "
                f"{EXTENTS_MAX}, the second a position on the disk in bytes.",
                "bad_extents",
            )


def _image_record(subject: OpenImage, wanted: Extents | None, count: int, limit: int) -> dict[str, t.Any]:
    """One element of RETURN's `images`, of so many. limit: of snapshots, and of bitmaps."""
    image: info.ImageInfo = subject.run(info.image_info)
    asked = (wanted.bitmap, wanted.limit, wanted.start) if wanted else ()
    listed: bitmaps.BitmapList = subject.run(bitmaps.list_bitmaps, True, *asked)
    extents = [extent._asdict() for extent in listed.extents]
    room = Room(count, limit, size_of(extents))
    shown = room.last_of(listed.bitmaps, facts.bitmap_facts, share=0.5)
    snapshots = room.last_of(image.snapshots, facts.snapshot_facts, report.row)
    record = facts.image_facts(subject.path, image, shown, snapshots, listed.damage)
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
    from ..sandbox.images.vmdk import vmdk_info  # another guest

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
    from ..sandbox.facts.chain_facts import ChainFacts, read_chain  # most tasks look at the images alone

    read = functools.partial(read_chain, top_format=params["format"])
    chain: ChainFacts = subject.run(read, params["backing_format"], params["allowed_roots"], params["force_share"])
    return {"chain": chain.layers, "chain_drawing": chain.drawing}
