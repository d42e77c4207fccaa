# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The persistent dirty bitmaps of an image, read and changed.

with Image.open("disk.qcow2", writable=True) as image:
    change_bitmap(image, b"backup", [Action.add(65536), Action.merge(b"last-week")])

A list of actions is about one bitmap and atomic: all of it is done, or nothing. What the guest answers is held here
against what it was asked; the structs are those of guest/abi/calls.h.
"""

from __future__ import annotations

import array
import functools
import os
import struct
import typing as t

from .. import errors
from ..guests._limits import (
    BITMAP_ACTIONS_MAX,
    BITMAP_GRANULARITY_BITS_MAX,
    BITMAP_GRANULARITY_BITS_MIN,
    BITMAP_NAME_MAX,
    BITMAP_TEXT_MAX,
    BITMAPS_MAX,
    DISKS_MAX,
    EXTENTS_MAX,
)
from ..vmm import kvm
from . import calls
from .image import Image, Limits, Progress, Report, run_guest
from .records import Records

SOURCES_MAX = DISKS_MAX - 1
GRANULARITY_MIN, GRANULARITY_MAX = 1 << BITMAP_GRANULARITY_BITS_MIN, 1 << BITMAP_GRANULARITY_BITS_MAX

_NOT_COUNTED = (1 << 64) - 1
_RECORDING, _IN_USE, _STALE = 1, 2, 4  # enum bitmap_flags
_EXTENT = struct.Struct("<QQ")  # struct dirty_extent


def _bitmap_guest() -> tuple[bytes, bytes]:
    from ..guests import _guest_bitmap

    return _guest_bitmap.load()


class Bitmap(t.NamedTuple):
    """One bitmap. name: bytes of the image's maker, anything but NUL. granularity: bytes of the disk that a bit is for.

    recording: a guest's writes will be noted in it. in_use: whoever used it last did not store it. stale: a program
    that does not know bitmaps has written to the image since. dirty_bytes, dirty_count: of the disk and of bits; None:
    not counted, as for every inconsistent one, and for those whose bits lie where others' do.
    """

    name: bytes
    granularity: int
    recording: bool
    in_use: bool
    stale: bool
    dirty_bytes: int | None
    dirty_count: int | None

    @property
    def inconsistent(self) -> bool:
        """Its bits are not to be relied upon: it can only be removed."""
        return self.in_use or self.stale


class Extent(t.NamedTuple):
    """A dirty range of the disk, in bytes."""

    offset: int
    length: int


class BitmapList(t.NamedTuple):
    """The bitmaps in directory order. virtual_size: bytes of the disk.

    extents: of the bitmap that was asked for, ascending and apart from each other; all that begin before extents_end
    (bytes) are there. damage: what is wrong with the bitmaps, as a sentence, "": nothing that shows without a
    verification. Bitmaps that are damaged are not in the list, and none is when their directory is.
    """

    bitmaps: t.Sequence[Bitmap]
    virtual_size: int
    extents: t.Sequence[Extent]
    extents_end: int
    report: Report
    damage: str = ""


class Action(t.NamedTuple):
    """One thing to do with a bitmap; made by one of its class methods."""

    verb: str
    granularity: int = 0
    name: bytes = b""
    source: Image | None = None

    @classmethod
    def add(cls, granularity: int = 0) -> Action:
        """A new, empty, recording bitmap. granularity: bytes; 0: what qemu-img takes for images like this one."""
        return cls("add", granularity)

    @classmethod
    def remove(cls) -> Action:
        """Also of an inconsistent one, and of several of one name."""
        return cls("remove")

    @classmethod
    def clear(cls) -> Action:
        """No bit is set any more."""
        return cls("clear")

    @classmethod
    def enable(cls) -> Action:
        """From now on it records."""
        return cls("enable")

    @classmethod
    def disable(cls) -> Action:
        """From now on it does not record."""
        return cls("disable")

    @classmethod
    def merge(cls, name: bytes, source: Image | None = None) -> Action:
        """What is dirty in the bitmap `name` of `source`, None: of the image itself, is dirty in this one too."""
        return cls("merge", 0, name, source)

    @classmethod
    def remove_damaged(cls) -> Action:
        """The one action of a list that is about no bitmap, b"": those that cannot be go, and what is theirs alone."""
        return cls("remove_damaged")


class BitmapChange(t.NamedTuple):
    """changed: whether the actions lead to something else than there was; otherwise nothing was written.

    bitmaps: as they are now, or with dry_run would be. virtual_size: bytes. freed_clusters: that nothing refers to any
    more. leaked_clusters: refcounts above what refers to them, left alone.
    """

    changed: bool
    bitmaps: t.Sequence[Bitmap]
    virtual_size: int
    freed_clusters: int
    leaked_clusters: int
    report: Report


def list_bitmaps(
    image: Image,
    counts: bool = True,
    extents_of: bytes | None = None,
    extents_limit: int = 0,
    extents_start: int = 0,
    limits: Limits | None = None,
) -> BitmapList:
    """The bitmaps of an image, and the dirty ranges of one of them. Reads only.

    counts: whether dirty bits are counted, which reads all bitmaps. extents_of: the bitmap whose ranges are wanted.
    extents_limit: how many at most, 0: EXTENTS_MAX. extents_start: bytes; ranges that end before it are left out.
    Raises BitmapNotFoundError and BitmapError for extents_of, ArgumentError, RefusalError.
    """
    limit = 0
    if extents_of is not None:
        if not 0 <= extents_limit <= EXTENTS_MAX or not 0 <= extents_start < 1 << 64:
            raise errors.ArgumentError(f"A list of dirty ranges has at most {EXTENTS_MAX}, and starts within the disk.")
        limit = extents_limit or EXTENTS_MAX
    name = _fitting(extents_of or b"")
    fields = {
        "extents_start": extents_start if limit else 0,
        "extents_limit": limit,
        "counts": int(counts),
        "name_length": len(name),
        "name": name,
    }
    refuse = functools.partial(_refusal, [image.path], [extents_of or b""])
    result, payload, report = run_guest([image], _bitmap_guest, "bitmap_list", fields, limits, refuse)
    records, end = decode_bitmaps(payload, result.bitmap_count, result.virtual_size)
    extents = decode_extents(payload, end, result.extent_count, limit)
    extents_end = check_extents(extents, result.extents_end, result.virtual_size, limit, extents_start) if limit else 0
    return BitmapList(records, result.virtual_size, extents, extents_end, report, _damage(result))


def require_sound(path: str, listed: BitmapList) -> None:
    """Raises BitmapError where some bitmaps are damaged, so that nobody knows what the image should have."""
    if listed.damage:
        from ..words import refused

        raise refused.damaged_bitmaps(path, listed.damage)


def change_bitmap(
    image: Image,
    name: bytes,
    actions: t.Sequence[Action],
    dry_run: bool = False,
    counts: bool = True,
    limits: Limits | None = None,
    progress: Progress = None,
) -> BitmapChange:
    """Actions on the bitmap `name`, in order, all of them or none.

    dry_run: says what would be and writes nothing; the image may be open for reading only. counts: whether dirty bits
    of all bitmaps are counted, or only those of this one. Sources of merges are open and locked by the caller.
    progress: as of Run, in bytes of tables and bits.
    Raises ArgumentError, BitmapNotFoundError, BitmapError, RefusalError: nothing was changed then, unless `modified`.
    """
    sources = _sources(image, actions)
    text, places = _source_names(actions)
    rows = _rows(actions, sources, places)
    fitting = _fitting(name)
    fields = {
        "action_count": len(rows),
        "dry_run": int(dry_run),
        "counts": int(counts),
        "name_length": len(fitting),
        "name": fitting,
        "actions": rows,
        "text": text,
    }
    everything = [image, *sources]
    names = [name, *(action.name for action in actions if action.verb == "merge")]
    refuse = functools.partial(_refusal, [each.path for each in everything], names)
    writable = () if dry_run else (0,)
    run = functools.partial(run_guest, everything, _bitmap_guest, "bitmap_change", fields, limits, refuse)
    result, payload, report = run(writable, progress)
    try:
        records = _decode_change(result, payload)
    except errors.GuestProtocolError as error:
        error.modified = bool(result.header.modified)
        raise
    return BitmapChange(
        bool(result.changed),
        records,
        result.virtual_size,
        result.freed_clusters,
        result.header.leaked_clusters,
        report,
    )


# ---- the call ------------------------------------------------------------------------------------------------------


def _fitting(name: bytes) -> bytes:
    """A name for the call: the guest refuses a byte more than there may be as it refuses any number of them."""
    return name[: BITMAP_NAME_MAX + 1]


def _sources(image: Image, actions: t.Sequence[Action]) -> list[Image]:
    """The other images that merges name, each once. Raises ArgumentError."""
    if not actions:
        raise errors.ArgumentError("There is nothing to do with the bitmap. Name at least one action.")
    if len(actions) > BITMAP_ACTIONS_MAX:
        raise errors.ArgumentError(f"A list has at most {BITMAP_ACTIONS_MAX} actions. Divide it.", "too_many_actions")
    sources: list[Image] = []
    for action in actions:
        source = action.source
        if source is None or any(source is other for other in sources):
            continue
        if source is image or source.disk.identity == image.disk.identity:
            raise errors.ArgumentError(
                f"{errors.clean(source.path)} is the image itself. Leave the source out to merge from the same image.",
                "bitmap_source_same",
            )
        sources.append(source)
    if len(sources) > SOURCES_MAX:
        raise errors.ArgumentError(f"At most {SOURCES_MAX} other images can be merged from.", "too_many_sources")
    return sources


def _source_names(actions: t.Sequence[Action]) -> tuple[bytes, dict[bytes, int]]:
    """The names of all merge sources in a row, and where each begins. Raises ArgumentError."""
    text, places = b"", {}
    for action in actions:
        name = _fitting(action.name)
        if action.verb == "merge" and name not in places:
            places[name] = len(text)
            text += name
    if len(text) > BITMAP_TEXT_MAX:
        raise errors.ArgumentError(
            f"The names of the bitmaps to merge have {len(text)} bytes, at most {BITMAP_TEXT_MAX} fit. "
            "Divide the list.",
            "too_many_actions",
        )
    return text, places


def _rows(
    actions: t.Sequence[Action], sources: t.Sequence[Image], places: t.Mapping[bytes, int]
) -> list[dict[str, int]]:
    """struct bitmap_action for each action. Raises ArgumentError."""
    ffi, _library = kvm.bindings()
    rows = []
    for action in actions:
        if not 0 <= action.granularity < 1 << 32:
            raise errors.ArgumentError(
                f"The granularity is a power of two from {GRANULARITY_MIN} to {GRANULARITY_MAX} bytes, "
                f"not {action.granularity}.",
                "bitmap_granularity",
            )
        row = {"kind": ffi.integer_const(f"BITMAP_{action.verb.upper()}"), "granularity": action.granularity}
        if action.verb == "merge":
            name = _fitting(action.name)
            disks = [number for number, source in enumerate(sources, 1) if source is action.source]
            row.update(source_disk=disks[0] if disks else 0, source_at=places[name], source_length=len(name))
        rows.append(row)
    return rows


def _refusal(paths: t.Sequence[str], names: t.Sequence[bytes], header: t.Any) -> errors.AirlockError:
    """paths: of the disks. names: that the caller gave; the first is the bitmap's."""
    from ..words import bitmap_refusals  # words, and most runs need none

    return bitmap_refusals.from_bitmap_refusal(header, paths, [os.fsdecode(name) for name in names])


