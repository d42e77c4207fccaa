# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""airlock info"""

from __future__ import annotations

import os
import typing as t

from . import info
from .bitmaps import Bitmap, list_bitmaps
from .cli_bitmap import flag_names, warn_of_stale
from .cli_common import Arguments, HelpRequest, json_text, say, shown
from .info import ImageInfo
from .listing import format_listing, format_size
from .options import Options

HELP = b"""\
Display information about image.  Usage:

  airlock info [-f FMT] [-U] [--output human|json] FILENAME

Arguments:
  -h, --help
     print this help and exit
  -f, --format FMT
     specify FILENAME format explicitly: qcow2, which is the default as well
  -U, --force-share
     open image in shared mode for concurrent access
  --output human|json
     specify output format name (default human)
  FILENAME
     image file name
"""

_OPTIONS = (
    (b"help", b"h", False),
    (b"format", b"f", True),
    (b"force-share", b"U", False),
    (b"output", b"", True),
)


def run(arguments: t.Sequence[bytes]) -> None:
    """Prints what the image alone tells. Raises OptionError, UsageError, HelpRequest, AirlockError."""
    wanted = Arguments()
    options = Options(arguments, b"hf:U", _OPTIONS)
    for option, value in options:
        if option == b"h":
            raise HelpRequest(HELP)
        wanted.take(option, value)
    wanted.take_path(options.rest)
    with wanted.open(writable=False) as image:
        found = info.image_info(image)
        bitmaps = list_bitmaps(image).bitmaps
    warn_of_stale(wanted.path, bitmaps)
    if wanted.json:
        from . import facts

        say(json_text(facts.image_facts(os.fsdecode(wanted.path), found, bitmaps)))
    else:
        say(_text(wanted.path, found, bitmaps))


def _text(path: bytes, found: ImageInfo, bitmaps: t.Sequence[Bitmap]) -> bytes:
    """The facts in qemu-img info's layout, as far as the image alone tells them."""
    yes_no = (b"false", b"true")
    lines = [
        b"image: " + shown(path),
        b"file format: qcow2",
        b"virtual size: " + _size(found.virtual_size),
        b"file length: " + _size(found.file_size),
    ]
    lines += [b"encrypted: yes"] if found.encryption else []
    lines += [b"cluster_size: %d" % found.cluster_size]
    for title, name in (
        (b"backing file", found.backing_name),
        (b"backing file format", found.backing_format),
        (b"data file", found.data_file),
    ):
        lines += [title + b": " + shown(name)] if name else []
    listing = format_listing(found.snapshots, escape=os.isatty(1))
    details = [
        listing + b"Format specific information:",
        b"    compat: " + (b"0.10" if found.version == 2 else b"1.1"),
        b"    compression type: " + found.compression_type.encode(),
        b"    lazy refcounts: " + yes_no[found.lazy_refcounts],
        *_bitmap_lines(bitmaps),
        b"    refcount bits: %d" % found.refcount_bits,
        b"    dirty: " + yes_no[found.dirty],
        b"    corrupt: " + yes_no[found.corrupt],
        b"    extended l2: " + yes_no[found.extended_l2],
        b"    encryption: " + (found.encryption or "none").encode(),
    ]
    return b"\n".join([*lines, *details]) + b"\n"


def _bitmap_lines(bitmaps: t.Sequence[Bitmap]) -> list[bytes]:
    """The bitmaps as qemu-img info has them, and how much of the disk is dirty in each."""
    lines = [b"    bitmaps:"] if bitmaps else []
    for index, bitmap in enumerate(bitmaps):
        lines += [b"        [%d]:" % index, b"            flags:"]
        lines += [b"                [%d]: %s" % (i, name.encode()) for i, name in enumerate(flag_names(bitmap))]
        lines += [b"            name: " + shown(bitmap.name), b"            granularity: %d" % bitmap.granularity]
        lines += [] if bitmap.dirty_bytes is None else [b"            dirty bytes: %d" % bitmap.dirty_bytes]
    return lines


def _size(size: int) -> bytes:
    return f"{format_size(size)} ({size} bytes)".encode()
