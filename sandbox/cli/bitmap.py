# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""airlock bitmap"""

from __future__ import annotations

import contextlib
import typing as t

from .. import errors
from ..facts.listing import format_size
from ..guests._limits import EXTENTS_MAX
from ..images.bitmaps import Action, Bitmap, BitmapChange, BitmapList, Extent, change_bitmap, list_bitmaps
from . import qemu_words
from .common import (
    Arguments,
    HelpRequest,
    Made,
    UsageError,
    all_or_nothing,
    say_all,
    say_json,
    shown,
    warn,
    warn_of_leaks,
)
from .options import Options
from .progress import Progress
from .sizes import SIZE_MAX, SizeRangeError, parse_size

if t.TYPE_CHECKING:
    from ..images.image import Image
    from ..images.image import Progress as Listener

HELP = b"""\
List persistent bitmaps of image, or modify one.  Usage:

  airlock bitmap ( --merge SOURCE | --add | --remove | --clear |
                --enable | --disable ).. [-f FMT | --image-opts] [-q] [-p] [--follow-links]
        [--output human|json] [-b SRC_FILENAME [-F SOURCE_FMT]]
        [-g SIZE[KMGTPE]] FILENAME BITMAP
  airlock bitmap --remove-damaged [-f FMT | --image-opts] [-q] [-p] [--follow-links]
        [--output human|json] FILENAME
  airlock bitmap --list [--extents BITMAP [--limit N]] [-f FMT | --image-opts] [-q] [-U]
        [--follow-links] [--output human|json] FILENAME

Arguments:
  -h, --help
     print this help and exit
  -f FMT
     specify FILENAME format explicitly: qcow2, which is the default as well
  --image-opts
     FILENAME is driver=qcow2,file.driver=file,file.filename=PATH, or a part of it
  -q, --quiet
     quiet operations: no warnings
  -p, --progress
     show how far a change is
  --output human|json
     specify output format name (default human)
  Operations, any number, in order, all of them or none:
    --add
       creates BITMAP, enables to record future edits
    --remove
       removes BITMAP
    --clear
       clears BITMAP
    --enable, --disable
       starts and stops recording future edits to BITMAP
    --merge SOURCE
       merges contents of SOURCE bitmap into BITMAP
  -g, --granularity SIZE[KMGTPE]
     sets non-default bitmap granularity for --add to this size
  -b, --source-file SRC_FILENAME
     select alternative source file for --merge
  -F, --source-format SRC_FMT
     specify format for SRC_FILENAME explicitly: qcow2, which is the default
  --remove-damaged
     removes the bitmaps that are damaged, or all when their directory is; disk
     and snapshots stay
  --list
     lists bitmaps in FILENAME
  --extents BITMAP
     lists the dirty ranges of BITMAP as well
  --limit N
     no more than N of them
  -U, --force-share
     open image in shared mode for concurrent access
  --follow-links
     follow symbolic links on the way to a file wherever they lead
"""

_OPTIONS = (
    (b"help", b"h", False),
    (b"image-opts", b"", False),
    (b"add", b"", False),
    (b"remove", b"", False),
    (b"clear", b"", False),
    (b"enable", b"", False),
    (b"disable", b"", False),
    (b"merge", b"", True),
    (b"source-file", b"b", True),
    (b"source-format", b"F", True),
    (b"granularity", b"g", True),
    (b"remove-damaged", b"", False),
    (b"list", b"", False),
    (b"extents", b"", True),
    (b"limit", b"", True),
    (b"quiet", b"q", False),
    (b"progress", b"p", False),
    (b"force-share", b"U", False),
    (b"follow-links", b"", False),
    (b"output", b"", True),
)
_OWN = (
    b"remove-damaged",
    b"list",
    b"extents",
    b"limit",
    b"quiet",
    b"progress",
    b"force-share",
    b"follow-links",
    b"output",
)
_VERBS = (b"add", b"remove", b"clear", b"enable", b"disable", b"merge")


class _Wanted(Arguments):
    """verbs: (action, the value that --merge has). name: of the bitmap. extents: of which bitmap, limit: how many."""

    def __init__(self) -> None:
        super().__init__()
        self.verbs: list[tuple[bytes, bytes]] = []
        self.granularity = 0
        self.source: bytes | None = None
        self.source_format: bytes | None = None
        self.name = b""
        self.damaged = False
        self.listing = False
        self.extents: bytes | None = None
        self.limit = 0
        self.progress = False