# ---- the answer ----------------------------------------------------------------------------------------------------


def _decode_change(result: t.Any, payload: bytes) -> Records[Bitmap]:
    """The bitmaps that a change has left. Raises GuestProtocolError."""
    bitmaps, end = decode_bitmaps(payload, result.bitmap_count, result.virtual_size)
    if end != len(payload):
        raise errors.GuestProtocolError(f"The guest's answer has {len(payload)} bytes for {len(bitmaps)} bitmaps.")
    if result.header.modified and not result.changed:
        raise errors.GuestProtocolError("The guest says that it wrote to an image and changed nothing.")
    return bitmaps


def decode_bitmaps(payload: bytes, count: int, virtual_size: int) -> tuple[Records[Bitmap], int]:
    """The first `count` records of a payload, and where they end. Raises GuestProtocolError.

    Each is checked here, and decoded when it is looked at.
    """
    if count > BITMAPS_MAX:
        raise errors.GuestProtocolError(f"The guest's answer has {count} bitmaps.")
    ffi, _library = kvm.bindings()
    size = ffi.sizeof("struct bitmap_record")
    buffer = ffi.from_buffer(payload)
    decode = functools.partial(_bitmap, ffi, payload, buffer)
    places = array.array("Q")
    position = 0
    for index in range(count):
        start = position + size
        if start > len(payload):
            raise errors.GuestProtocolError(f"The guest's answer ends within bitmap {index} of {count}.")
        record = ffi.cast("struct bitmap_record *", buffer + position)
        end = start + record.name_length
        if record.name_length > BITMAP_NAME_MAX or end > len(payload):
            raise errors.GuestProtocolError(f"The guest's answer has a name too long in bitmap {index}.")
        if not _is_possible(decode(position), record.flags, virtual_size):
            raise errors.GuestProtocolError(f"The guest's answer has an impossible bitmap {index}.")
        places.append(position)
        position = (end + 7) & ~7
    if position > len(payload):
        raise errors.GuestProtocolError(f"The guest's answer has {len(payload)} bytes for {count} bitmaps.")
    return Records(places, decode), position


