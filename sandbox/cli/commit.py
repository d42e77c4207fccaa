# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""airlock commit"""

from __future__ import annotations

import os
import typing as t

from ..images.chain import Chain, drawing, open_chain
from ..images.commit_bitmaps import POLICIES, CommitBitmaps
from ..images.commits import Commit, commit, commit_limits, empty, find_base, open_base
from ..images.image import Limits
from . import qemu_words
from .common import Arguments, HelpRequest, UsageError, say, say_json
from .options import Options
from .progress import Progress
from .sizes import SIZE_MAX, SizeRangeError, parse_size

if t.TYPE_CHECKING:
    from ..images.image import Image

HELP = b"""\
Commit image to its backing file.  Usage:

  airlock commit [-f FMT | --image-opts] [-t CACHE_MODE] [-b BASE_IMG] [-d] [-q] [-p]
        [-r RATE] [--bitmaps leave|refuse|drop|merge] [--no-resize]
        [--allowed-root PATH]... [--backing-format FMT] [--follow-links]
        [--output human|json] FILENAME

Arguments:
  -h, --help
     print this help and exit
  -q, --quiet
     quiet operations
  -p, --progress
     show operation progress
  -f, --format FMT
     specify FILENAME image format explicitly: qcow2, which is the default, or vmdk
  --image-opts
     FILENAME is driver=FMT,file.driver=file,file.filename=PATH, or a part of it
  -t, --cache CACHE_MODE image cache mode (writeback); with unsafe, nothing is
     made sure to be on stable storage
  -d, --drop
     skip emptying FILENAME on completion
  -b, --base BASE_IMG
     image in the backing chain to which to commit changes
     instead of the previous one (implies --drop)
  -r, --rate RATE
     I/O rate limit
  --bitmaps leave|refuse|drop|merge
     what becomes of the persistent bitmaps of all images above the base: leave
     them as they are (default), refuse to commit when there are any, remove
     them, or merge each into the base's of that name
  --no-resize
     refuse a base that is smaller than FILENAME, instead of making it larger
  --allowed-root PATH
     a directory, a file or a block device that names of backing files may lead
     to, besides the directory of the image that has them
  --backing-format FMT
     qcow2, raw or vmdk: the format of backing files where none is recorded
  --follow-links
     follow symbolic links on the way to a named file wherever they lead
  --output human|json
     specify output format name (default human)
  FILENAME
     name of the image file to operate on
"""

_OPTIONS = (
    (b"help", b"h", False),
    (b"image-opts", b"", False),
    (b"quiet", b"q", False),
    (b"progress", b"p", False),
    (b"format", b"f", True),
    (b"cache", b"t", True),
    (b"drop", b"d", False),
    (b"base", b"b", True),
    (b"rate", b"r", True),
    (b"bitmaps", b"", True),
    (b"no-resize", b"", False),
    (b"allowed-root", b"", True),
    (b"follow-links", b"", False),
    (b"backing-format", b"", True),
    (b"output", b"", True),
)
_ADDED = (b"follow-links", b"bitmaps", b"no-resize", b"allowed-root", b"backing-format", b"output")
_FORMATS = (b"qcow2", b"vmdk")
_CACHE_MODES = (b"none", b"off", b"directsync", b"writeback", b"unsafe", b"writethrough")


class _Wanted(Arguments):
    """What the command line of `airlock commit` asks for. base: None: the one below the top."""

    def __init__(self) -> None:
        super().__init__()
        self.base: bytes | None = None
        self.drop = False
        self.progress = False
        self.rate = 0
        self.cache = b"writeback"
        self.bitmaps = "leave"
        self.resizes = True
        self.allowed_roots: list[bytes] = []
        self.backing_format: str | None = None

    def take(self, option: bytes, value: bytes) -> None:
        if option == b"b":
            self.base, self.drop = value, True
        elif option == b"d":
            self.drop = True
        elif option == b"p":
            self.progress = True
        elif option == b"r":
            self.rate = _rate(value)
        elif option == b"t":
            self.cache = value
        elif option == b"bitmaps":
            self.bitmaps = _policy(value)
        elif option == b"no-resize":
            self.resizes = False
        elif option == b"allowed-root":
            self.allowed_roots.append(value)
        elif option == b"backing-format":
            self.backing_format = os.fsdecode(value)
        else:
            super().take(option, value)


