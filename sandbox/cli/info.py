# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""airlock info"""

from __future__ import annotations

import os
import typing as t

from ..facts.listing import format_size, listing_lines
from ..images import info
from ..images.bitmaps import Bitmap, list_bitmaps
from ..images.info import ImageInfo
from . import qemu_words
from .bitmap import flag_names, warn_of_damage, warn_of_stale
from .common import Arguments, HelpRequest, Made, UsageError, encoded, say, say_all, say_json, shown
from .options import Options

if t.TYPE_CHECKING:
    from ..facts.chain_facts import ChainFacts
    from ..images.image import Image
    from ..images.vmdk import VmdkInfo

HELP = b"""\
Display information about image.  Usage:

  airlock info [-f FMT | --image-opts] [-U] [--chain [--allowed-root PATH]... [--backing-format FMT]]
        [--follow-links] [--output human|json] FILENAME

Arguments:
  -h, --help
     print this help and exit
  -f, --format FMT
     specify FILENAME format explicitly: qcow2, which is the default, or vmdk
  --image-opts
     FILENAME is driver=FMT,file.driver=file,file.filename=PATH, or a part of it
  -U, --force-share
     open image in shared mode for concurrent access
  --chain
     open the images that it stands on as well, and show them all; names that
     lead out of the directory of the image that has them are refused
  --allowed-root PATH
     a directory, a file or a block device that such names may lead to
  --backing-format FMT
     qcow2, raw or vmdk: the format of backing files where none is recorded
  --follow-links
     follow symbolic links on the way to a named file wherever they lead
  --output human|json
     specify output format name (default human)
  FILENAME
     image file name
"""

_OPTIONS = (
    (b"help", b"h", False),
    (b"image-opts", b"", False),
    (b"format", b"f", True),
    (b"force-share", b"U", False),
    (b"output", b"", True),
    (b"chain", b"", False),
    (b"allowed-root", b"", True),
    (b"follow-links", b"", False),
    (b"backing-format", b"", True),
)
_ADDED = (b"follow-links", b"chain", b"allowed-root", b"backing-format")