def _bitmap(ffi: t.Any, payload: bytes, buffer: t.Any, position: int) -> Bitmap:
    record = ffi.cast("struct bitmap_record *", buffer + position)
    start = position + ffi.sizeof("struct bitmap_record")
    return Bitmap(
        bytes(payload[start : start + record.name_length]),
        record.granularity,
        bool(record.flags & _RECORDING),
        bool(record.flags & _IN_USE),
        bool(record.flags & _STALE),
        None if record.dirty_bytes == _NOT_COUNTED else record.dirty_bytes,
        None if record.dirty_count == _NOT_COUNTED else record.dirty_count,
    )


def _is_possible(bitmap: Bitmap, flags: int, virtual_size: int) -> bool:
    """Whether a record does not contradict itself."""
    granularity = bitmap.granularity
    if b"\0" in bitmap.name or flags & ~(_RECORDING | _IN_USE | _STALE):
        return False
    if not GRANULARITY_MIN <= granularity <= GRANULARITY_MAX or granularity & (granularity - 1):
        return False
    if bitmap.dirty_bytes is None or bitmap.dirty_count is None:
        return bitmap.dirty_bytes is bitmap.dirty_count
    # Every bit stands for `granularity` bytes; the disk's last one may stand for less.
    missing = bitmap.dirty_count * granularity - bitmap.dirty_bytes
    return not bitmap.inconsistent and 0 <= missing < granularity and bitmap.dirty_bytes <= virtual_size


