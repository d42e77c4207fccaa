# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands of the command line have in common: wrong usage, opening an image, and printing."""

from __future__ import annotations

import contextlib
import os
import typing as t

from .. import errors
from ..facts.listing import escape_controls, escape_unprintable
from ..host.places import find_place
from ..images.image import Image
from ..words import advice

_BLOCK = 1 << 16  # bytes that are written together


class UsageError(Exception):
    """A wrong command line. message: bytes. hint: whether qemu-img names the help in the same place."""

    def __init__(self, message: bytes, hint: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class HelpRequest(Exception):
    """Not a failure: its one argument is to be printed, and that is all."""


class Arguments:
    """What a command line asks for, as far as all commands have it. rest: the operands."""

    def __init__(self) -> None:
        self.format = b"qcow2"
        self.quiet = False
        self.force_share = False
        self.json = False
        self.follow_links = False
        self.image_opts = False
        self.path = b""
        self._format_stated = False

    def take(self, option: bytes, value: bytes) -> None:
        """One option that several commands have. Raises UsageError."""
        if option == b"f":
            self.format = value
            self._format_stated = True
        elif option == b"q":
            self.quiet = True
        elif option == b"U":
            self.force_share = True
        elif option == b"follow-links":
            self.follow_links = True
        elif option == b"image-opts":
            self.image_opts = True
        elif value not in (b"human", b"json"):
            raise UsageError(b"--output expects 'human' or 'json' not '%s'" % value)
        else:
            self.json = value == b"json"

    def take_path(self, operands: t.Sequence[bytes]) -> None:
        """The one operand. Raises UsageError."""
        if len(operands) != 1:
            raise UsageError(b"Expecting one image file name")
        self.path = operands[0]
        if self.image_opts and self._format_stated:
            raise UsageError(b"--image-opts and --format are mutually exclusive", hint=False)

    def open(self, writable: bool, formats: t.Container[bytes] = (b"qcow2",)) -> Image:
        """The image that the command is about, of one of `formats`. Raises ArgumentError, ImageOpenError,
        ImageInUseError."""
        if not self.image_opts:
            return self.open_other(self.path, self.format, writable, formats)
        from .image_opts import parse  # few command lines have it

        text, self.image_opts = self.path, False
        self.format, self.path = parse(text, formats)
        try:
            return self.open_other(self.path, self.format, writable, formats)
        except errors.AirlockError as error:
            if error.facts.get("file") == os.fsdecode(self.path):
                error.facts["top"] = os.fsdecode(text)  # what was given is what qemu-img calls the image then
            raise

    def open_other(
        self, path: bytes, image_format: bytes, writable: bool, formats: t.Container[bytes] = (b"qcow2",)
    ) -> Image:
        """An image of a format that the operator stated; none is ever guessed. formats: those that the command knows.
        Raises as open()."""
        if image_format not in formats:
            name = os.fsdecode(image_format)
            known = "only qcow2 is" if b"vmdk" not in formats else "only qcow2 and vmdk are"
            raise errors.ArgumentError(
                f"The format {errors.clean(name)} is not known, {known}.",
                "unknown_format",
                file=os.fsdecode(path),
                driver=name,
            )
        image = Image.open(find_place(path, self.follow_links, writable=writable), writable, self.force_share)
        if not image.lock.active and not self.quiet:
            warn(path, b" is not locked against other programs: " + image.lock.reason.encode())
        return image


@contextlib.contextmanager
def all_or_nothing(image: Image) -> t.Iterator[None]:
    """What is stopped within it, by its time limit, by Ctrl-C or by what else there is, is undone. Raises
    NoJournalError, TransactionError."""
    from ..images.transaction import Transaction  # a list needs none

    try:
        with Transaction([image]) as transaction:
            yield
            transaction.keep()
    except errors.TransactionError:
        raise
    except errors.AirlockError as error:
        if error.modified:
            error.message += " What was done has been undone, the image is as it was before."
            error.modified = False
        raise


def warn_of_leaks(path: bytes, clusters: int) -> None:
    """What a change says of clusters that it found leaked."""
    way = encoded(advice.say("leaks", {"image": errors.quote(os.fsdecode(path))}))
    warn(path, b": leaked clusters: %d, counted as used but not referenced. %s" % (clusters, way))


def shown(text: bytes) -> bytes:
    """A text out of an image as it goes to standard output.

    Control characters are escaped wherever it goes: a log or a screen reads it in the end, and a name with a newline in
    it is two lines. On a terminal what is not printable is escaped as well.
    """
    return escape_unprintable(text) if os.isatty(1) else escape_controls(text)


class Made(list):  # type: ignore[type-arg]
    """A list for say_json(), whose elements are made one by one; the encoder takes nothing but lists."""

    def __init__(self, make: t.Callable[[t.Any], t.Any], items: t.Sequence[t.Any]) -> None:
        super().__init__()
        self._make = make
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> t.Iterator[t.Any]:
        return map(self._make, self._items)


def say_json(value: t.Any) -> None:
    """The value as JSON to standard output, in ASCII."""
    import json  # milliseconds that nobody else should pay

    say_all(text.encode() for text in json.JSONEncoder(indent=4).iterencode(value))
    say(b"\n")


def say_all(parts: t.Iterable[bytes]) -> None:
    """To standard output, not more than a part and a block at a time."""
    block = bytearray()
    for part in parts:
        block += part
        if len(block) >= _BLOCK:
            say(bytes(block))
            block.clear()
    say(bytes(block))


def say(data: bytes) -> None:
    """To standard output."""
    write(1, data)


def encoded(text: str) -> bytes:
    """The text as the locale has it, names as they were given; a character that it does not have as an escape."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        if len(text) == 1:
            return text.encode("unicode_escape")
        return b"".join(map(encoded, text))


def complain(message: bytes, command: bytes = b"") -> None:
    """An error report: the program's name, then the message; on a terminal without control characters. What stands in
    it out of an image, and names of files, have none; what else the operator gave is as it was given, as with
    qemu-img."""
    if os.isatty(2):
        message = b"\n".join(escape_unprintable(line) for line in message.split(b"\n"))
    with contextlib.suppress(OSError):  # nobody listens: what is done is done all the same
        write(2, b"airlock%s: %s\n" % (command, message))


def warn(path: bytes, message: bytes) -> None:
    """A warning, and no error. path: of the file that it is about, in front of it without control characters."""
    complain(b"warning: " + escape_controls(path) + message)


def write(descriptor: int, data: bytes) -> None:
    """All of it, without a buffer of Python's. Raises OSError."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(descriptor, view[done:])