def run(arguments: t.Sequence[bytes]) -> None:
    """Lists the bitmaps of an image, or changes one. Raises OptionError, UsageError, HelpRequest, AirlockError."""
    wanted = _parse(arguments)
    if wanted.listing:
        with qemu_words.speaking(qemu_words.bitmap(["list"])), wanted.open(writable=False) as image:
            found = list_bitmaps(image, extents_of=wanted.extents, extents_limit=wanted.limit)
        _warn_of(wanted, found.bitmaps, 0, found.damage)
        if wanted.json:
            say_json(_list_facts(found, wanted))
        else:
            say_all(_list_lines(found, wanted))
        return
    verbs = [verb.decode() for verb, _value in wanted.verbs]
    with (
        qemu_words.speaking(qemu_words.bitmap(verbs or ["remove_damaged"])),
        wanted.open(writable=True) as image,
    ):
        opening = contextlib.nullcontext() if wanted.source is None else _open_source(image, wanted)
        with opening as source, Progress(wanted.progress and not wanted.quiet) as progress:
            with all_or_nothing(image):
                done = _change(image, source, wanted, progress.listener)
            progress.step(1, 1)
    _warn_of(wanted, done.bitmaps, done.leaked_clusters)
    if wanted.json:
        say_json(_change_facts(done, wanted))


def _parse(arguments: t.Sequence[bytes]) -> _Wanted:
    """Raises OptionError, UsageError and HelpRequest in the order in which qemu-img would come upon the reason."""
    wanted = _Wanted()
    options = Options(arguments, b"b:f:F:g:hqpU", _OPTIONS, whole=_OWN)
    for option, value in options:
        if option == b"h":
            raise HelpRequest(HELP)
        if option in _VERBS:
            wanted.verbs.append((option, value))
        elif option == b"b":
            wanted.source = value
        elif option == b"F":
            wanted.source_format = value
        elif option == b"g":
            wanted.granularity = _granularity(value)
        elif option == b"remove-damaged":
            wanted.damaged = True
        elif option == b"list":
            wanted.listing = True
        elif option == b"extents":
            wanted.extents = value
        elif option == b"p":
            wanted.progress = True
        elif option == b"limit":
            wanted.limit = _limit(value)
        else:
            wanted.take(option, value)
    if wanted.listing or wanted.extents is not None or wanted.limit:
        _check_listing(wanted, options.rest)
    elif wanted.damaged:
        _check_plain(wanted, b"--remove-damaged is about all bitmaps: it cannot be mixed with what changes one")
        wanted.take_path(options.rest)
    else:
        _check_change(wanted, options.rest)
    return wanted


def _check_plain(wanted: _Wanted, message: bytes) -> None:
    """Raises UsageError when something is to be done with one bitmap."""
    if wanted.verbs or wanted.granularity or wanted.source is not None or wanted.source_format is not None:
        raise UsageError(message)


def _check_change(wanted: _Wanted, operands: t.Sequence[bytes]) -> None:
    """qemu-img's checks of a list of actions."""
    added = any(verb == b"add" for verb, _value in wanted.verbs)
    merged = any(verb == b"merge" for verb, _value in wanted.verbs)
    for wrong, message in (
        (not wanted.verbs, b"Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"),
        (wanted.granularity and not added, b"granularity only supported with --add"),
        (wanted.source_format is not None and wanted.source is None, b"-F only supported with -b"),
        (wanted.source is not None and not merged, b"Merge bitmap source file only supported with --merge"),
        (len(operands) != 2, b"Expecting filename and bitmap name"),
    ):
        if wrong:
            raise UsageError(message, hint=False)
    wanted.take_path(operands[:1])
    wanted.name = operands[1]


def _check_listing(wanted: _Wanted, operands: t.Sequence[bytes]) -> None:
    """The checks of --list, which qemu-img has not."""
    _check_plain(wanted, b"--list reads only: it cannot be mixed with what changes a bitmap")
    if wanted.damaged:
        raise UsageError(b"--list reads only: it cannot be mixed with --remove-damaged")
    if not wanted.listing:
        raise UsageError(b"--extents and --limit only supported with --list")
    if wanted.limit and wanted.extents is None:
        raise UsageError(b"--limit only supported with --extents")
    wanted.take_path(operands)


def _granularity(text: bytes) -> int:
    try:
        return parse_size(text)
    except SizeRangeError:
        message = b"Invalid granularity specified. Must be between 0 and %d." % SIZE_MAX
    except ValueError:
        message = b"Invalid granularity specified: '%s'." % text
    raise UsageError(message, hint=False)


def _limit(text: bytes) -> int:
    if not text.isdigit() or len(text) > 7 or not 0 < int(text) <= EXTENTS_MAX:
        raise UsageError(b"--limit expects a number from 1 to %d, not '%s'" % (EXTENTS_MAX, text))
    return int(text)


def _open_source(image: Image, wanted: _Wanted) -> Image:
    """The image that --merge reads. Where that fails, what is wrong with the first image is told instead: qemu-img
    opens that one first."""
    source_format = b"qcow2" if wanted.source_format is None else wanted.source_format
    try:
        return wanted.open_other(wanted.source or b"", source_format, writable=False)
    except errors.AirlockError:
        with contextlib.suppress(errors.BitmapError):
            change_bitmap(image, wanted.name, [Action.disable()], dry_run=True, counts=False)
        raise