class _Wanted(Arguments):
    """What the command line of `airlock info` asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = False
        self.allowed_roots: list[bytes] = []
        self.backing_format: str | None = None

    def take(self, option: bytes, value: bytes) -> None:
        if option == b"chain":
            self.chain = True
        elif option == b"allowed-root":
            self.allowed_roots.append(value)
        elif option == b"backing-format":
            self.backing_format = os.fsdecode(value)
        else:
            super().take(option, value)

    def check(self) -> None:
        """Raises UsageError."""
        if not self.chain and (self.allowed_roots or self.backing_format is not None):
            raise UsageError(b"--allowed-root and --backing-format are for --chain")


def run(arguments: t.Sequence[bytes]) -> None:
    """Prints what the image tells, and its chain. Raises OptionError, UsageError, HelpRequest, AirlockError."""
    wanted = _Wanted()
    options = Options(arguments, b"hf:U", _OPTIONS, whole=_ADDED)
    for option, value in options:
        if option == b"h":
            raise HelpRequest(HELP)
        wanted.take(option, value)
    wanted.take_path(options.rest)
    wanted.check()
    with qemu_words.speaking(qemu_words.reading()):
        (_show_vmdk if wanted.format == b"vmdk" else _show_qcow2)(wanted)


def _show_qcow2(wanted: _Wanted) -> None:
    with wanted.open(writable=False) as image:
        found = info.image_info(image)
        listed = list_bitmaps(image)
        chain = _read_chain(image, wanted) if wanted.chain else None
    warn_of_stale(wanted.path, listed.bitmaps)
    warn_of_damage(wanted.path, listed.damage)
    if wanted.json:
        from ..facts import facts

        records = Made(facts.bitmap_facts, listed.bitmaps), Made(facts.snapshot_facts, found.snapshots)
        _say_record(facts.image_facts(os.fsdecode(wanted.path), found, *records, listed.damage), chain)
    else:
        say_all(_text(wanted.path, found, listed.bitmaps))
        say(_chain_text(chain) if chain else b"")


def _read_chain(image: Image, wanted: _Wanted) -> ChainFacts:
    from ..facts.chain_facts import read_chain  # most commands look at one file

    return read_chain(
        image,
        wanted.backing_format,
        wanted.allowed_roots,
        wanted.force_share,
        top_format=os.fsdecode(wanted.format),
    )


def _say_record(record: dict[str, t.Any], chain: ChainFacts | None) -> None:
    record.update({"chain": chain.layers, "chain_drawing": chain.drawing} if chain else {})
    say_json(record)


def _show_vmdk(wanted: _Wanted) -> None:
    """The same of a vmdk image."""
    from ..images.vmdk import vmdk_info  # another guest

    with wanted.open(writable=False, formats=(b"vmdk",)) as image:
        found = vmdk_info(image)
        chain = _read_chain(image, wanted) if wanted.chain else None
    if wanted.json:
        from ..facts import facts

        _say_record(facts.vmdk_facts(os.fsdecode(wanted.path), found), chain)
        return
    lines = [
        *_first_lines(wanted.path, b"vmdk", found),
        b"Format specific information:",
        b"    cid: %d" % found.content_id,
        b"    parent cid: %d" % found.parent_content_id,
        b"    create type: monolithicSparse",
        b"    extents:",  # the one that there can be, and it is the file itself
        b"        [0]:",
        b"            virtual size: %d" % found.virtual_size,
        b"            filename: " + shown(wanted.path),
        b"            cluster size: %d" % found.cluster_size,
        b"            format: ",
    ]
    say(b"\n".join(lines) + b"\n" + (_chain_text(chain) if chain else b""))


def _text(path: bytes, found: ImageInfo, bitmaps: t.Sequence[Bitmap]) -> t.Iterator[bytes]:
    """The facts in qemu-img info's layout, as far as the image alone tells them."""
    yes_no = (b"false", b"true")
    yield b"\n".join(_first_lines(path, b"qcow2", found)) + b"\n"
    yield from listing_lines(found.snapshots, shown)
    details = [
        b"Format specific information:",
        b"    compat: " + (b"0.10" if found.version == 2 else b"1.1"),
        b"    compression type: " + found.compression_type.encode(),
        b"    lazy refcounts: " + yes_no[found.lazy_refcounts],
    ]
    yield b"\n".join(details) + b"\n"
    yield from _bitmap_lines(bitmaps)
    details = [
        b"    refcount bits: %d" % found.refcount_bits,
        b"    dirty: " + yes_no[found.dirty],
        b"    corrupt: " + yes_no[found.corrupt],
        b"    extended l2: " + yes_no[found.extended_l2],
        b"    encryption: " + (found.encryption or "none").encode(),
    ]
    yield b"\n".join(details) + b"\n"


def _first_lines(path: bytes, format_name: bytes, found: ImageInfo | VmdkInfo) -> list[bytes]:
    """What images of all formats have."""
    lines = [
        b"image: " + shown(path),
        b"file format: " + format_name,
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
    return lines


def _bitmap_lines(bitmaps: t.Sequence[Bitmap]) -> t.Iterator[bytes]:
    """The bitmaps as qemu-img info has them, and how much of the disk is dirty in each."""
    if bitmaps:
        yield b"    bitmaps:\n"
    for index, bitmap in enumerate(bitmaps):
        lines = [b"        [%d]:" % index, b"            flags:"]
        lines += [b"                [%d]: %s" % (i, name.encode()) for i, name in enumerate(flag_names(bitmap))]
        lines += [b"            name: " + shown(bitmap.name), b"            granularity: %d" % bitmap.granularity]
        lines += [] if bitmap.dirty_bytes is None else [b"            dirty bytes: %d" % bitmap.dirty_bytes]
        yield b"\n".join(lines) + b"\n"


def _chain_text(chain: ChainFacts) -> bytes:
    """The layers, from the top to the base. Their text is printable already."""
    lines = [f"Backing chain: {chain.drawing}"]
    for layer in chain.layers:
        lines += [
            f"    [{layer['depth']}]:",
            f"        image: {layer['path']}",
            f"        file format: {layer['format']}",
        ]
        for title, key in (("virtual size", "virtual_size"), ("file length", "file_size")):
            lines.append(f"        {title}: {_size(layer[key]).decode()}")
        for title, key in (
            ("backing file", "backing_file"),
            ("backing file format", "backing_format"),
            ("data file", "data_file"),
        ):
            lines += [f"        {title}: {layer[key]}"] if layer[key] else []
    return encoded("\n".join(lines)) + b"\n"


def _size(size: int) -> bytes:
    return f"{format_size(size)} ({size} bytes)".encode()
