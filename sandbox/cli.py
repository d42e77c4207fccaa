# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: qemu-img's arguments, output, messages and exit codes, with `airlock` in place of `qemu-img`.

Everything is bytes: arguments, names out of images, output. The model is Debian's qemu-img 10.0.2.
"""

from __future__ import annotations

import os
import sys
import time
import typing as t

from . import errors, operations
from .listing import escape_controls, format_listing, format_size
from .options import OptionError, Options

VERSION = b"airlock version 0.1.0\nCopyright (c) 2026 The airlock.images authors\n"

HELP = (
    VERSION
    + b"""\
qcow2 images, read and changed inside a tiny KVM guest.  Usage:

  airlock [standard options] COMMAND [--help | command options]

Standard options:
  -h, --help
     display this help and exit
  -V, --version
     display version info and exit

Recognized commands (run airlock COMMAND --help for command-specific help):

  info - Display information about image
  snapshot - List or manipulate snapshots within image
"""
)

SNAPSHOT_HELP = b"""\
List or manipulate snapshots within image.  Usage:

  airlock snapshot [-f FMT] [-l | -a|-c|-d SNAPSHOT]
        [-q] [-U] [--no-resize] [--output human|json] FILENAME

Arguments:
  -h, --help
     print this help and exit
  -q, --quiet
     quiet operations: no warnings
  -f, --format FMT
     specify FILENAME format explicitly: qcow2, which is the default as well
  -U, --force-share
     open image in shared mode for concurrent access
  --no-resize
     do not apply a snapshot of another disk size
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

INFO_HELP = b"""\
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

_TOP_OPTIONS = ((b"help", b"h", False), (b"version", b"V", False))
_SNAPSHOT_OPTIONS = (
    (b"help", b"h", False),
    (b"quiet", b"q", False),
    (b"format", b"f", True),
    (b"force-share", b"U", False),
    (b"list", b"l", False),
    (b"apply", b"a", True),
    (b"create", b"c", True),
    (b"delete", b"d", True),
    (b"no-resize", b"", False),
    (b"output", b"", True),
)
_INFO_OPTIONS = (
    (b"help", b"h", False),
    (b"format", b"f", True),
    (b"force-share", b"U", False),
    (b"output", b"", True),
)


class UsageError(Exception):
    """A wrong command line; its one argument is the message."""


class HelpRequest(Exception):
    """Not a failure: its one argument is to be printed, and that is all."""


class Arguments:
    """What a command line asks for, the same for all commands. value: of the operation's option."""

    def __init__(self) -> None:
        self.operation = b""
        self.value = b""
        self.format = b"qcow2"
        self.quiet = False
        self.force_share = False
        self.resize = True
        self.json = False
        self.path = b""


def main(arguments: t.Sequence[bytes] | None = None) -> int:
    """Runs one command line (default: the process's own); the exit code is 0, or 1 for any failure."""
    if arguments is None:
        arguments = [os.fsencode(argument) for argument in sys.argv[1:]]
    try:
        return _command(arguments)
    except errors.AirlockError as error:
        for report in error.qemu_reports or (error.message,):
            _complain(os.fsencode(report))
    except BrokenPipeError:
        return 1
    except OSError as error:
        _complain(errors.clean(str(error)).encode())
    except KeyboardInterrupt:
        return 130
    return 1


def _command(arguments: t.Sequence[bytes]) -> int:
    """Finds the command, and parses what is its own."""
    commands: dict[bytes, t.Callable[[t.Sequence[bytes]], None]] = {b"snapshot": snapshot, b"info": info}
    name = b""
    try:
        options = Options(arguments, b"hV", _TOP_OPTIONS, permute=False)
        for option, _value in options:
            raise HelpRequest(HELP if option == b"h" else VERSION)
        if not options.rest:
            raise UsageError(b"Not enough arguments")
        if options.rest[0] not in commands:
            raise UsageError(b"Command not found: " + options.rest[0])
        name = b" " + options.rest[0]
        commands[options.rest[0]](options.rest[1:])
        return 0
    except HelpRequest as wanted:
        _print(wanted.args[0])
        return 0
    except OptionError as error:
        _complain(error.line, name)
    except UsageError as error:
        _complain(error.args[0])
    _write(2, b"Try 'airlock%s --help' for more info\n" % name)
    return 1


def snapshot(arguments: t.Sequence[bytes]) -> None:
    """airlock snapshot"""
    wanted = _parse(arguments, b"hf:la:c:d:Uq", _SNAPSHOT_OPTIONS, SNAPSHOT_HELP)
    reads = wanted.operation in (b"", b"l")
    with _open(wanted, writable=not reads) as image:
        if reads:
            _print(_listing(operations.list_snapshots(image), wanted))
            return
        done: operations.Created | operations.Applied | operations.Deleted
        if wanted.operation == b"c":
            done = operations.create_snapshot(image, wanted.value[:255], _date())
        elif wanted.operation == b"a":
            selector = operations.Selector.by_id_or_name(wanted.value)
            done = operations.apply_snapshot(image, selector, allow_resize=wanted.resize)
        else:
            done = operations.delete_snapshot(image, operations.Selector.by_name(wanted.value))
        if done.leaked_clusters and not wanted.quiet:
            _warn(
                b"%s: leaked clusters: %d, counted as used but not referenced. That is harmless; "
                b"'qemu-img check -r leaks' gives the space back." % (wanted.path, done.leaked_clusters)
            )
        if wanted.json:
            _print(_json(_change_facts(done)))


