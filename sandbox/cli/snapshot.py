# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""airlock snapshot"""

from __future__ import annotations

import os
import time
import typing as t

from .. import errors
from ..facts.listing import listing_lines
from ..guests._limits import SNAPSHOT_NAME_MAX
from ..images import snapshot_changes, snapshots
from ..images.snapshot_changes import Applied, Created, Deleted
from ..images.snapshots import Selector, Snapshot
from . import qemu_words
from .common import Arguments, HelpRequest, Made, UsageError, all_or_nothing, say_all, say_json, shown, warn_of_leaks
from .options import Options
from .progress import Progress

if t.TYPE_CHECKING:
    from ..images.image import Image
    from ..images.image import Progress as Listener

HELP = b"""\
List or manipulate snapshots within image.  Usage:

  airlock snapshot [-f FMT | --image-opts] [-l | -a|-c|-d SNAPSHOT]
        [-q] [-p] [-U] [--no-resize] [--follow-links] [--output human|json] FILENAME

Arguments:
  -h, --help
     print this help and exit
  -q, --quiet
     quiet operations: no warnings
  -p, --progress
     show how far a change is
  -f, --format FMT
     specify FILENAME format explicitly: qcow2, which is the default as well
  --image-opts
     FILENAME is driver=FMT,file.driver=file,file.filename=PATH, or a part of it
  -U, --force-share
     open image in shared mode for concurrent access
  --no-resize
     do not apply a snapshot of another disk size
  --follow-links
     follow symbolic links on the way to a named file wherever they lead
  --output human|json
     specify output format name (default human)
  Operation, one of:
    -l, --list
       list snapshots in FILENAME (the default)
    -c, --create SNAPSHOT
       create named snapshot
    -a, --apply SNAPSHOT
       apply named snapshot to the base
    -d, --delete SNAPSHOT
       delete named snapshot
  FILENAME
     image file name
"""

_OPTIONS = (
    (b"help", b"h", False),
    (b"image-opts", b"", False),
    (b"quiet", b"q", False),
    (b"progress", b"p", False),
    (b"format", b"f", True),
    (b"force-share", b"U", False),
    (b"list", b"l", False),
    (b"apply", b"a", True),
    (b"create", b"c", True),
    (b"delete", b"d", True),
    (b"no-resize", b"", False),
    (b"follow-links", b"", False),
    (b"output", b"", True),
)


class _Wanted(Arguments):
    """operation: its short option, b"" without one; value: that option's."""

    def __init__(self) -> None:
        super().__init__()
        self.operation = b""
        self.value = b""
        self.resize = True
        self.progress = False


def run(arguments: t.Sequence[bytes]) -> None:
    """Lists or changes the snapshots of an image. Raises OptionError, UsageError, HelpRequest, AirlockError."""
    wanted = _parse(arguments)
    reads = wanted.operation in (b"", b"l")
    verbs = {b"c": "create", b"a": "apply", b"d": "delete"}
    voice = qemu_words.reading() if reads else qemu_words.snapshot(verbs[wanted.operation])
    with qemu_words.speaking(voice), wanted.open(writable=not reads) as image:
        if reads:
            _say_list(snapshots.list_snapshots(image).snapshots, wanted)
            return
        with Progress(wanted.progress and not wanted.quiet) as progress:
            with all_or_nothing(image):
                done = _change(image, wanted, progress.listener)
            progress.step(1, 1)
        if done.leaked_clusters and not wanted.quiet:
            warn_of_leaks(wanted.path, done.leaked_clusters)
        if wanted.json:
            say_json(_change_facts(done))


def _change(image: Image, wanted: _Wanted, progress: Listener) -> Created | Applied | Deleted:
    if wanted.operation == b"c":
        return snapshot_changes.create_snapshot(image, wanted.value[:SNAPSHOT_NAME_MAX], _date(), progress=progress)
    if wanted.operation == b"a":
        selector = Selector.by_id_or_name(wanted.value)
        return snapshot_changes.apply_snapshot(image, selector, allow_resize=wanted.resize, progress=progress)
    return snapshot_changes.delete_snapshot(image, Selector.by_name(wanted.value), progress=progress)


def _parse(arguments: t.Sequence[bytes]) -> _Wanted:
    """Raises OptionError, UsageError and HelpRequest in the order in which qemu-img would come upon the reason."""
    wanted = _Wanted()
    options = Options(arguments, b"hf:la:c:d:Uqp", _OPTIONS, whole=(b"follow-links", b"progress"))
    for option, value in options:
        if option == b"h":
            raise HelpRequest(HELP)
        if option in (b"l", b"a", b"c", b"d"):
            if wanted.operation:
                raise UsageError(b"Cannot mix '-l', '-a', '-c', '-d'")
            wanted.operation, wanted.value = option, value
        elif option == b"p":
            wanted.progress = True
        elif option == b"no-resize":
            wanted.resize = False
        else:
            wanted.take(option, value)
    wanted.take_path(options.rest)
    return wanted


def _date() -> tuple[int, int]:
    """The new snapshot's date: SOURCE_DATE_EPOCH, or now, to the microsecond as qemu has it."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return divmod(time.time_ns() // 1000 * 1000, 1_000_000_000)
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise errors.ArgumentError("SOURCE_DATE_EPOCH is not a number of seconds. Unset it, or set it to one.")
    return int(text), 0


def _say_list(found: t.Sequence[Snapshot], wanted: _Wanted) -> None:
    if wanted.json:
        say_json(Made(_facts, found))
    else:
        say_all(listing_lines(found, shown))


def _facts(entry: Snapshot) -> dict[str, t.Any]:
    return {
        "id": entry.id.decode("utf-8", "replace"),
        "name": entry.name.decode("utf-8", "replace"),
        "vm-state-size": entry.vm_state_size,
        "date": {"sec": entry.date_seconds, "nsec": entry.date_nanoseconds},
        "vm-clock": entry.vm_clock,
        "icount": entry.icount,
    }


def _change_facts(done: Created | Applied | Deleted) -> dict[str, t.Any]:
    """What a change has to tell as JSON; qemu-img has nothing of the kind."""
    fields = {key: value for key, value in done._asdict().items() if key not in ("report", "now")}
    facts: dict[str, t.Any] = {key.replace("_", "-"): value for key, value in fields.items()}
    if isinstance(done, Created):
        facts["id"] = done.id.decode("utf-8", "replace")
    return facts