def run(arguments: t.Sequence[bytes]) -> None:
    """Commits an image. Raises OptionError, UsageError, HelpRequest, AirlockError."""
    wanted = _Wanted()
    options = Options(arguments, b"f:ht:b:dpqr:", _OPTIONS, whole=_ADDED)
    for option, value in options:
        if option == b"h":
            raise HelpRequest(HELP)
        wanted.take(option, value)
    wanted.take_path(options.rest)
    if wanted.cache not in _CACHE_MODES:
        raise UsageError(b"Invalid cache option: " + wanted.cache, hint=False)
    with (
        qemu_words.speaking(qemu_words.commit()),
        wanted.open(writable=True, formats=_FORMATS) as image,
        _open_chain(image, wanted) as chain,
    ):
        with Progress(wanted.progress and not wanted.quiet) as progress:
            base = find_base(chain, wanted.base)
            bitmaps = None if wanted.bitmaps == "leave" else _bitmaps(chain, base, wanted.bitmaps)
            later = bitmaps is not None and bitmaps.any
            open_base(chain, base)
            limits = commit_limits(chain, rate=wanted.rate, flushes=wanted.cache != b"unsafe")
            done = commit(
                chain,
                base,
                empties=not wanted.drop and not later,
                allow_resize=wanted.resizes,
                limits=limits,
                progress=progress.listener,
                goes_on=not wanted.drop,
            )
            if bitmaps is not None and later:
                bitmaps.carry_out()
                if not wanted.drop:  # the last thing: until then the commit can be done again
                    done = done._replace(overlay_clusters_cleared=empty(chain, limits))
            progress.step(1, 1)
        if wanted.json:
            say_json(_facts(chain, base, done, bitmaps.names if bitmaps is not None else []))
        elif not wanted.quiet:
            say(b"Image committed.\n")


def _open_chain(image: Image, wanted: _Wanted) -> Chain:
    return open_chain(
        image,
        backing_format=wanted.backing_format,
        allowed_roots=wanted.allowed_roots,
        top_format=os.fsdecode(wanted.format),
    )


def _bitmaps(chain: Chain, base: int, policy: str) -> CommitBitmaps:
    bitmaps = CommitBitmaps(chain, base, policy, False, Limits, [])
    bitmaps.prepare()
    return bitmaps


def _policy(value: bytes) -> str:
    policy = os.fsdecode(value)
    if policy not in ("leave", *POLICIES):
        raise UsageError(b"--bitmaps expects leave, refuse, drop or merge, not '%s'" % value)
    return policy


def _rate(text: bytes) -> int:
    try:
        return parse_size(text)
    except SizeRangeError:
        message = b"Invalid rate limit specified. Must be between 0 and %d." % SIZE_MAX
    except ValueError:
        message = b"Invalid rate limit specified: '%s'." % text
    raise UsageError(message, hint=False)


def _facts(chain: Chain, base: int, done: Commit, bitmaps: t.Sequence[bytes]) -> dict[str, t.Any]:
    top, below = chain.top, chain.layers[base]
    return {
        "overlay": _shown(top.path),
        "overlay-format": top.format,
        "base": _shown(below.path),
        "base-format": below.format,
        "chain": drawing(chain),
        "bytes-committed": done.bytes_committed,
        "bytes-zeroed": done.bytes_zeroed,
        "clusters-committed": done.clusters_committed,
        "overlay-clusters-cleared": done.overlay_clusters_cleared,
        "bitmaps": [name.decode("utf-8", "replace") for name in bitmaps],
        "resized": done.resized,
        "virtual-size": done.virtual_size,
    }


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")