def info(arguments: t.Sequence[bytes]) -> None:
    """airlock info"""
    wanted = _parse(arguments, b"hf:U", _INFO_OPTIONS, INFO_HELP)
    with _open(wanted, writable=False) as image:
        found = operations.image_info(image)
    if wanted.json:
        from . import facts

        _print(_json(facts.image_facts(os.fsdecode(wanted.path), found)))
    else:
        _print(_info_text(wanted.path, found))


def _parse(
    arguments: t.Sequence[bytes], short: bytes, long: t.Sequence[tuple[bytes, bytes, bool]], help_text: bytes
) -> Arguments:
    """Raises OptionError, UsageError and HelpRequest in the order in which qemu-img would come upon the reason."""
    wanted = Arguments()
    options = Options(arguments, short, long)
    for option, value in options:
        if option == b"h":
            raise HelpRequest(help_text)
        if option in (b"l", b"a", b"c", b"d"):
            if wanted.operation:
                raise UsageError(b"Cannot mix '-l', '-a', '-c', '-d'")
            wanted.operation, wanted.value = option, value
        elif option == b"f":
            wanted.format = value
        elif option == b"q":
            wanted.quiet = True
        elif option == b"U":
            wanted.force_share = True
        elif option == b"no-resize":
            wanted.resize = False
        elif value not in (b"human", b"json"):
            raise UsageError(b"--output expects 'human' or 'json' not '%s'" % value)
        else:
            wanted.json = value == b"json"
    if len(options.rest) != 1:
        raise UsageError(b"Expecting one image file name")
    wanted.path = options.rest[0]
    return wanted


def _open(wanted: Arguments, writable: bool) -> operations.Image:
    if wanted.format != b"qcow2":
        name, path = os.fsdecode(wanted.format), os.fsdecode(wanted.path)
        raise errors.ArgumentError(
            f"The format {errors.clean(name)} is not known, only qcow2 is.",
            "unknown_format",
            [f"Could not open '{path}': Unknown driver '{name}'"],
        )
    image = operations.Image.open(wanted.path, writable, wanted.force_share)
    if not image.lock.active and not wanted.quiet:
        _warn(b"%s is not locked against other programs: %s" % (wanted.path, image.lock.reason.encode()))
    return image


def _date() -> tuple[int, int]:
    """The new snapshot's date: SOURCE_DATE_EPOCH, or now, to the microsecond as qemu has it."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return divmod(time.time_ns() // 1000 * 1000, 1_000_000_000)
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise errors.ArgumentError("SOURCE_DATE_EPOCH is not a number of seconds. Unset it, or set it to one.")
    return int(text), 0


def _listing(found: operations.SnapshotList, wanted: Arguments) -> bytes:
    if not wanted.json:
        return format_listing(found.snapshots, escape=os.isatty(1))
    return _json(
        [
            {
                "id": entry.id.decode("utf-8", "replace"),
                "name": entry.name.decode("utf-8", "replace"),
                "vm-state-size": entry.vm_state_size,
                "date": {"sec": entry.date_seconds, "nsec": entry.date_nanoseconds},
                "vm-clock": entry.vm_clock,
                "icount": entry.icount,
            }
            for entry in found.snapshots
        ]
    )


def _change_facts(done: operations.Created | operations.Applied | operations.Deleted) -> dict[str, t.Any]:
    """What a change has to tell as JSON; qemu-img has nothing of the kind."""
    fields = {key: value for key, value in done._asdict().items() if key not in ("report", "now")}
    facts: dict[str, t.Any] = {key.replace("_", "-"): value for key, value in fields.items()}
    if isinstance(done, operations.Created):
        facts["id"] = done.id.decode("utf-8", "replace")
    return facts


def _info_text(path: bytes, found: operations.ImageInfo) -> bytes:
    """The facts in qemu-img info's layout, as far as the image alone tells them."""
    show = escape_controls if os.isatty(1) else bytes
    yes_no = ("false", "true")
    lines = [
        b"image: " + show(path),
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
        lines += [title + b": " + show(name)] if name else []
    details = {
        "compat": "0.10" if found.version == 2 else "1.1",
        "compression type": found.compression_type,
        "lazy refcounts": yes_no[found.lazy_refcounts],
        "refcount bits": str(found.refcount_bits),
        "dirty": yes_no[found.dirty],
        "corrupt": yes_no[found.corrupt],
        "extended l2": yes_no[found.extended_l2],
        "encryption": found.encryption or "none",
        "bitmaps": str(found.bitmap_count),
    }
    listing = format_listing(found.snapshots, escape=os.isatty(1))
    tail = ["Format specific information:", *(f"    {key}: {value}" for key, value in details.items())]
    return b"\n".join([*lines, listing + tail[0].encode(), *(line.encode() for line in tail[1:])]) + b"\n"


def _size(size: int) -> bytes:
    return f"{format_size(size)} ({size} bytes)".encode()


def _json(value: t.Any) -> bytes:
    import json  # milliseconds that nobody else should pay

    return json.dumps(value, indent=4).encode() + b"\n"


def _print(data: bytes) -> None:
    _write(1, data)


def _complain(message: bytes, command: bytes = b"") -> None:
    """An error report: the program's name, then the message; on a terminal without control characters."""
    if os.isatty(2):
        message = b"\n".join(escape_controls(line) for line in message.split(b"\n"))
    _write(2, b"airlock%s: %s\n" % (command, message))


def _warn(message: bytes) -> None:
    _complain(b"warning: " + message)


def _write(descriptor: int, data: bytes) -> None:
    """All of it, without a buffer of Python's. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