def _change(image: Image, source: Image | None, wanted: _Wanted, progress: Listener) -> BitmapChange:
    if wanted.damaged:
        return change_bitmap(image, b"", [Action.remove_damaged()], counts=wanted.json, progress=progress)
    # qemu-img takes the low 32 bits; zero means the usual granularity only if all 64 are. One byte is refused alike.
    granularity = wanted.granularity & 0xFFFFFFFF or min(wanted.granularity, 1)
    actions = []
    for verb, value in wanted.verbs:
        if verb == b"add":
            actions.append(Action.add(granularity))
        elif verb == b"merge":
            actions.append(Action.merge(value, source))
        else:
            actions.append(Action(verb.decode()))
    return change_bitmap(image, wanted.name, actions, counts=wanted.json, progress=progress)


# ---- what is printed ---------------------------------------------------------------------------------------


def flag_names(bitmap: Bitmap) -> list[str]:
    """qemu's names of the flags, in its order; stale is ours."""
    flags = (("in-use", bitmap.in_use), ("auto", bitmap.recording), ("stale", bitmap.stale))
    return [name for name, is_set in flags if is_set]


def warn_of_stale(path: bytes, bitmaps: t.Iterable[Bitmap]) -> None:
    """The warning that qemu prints as well, whenever it opens such an image."""
    if any(bitmap.stale for bitmap in bitmaps):
        warn(
            path, b": a program that knows no bitmaps has written to the image: they are stale, and can only be removed"
        )


def warn_of_damage(path: bytes, damage: str) -> None:
    """Where qemu-img would open nothing."""
    if damage:
        warn(path, b": the bitmaps are damaged: " + damage.encode())


def _warn_of(wanted: _Wanted, bitmaps: t.Iterable[Bitmap], leaked_clusters: int, damage: str = "") -> None:
    if wanted.quiet:
        return
    warn_of_damage(wanted.path, damage)
    warn_of_stale(wanted.path, bitmaps)
    if leaked_clusters:
        warn_of_leaks(wanted.path, leaked_clusters)


def _bitmap_facts(bitmap: Bitmap) -> dict[str, t.Any]:
    return {
        "name": bitmap.name.decode("utf-8", "replace"),
        "granularity": bitmap.granularity,
        "flags": flag_names(bitmap),
        "inconsistent": bitmap.inconsistent,
        "dirty-bytes": bitmap.dirty_bytes,
        "count": bitmap.dirty_count,
    }


def _extent_facts(extent: Extent) -> dict[str, int]:
    return {"start": extent.offset, "length": extent.length}


def _change_facts(done: BitmapChange, wanted: _Wanted) -> dict[str, t.Any]:
    return {
        "actions-applied": len(wanted.verbs),
        "changed": done.changed,
        "resulting-bitmaps": len(done.bitmaps),
        "bitmaps": Made(_bitmap_facts, done.bitmaps),
        "virtual-size": done.virtual_size,
        "freed-clusters": done.freed_clusters,
        "leaked-clusters": done.leaked_clusters,
    }


def _list_facts(found: BitmapList, wanted: _Wanted) -> dict[str, t.Any]:
    facts: dict[str, t.Any] = {
        "bitmaps": Made(_bitmap_facts, found.bitmaps),
        "virtual-size": found.virtual_size,
    }
    if wanted.extents is not None:
        facts["extents"] = Made(_extent_facts, found.extents)
        facts["extents-end"] = found.extents_end
    return facts


_LINE = b"%11s %10s %20s %-12s %s\n"
_EXTENT = b"%20d %20d\n"


def _list_lines(found: BitmapList, wanted: _Wanted) -> t.Iterator[bytes]:
    """The table; names come last, as they can be long. Nothing at all when there are no bitmaps."""
    if found.bitmaps:
        yield b"Bitmap list:\n" + _LINE % (b"GRANULARITY", b"DIRTY", b"COUNT", b"FLAGS", b"NAME")
    for bitmap in found.bitmaps:
        dirty = b"-" if bitmap.dirty_bytes is None else format_size(bitmap.dirty_bytes).encode()
        count = b"-" if bitmap.dirty_count is None else b"%d" % bitmap.dirty_count
        flags = ",".join(flag_names(bitmap)).encode() or b"-"
        yield _LINE % (format_size(bitmap.granularity).encode(), dirty, count, flags, shown(bitmap.name))
    if wanted.extents is None:
        return
    yield b"Dirty ranges of '%s':\n%20s %20s\n" % (shown(wanted.extents), b"START", b"LENGTH")
    for extent in found.extents:
        yield _EXTENT % extent
    if found.extents_end < found.virtual_size:
        yield b"There may be more from %d on.\n" % found.extents_end
