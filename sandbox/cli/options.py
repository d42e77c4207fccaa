# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""getopt_long(3) as qemu-img uses it, in bytes: the same order, abbreviations, permutation and messages.

The standard library's getopt sees all arguments before it returns any, and words its errors otherwise.
"""

from __future__ import annotations

import os
import typing as t


class OptionError(Exception):
    """A wrong option; `line` is getopt's message without the program's name."""

    def __init__(self, line: bytes) -> None:
        super().__init__(line)
        self.line = line


class Options:
    """An iterator over (option, value): the option as its short letter or its long name, the value b"" without one.

    short: letters, each followed by a colon when it takes a value. long: (name, short letter or b"", takes a value).
    permute: whether options may follow operands (they may not when POSIXLY_CORRECT is set). whole: long names that
    qemu-img has not, and that must be spelt out, so that its own can be abbreviated as ever. When the iterator ends,
    `rest` holds the operands. Raises OptionError at the first wrong option, after those in front of it.
    """

    def __init__(
        self,
        arguments: t.Sequence[bytes],
        short: bytes,
        long: t.Sequence[tuple[bytes, bytes, bool]],
        permute: bool = True,
        whole: t.Container[bytes] = (),
    ) -> None:
        self._left = list(arguments)
        self._short = {bytes([letter]): short[i + 1 : i + 2] == b":" for i, letter in enumerate(short)}
        self._short.pop(b":", None)
        self._long = long
        self._whole = whole
        self._permute = permute and "POSIXLY_CORRECT" not in os.environ
        self.rest: list[bytes] = []

    def __iter__(self) -> t.Iterator[tuple[bytes, bytes]]:
        while self._left:
            argument = self._left.pop(0)
            if argument == b"--":
                break
            if argument.startswith(b"--"):
                yield self._long_option(argument[2:])
            elif argument.startswith(b"-") and argument != b"-":
                yield from self._short_options(argument[1:])
            else:
                self.rest.append(argument)
                if not self._permute:
                    break
        self.rest += self._left

    def _short_options(self, letters: bytes) -> t.Iterator[tuple[bytes, bytes]]:
        while letters:
            letter, letters = letters[:1], letters[1:]
            if letter not in self._short:
                raise OptionError(b"invalid option -- '%s'" % letter)
            if not self._short[letter]:
                yield letter, b""
                continue
            if not letters and not self._left:
                raise OptionError(b"option requires an argument -- '%s'" % letter)
            yield letter, letters or self._left.pop(0)
            return

    def _long_option(self, text: bytes) -> tuple[bytes, bytes]:
        name, equals, value = text.partition(b"=")
        found = [entry for entry in self._long if entry[0] == name]
        found = found or [entry for entry in self._long if entry[0].startswith(name) and entry[0] not in self._whole]
        if not found:
            raise OptionError(b"unrecognized option '--%s'" % text)
        if len(found) > 1:
            names = b" ".join(b"'--%s'" % entry[0] for entry in found)
            raise OptionError(b"option '--%s' is ambiguous; possibilities: %s" % (text, names))
        full, letter, takes_value = found[0]
        if equals and not takes_value:
            raise OptionError(b"option '--%s' doesn't allow an argument" % full)
        if takes_value and not equals:
            if not self._left:
                raise OptionError(b"option '--%s' requires an argument" % full)
            value = self._left.pop(0)
        return letter or full, value
