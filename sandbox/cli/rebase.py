# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""airlock rebase"""

from __future__ import annotations

import contextlib
import os
import typing as t

from .. import errors
from ..images import rebases
from ..images.chain import Chain, draw, drawing, open_chain
from . import qemu_words
from .common import Arguments, HelpRequest, UsageError, say_json
from .options import Options
from .progress import Progress

if t.TYPE_CHECKING:
    from ..images.image import Image
    from ..images.rebases import NewBacking, Rebase

HELP = b"""\
Change backing file of the image.  Usage:

  airlock rebase [-f FMT | --image-opts] [-t CACHE] [-q] [-U] [-p]
        [-b BACKING_FILENAME [-F BACKING_FMT] [-T BACKING_CACHE]] [-u] [-c]
        [--allowed-root PATH]... [--unrecorded-format FMT]
        [--follow-links] [--output human|json] FILENAME
Rebases FILENAME on top of BACKING_FILENAME or no backing file

Arguments:
  -h, --help
     print this help and exit
  -q, --quiet
     quiet operation
  -p, --progress
     show progress indicator
  -f, --format FMT
     specify FILENAME format explicitly: qcow2, which is the default as well
  --image-opts
     FILENAME is driver=FMT,file.driver=file,file.filename=PATH, or a part of it
  -t, --cache CACHE
     cache mode for FILENAME (writeback); with unsafe, nothing is made sure to
     be on stable storage
  -b, --backing BACKING_FILENAME|""
     rebase onto this file (or no backing file)
  -F, --backing-format BACKING_FMT
     specify format for BACKING_FILENAME
  -T, --backing-cache CACHE
     BACKING_FILENAME cache mode (writeback)
  -u, --backing-unsafe
     change the name only; no backing file is opened
  -c, --compress
     compress what is copied into FILENAME
  -U, --force-share
     open BACKING_FILENAME in shared mode for concurrent access
  --allowed-root PATH
     a directory, a file or a block device that names of backing files may lead
     to, besides the directory of the image that has them; BACKING_FILENAME
     itself may be anywhere
  --unrecorded-format FMT
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
    (b"force-share", b"U", False),
    (b"quiet", b"q", False),
    (b"progress", b"p", False),
    (b"format", b"f", True),
    (b"cache", b"t", True),
    (b"backing", b"b", True),
    (b"backing-format", b"F", True),
    (b"backing-cache", b"T", True),
    (b"backing-unsafe", b"u", False),
    (b"compress", b"c", False),
    (b"allowed-root", b"", True),
    (b"follow-links", b"", False),
    (b"unrecorded-format", b"", True),
    (b"output", b"", True),
)
_ADDED = (b"follow-links", b"allowed-root", b"unrecorded-format", b"output")
_CACHE_MODES = (b"none", b"off", b"directsync", b"writeback", b"unsafe", b"writethrough")
# What QEMU has a driver for (qemu-img --help): where only the name is written into a header, it may be any of them.
_QEMU_FORMATS = (
    *(
        "blkdebug",
        "blklogwrites",
        "blkverify",
        "bochs",
        "cloop",
        "compress",
        "copy-before-write",
        "copy-on-read",
        "dmg",
    ),
    *("file", "ftp", "ftps", "gluster", "host_cdrom", "host_device", "http", "https", "iscsi", "iser", "luks", "nbd"),
    *("nfs", "null-aio", "null-co", "nvme", "parallels", "preallocate", "qcow", "qcow2", "qed", "quorum", "raw", "rbd"),
    *("replication", "snapshot-access", "ssh", "throttle", "vdi", "vhdx", "vmdk", "vpc", "vvfat"),
)


class _Wanted(Arguments):
    """What the command line of `airlock rebase` asks for. backing: None: -b was not given."""

    def __init__(self) -> None:
        super().__init__()
        self.backing: bytes | None = None
        self.backing_format: bytes | None = None
        self.cache = b"writeback"
        self.backing_cache = b"writeback"
        self.unsafe = False
        self.compress = False
        self.shares_backing = False
        self.progress = False
        self.allowed_roots: list[bytes] = []
        self.unrecorded_format: str | None = None

    def take(self, option: bytes, value: bytes) -> None:
        if option in _VALUES:
            setattr(self, _VALUES[option], value)
        elif option in _SWITCHES:
            setattr(self, _SWITCHES[option], True)
        elif option == b"allowed-root":
            self.allowed_roots.append(value)
        elif option == b"unrecorded-format":
            self.unrecorded_format = os.fsdecode(value)
        else:
            super().take(option, value)

    def check(self) -> None:
        """Raises UsageError."""
        if not self.unsafe and self.backing is None:
            raise UsageError(b"Must specify backing file (-b) or use unsafe mode (-u)")

    def check_cache(self) -> None:
        """Raises UsageError."""
        for title, mode in ((b"cache", self.cache), (b"source cache", self.backing_cache)):
            if mode not in _CACHE_MODES:
                raise UsageError(b"Invalid %s option: %s" % (title, mode), hint=False)

    def check_formats(self) -> None:
        """What qemu-img looks at when the image is open. Raises ArgumentError."""
        if self.backing_format is not None and os.fsdecode(self.backing_format) not in _QEMU_FORMATS:
            shown = os.fsdecode(self.backing_format)
            raise errors.ArgumentError(
                f"QEMU knows no format '{errors.clean(shown, 32)}'. State qcow2, raw or vmdk.",
                "unknown_format",
                given=shown,
            )

    @property
    def recorded_format(self) -> str:
        return os.fsdecode(self.backing_format or b"")


_VALUES = {b"b": "backing", b"F": "backing_format", b"t": "cache", b"T": "backing_cache"}
_SWITCHES = {b"u": "unsafe", b"c": "compress", b"U": "shares_backing", b"p": "progress"}


def run(arguments: t.Sequence[bytes]) -> None:
    """Changes an image's backing file. Raises OptionError, UsageError, HelpRequest, AirlockError."""
    wanted = _Wanted()
    options = Options(arguments, b"hf:F:b:upt:T:qUc", _OPTIONS, whole=_ADDED)
    for option, value in options:
        if option == b"h":
            raise HelpRequest(HELP)
        wanted.take(option, value)
    wanted.take_path(options.rest)
    wanted.check()
    with qemu_words.speaking(qemu_words.rebase()), Progress(wanted.progress and not wanted.quiet) as progress:
        wanted.check_cache()
        facts = _relink(wanted) if wanted.unsafe else _rebase(wanted, progress)
        progress.step(1, 1)
    if wanted.json:
        say_json(facts)


