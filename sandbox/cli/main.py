# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: qemu-img's arguments, output, messages and exit codes, with `airlock` in place of `qemu-img`.

Everything is bytes: arguments, names out of images, output. The model is Debian's qemu-img 10.0.2. Each command is in
a file of its own, which is loaded when it is asked for.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import typing as t

from .. import errors
from ..host import descriptors, ending
from ..words import advice
from . import qemu_words
from .common import HelpRequest, UsageError, complain, encoded, say, warn, write
from .options import OptionError, Options
from .ways import WAYS

VERSION = b"airlock version 0.3.0\nCopyright (c) 2026 The airlock.images authors\n"

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
  --lock-timeout SECONDS
     wait so long for an image that others hold (default 0)
  --memory-limit SIZE
     memory that guests may use, 128M or more (default a quarter of the
     host's); with too little, all tables are read several times

Recognized commands (run airlock COMMAND --help for command-specific help):

  bitmap - List persistent bitmaps of image, or modify one
  commit - Commit image to its backing file
  info - Display information about image
  rebase - Change backing file of the image
  snapshot - List or manipulate snapshots within image
"""
)

_OWN = (b"lock-timeout", b"memory-limit")  # qemu-img has none of these
_OPTIONS = ((b"help", b"h", False), (b"version", b"V", False), *((name, b"", True) for name in _OWN))
_WAIT_SECONDS = 0.2  # between two looks at an image that others hold
_COMMANDS = (b"bitmap", b"commit", b"info", b"rebase", b"snapshot")


def main(arguments: t.Sequence[bytes] | None = None) -> int:
    """Runs one command line (default: the process's own); the exit code is 0, 1 for any failure, or 128 and
    the number of the signal that ended it."""
    if arguments is None:
        arguments = [os.fsencode(argument) for argument in sys.argv[1:]]
    descriptors.raise_limit()
    try:
        with advice.spoken(WAYS), ending.by_signals():
            return _command(arguments)
    except ending.EndedError as error:
        complain(error.message.encode())
        return 128 + error.number  # as the shell has it of a command that a signal ended
    except qemu_words.ReportedError as error:
        for line in error.lines:
            complain(encoded(line))
    except BrokenPipeError:
        return 1
    except OSError as error:
        way = advice.of_errno(error.errno or 0, "")
        complain(encoded(f"{errors.clean(str(error))}{'. ' if way else ''}{way}"))
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the one place for what nobody thought of: a line, and not a page of ours
        if os.environ.get("AIRLOCK_DEBUG"):
            raise
        what = errors.clean(f"{type(error).__name__}: {error}")
        complain(encoded(f"A fault of airlock itself: {what}. AIRLOCK_DEBUG=1 shows where; please report it."))
    return 1


def _command(arguments: t.Sequence[bytes]) -> int:
    """Finds the command; it parses what is its own."""
    name = b""
    try:
        options = Options(arguments, b"hV", _OPTIONS, permute=False, whole=_OWN)
        seconds = 0
        for option, value in options:
            if option == b"lock-timeout":
                seconds = _seconds(value)
            elif option == b"memory-limit":
                _limit_memory(value)
            else:
                raise HelpRequest(HELP if option == b"h" else VERSION)
        if not options.rest:
            raise UsageError(b"Not enough arguments")
        if options.rest[0] not in _COMMANDS:
            raise UsageError(b"Command not found: " + options.rest[0])
        name = b" " + options.rest[0]
        _run(_load(options.rest[0]), options.rest[1:], seconds)
        return 0
    except HelpRequest as wanted:
        say(wanted.args[0])
        return 0
    except OptionError as error:
        complain(error.line, name)
    except UsageError as error:
        complain(error.message)
        if not error.hint:
            return 1
    write(2, b"Try 'airlock%s --help' for more info\n" % name)
    return 1


def _seconds(value: bytes) -> int:
    """Raises UsageError."""
    if not value.isdigit() or len(value) > 9:
        raise UsageError(b"--lock-timeout expects a number of seconds, not '%s'" % value)
    return int(value)


def _limit_memory(value: bytes) -> None:
    """Raises UsageError."""
    from ..vmm import memory  # few ask for it, and a command loads what it needs
    from .sizes import parse_size

    try:
        memory.set_limit(parse_size(value) or 1)
    except ValueError:
        least = memory.LEAST >> 20
        raise UsageError(b"--memory-limit expects a size of %dM or more, not '%s'" % (least, value)) from None


def _run(command: t.Callable[[t.Sequence[bytes]], None], arguments: t.Sequence[bytes], seconds: int) -> None:
    """The command; while others hold an image and nothing was written, begun anew for that time. Raises as it does."""
    end = time.monotonic() + seconds
    while True:
        try:
            command(arguments)
            return _warn()
        except qemu_words.ReportedError as reported:
            error = reported.error
            if not isinstance(error, errors.ImageInUseError) or error.modified or time.monotonic() >= end:
                raise
        time.sleep(_WAIT_SECONDS)


def _warn() -> None:
    """Of images whose guest had too little memory."""
    from ..vmm import memory  # which the command has loaded

    while memory.short:
        path, (windows, size) = memory.short.popitem()
        warn(
            os.fsencode(path),
            b": in %d MiB of memory its guest read the tables of the disk and of each snapshot %d times. Let it have "
            b"more (airlock --memory-limit 1G COMMAND ...), or run it when less of the host's memory is in use"
            % (size >> 20, windows),
        )


def _load(name: bytes) -> t.Callable[[t.Sequence[bytes]], None]:
    """The command of that name, which is one of _COMMANDS: a file of this room."""
    run: t.Callable[[t.Sequence[bytes]], None] = importlib.import_module(f".{name.decode()}", __package__).run
    return run