def decode_extents(payload: bytes, position: int, count: int, limit: int) -> Records[Extent]:
    """The dirty ranges from `position` to the payload's end: exactly `count`. Raises GuestProtocolError."""
    ffi, _library = kvm.bindings()
    size = ffi.sizeof("struct dirty_extent")
    if count > limit or position + count * size != len(payload):
        raise errors.GuestProtocolError(
            f"The guest's answer has {len(payload) - position} bytes for {count} dirty ranges of at most {limit}."
        )
    return Records(range(position, len(payload), size), functools.partial(_extent, payload))


def _extent(payload: bytes, position: int) -> Extent:
    return Extent(*_EXTENT.unpack_from(payload, position))


def _damage(result: t.Any) -> str:
    """Raises GuestProtocolError."""
    if not result.fault:
        return ""
    name = calls.text(result.fault_name, result.fault_name_length, BITMAP_NAME_MAX, "a damaged bitmap's name")
    from ..words import bitmap_refusals  # words, and most bitmaps are sound

    return bitmap_refusals.bitmaps_damage(result.fault, result.fault_value, name)


def check_extents(extents: t.Sequence[Extent], end: int, virtual_size: int, limit: int, start: int) -> int:
    """Holds the dirty ranges against the question; the result is `end`. Raises GuestProtocolError.

    end: bytes; all ranges that begin before it were told. limit: how many were asked for. start: where from.
    """
    last = -1
    for extent in extents:
        # Ranges that touch would be one.
        if extent.offset <= last or not extent.length:
            raise errors.GuestProtocolError("The guest's answer has dirty ranges out of order.")
        last = extent.offset + extent.length
    if last > virtual_size or end > virtual_size or (extents and extents[0].offset + extents[0].length < start):
        raise errors.GuestProtocolError("The guest's answer has dirty ranges where there can be none.")
    if end < (last if len(extents) == limit else virtual_size):
        raise errors.GuestProtocolError("The guest's answer leaves out dirty ranges.")
    return end