def _relink(wanted: _Wanted) -> dict[str, t.Any]:
    with wanted.open(writable=True) as image:
        wanted.check_formats()
        done = rebases.relink(image, wanted.backing or b"", wanted.recorded_format)
    return _facts(wanted, image, done)


def _rebase(wanted: _Wanted, progress: Progress) -> dict[str, t.Any]:
    with wanted.open(writable=True) as image, _open_chain(image, wanted) as chain, contextlib.ExitStack() as stack:
        wanted.check_formats()
        backing = stack.enter_context(_open_backing(chain, wanted)) if wanted.backing else None
        done = rebases.rebase(
            chain,
            backing,
            limits=rebases.rebase_limits(chain, flushes=wanted.cache != b"unsafe"),
            progress=progress.listener,
            compressed=wanted.compress,
        )
        before = drawing(chain)
        after = draw([layer.path for layer in (chain.top, *(backing.layers if backing else ()))])
    return {**_facts(wanted, image, done), "chain-before": before, "chain": after}


def _open_chain(image: Image, wanted: _Wanted) -> Chain:
    return open_chain(image, backing_format=wanted.unrecorded_format, allowed_roots=wanted.allowed_roots)


def _open_backing(chain: Chain, wanted: _Wanted) -> NewBacking:
    return rebases.open_backing(
        chain,
        wanted.backing or b"",
        wanted.recorded_format,
        backing_format=wanted.unrecorded_format,
        allowed_roots=wanted.allowed_roots,
        force_share=wanted.shares_backing,
    )


def _facts(wanted: _Wanted, image: Image, done: Rebase) -> dict[str, t.Any]:
    return {
        "filename": _shown(os.fsencode(image.path)),
        "backing-filename": _shown(wanted.backing) if wanted.backing else None,
        "backing-format": wanted.recorded_format if wanted.backing else None,
        "unsafe": wanted.unsafe,
        "bytes-copied": done.bytes_copied,
        "bytes-zeroed": done.bytes_zeroed,
        "virtual-size": done.virtual_size,
    }


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "replace")
