# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All files below a directory, found from open directories alone."""

from __future__ import annotations

import os
import stat
import typing as t

from .. import errors
from ..words import opening
from .places import Directory, Key, Place, file_key

DEPTH_MAX = 64  # directories in one another: each is held open while those in it are looked at
NAMES_MAX = 1 << 20  # of files and directories, in all of a tree: those of a directory are held in memory

_HANDLE = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW


class Tree:
    """Regular files in directories and below; no symbolic link is followed, and no directory looked at twice.

    note: is told why something cannot be listed or looked at: anything may be in there. check: is called for each name,
    for who makes files and directories decides how many there are; what it raises ends the search. So do NAMES_MAX
    names, of which note is told.
    """

    def __init__(self, note: t.Callable[[errors.ImageOpenError], None], check: t.Callable[[], None]) -> None:
        self._note = note
        self._check = check
        self._seen: set[Key] = set()
        self._left = NAMES_MAX

    def files(self, directories: t.Iterable[Directory]) -> t.Iterator[Place]:
        """Takes over the directories. Each place is the caller's, to be closed."""
        for directory in directories:
            yield from self._files(directory)

    def _files(self, top: Directory) -> t.Iterator[Place]:
        # Not a function that calls itself: who makes directories decides how deep they are.
        stack = [(top, [b""])]
        try:
            while stack and self._left >= 0:
                directory, below = stack[-1]
                if not below:
                    stack.pop()[0].close()
                    continue
                name = below.pop()
                self._check()
                if name and len(stack) == DEPTH_MAX:
                    self._note(_too_deep(_shown(directory, name)))
                    continue
                entered = self._enter(directory, name)
                if entered:
                    stack.append((entered, []))
                    yield from self._look(entered, stack[-1][1])
                    stack[-1][1].reverse()  # for the first is the next one
        finally:
            for directory, _below in stack:
                directory.close()

    def _enter(self, directory: Directory, name: bytes) -> Directory | None:
        """One in the directory, or with no name that itself; None for one that was looked at before, or cannot be."""
        shown = _shown(directory, name)
        try:
            descriptor = os.open(name or b".", _HANDLE | os.O_DIRECTORY, dir_fd=directory.descriptor)
        except OSError as error:
            self._note(opening.open_error(shown, error, writable=False))
            return None
        parts = (name,) if name else ()
        entered = Directory(descriptor, tuple(path + parts for path in directory.paths), shown)
        key = file_key(os.fstat(descriptor))
        if key in self._seen:
            entered.close()
            return None
        self._seen.add(key)
        return entered

    def _look(self, directory: Directory, below: list[bytes]) -> t.Iterator[Place]:
        """The files in one directory. below: gets the names of those in it."""
        try:
            names = self._names(directory)
        except OSError as error:
            self._note(opening.open_error(directory.shown, error, writable=False))
            return
        for name in names:
            self._check()
            shown = _shown(directory, name)
            try:
                handle = os.open(name, _HANDLE, dir_fd=directory.descriptor)
                mode = os.fstat(handle).st_mode
                if stat.S_ISREG(mode):
                    yield Place(shown, directory.again(), name, handle)
                    continue
                os.close(handle)
                if stat.S_ISDIR(mode):
                    below.append(name)
            except OSError as error:
                self._note(opening.open_error(shown, error, writable=False))

    def _names(self, directory: Directory) -> list[bytes]:
        """What is in a directory, as far as that is looked at, in order. Raises OSError."""
        names = []
        listed = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.descriptor)
        try:
            with os.scandir(listed) as entries:  # a list of all would be there at once, and before any check
                for entry in entries:
                    self._check()
                    self._left -= 1
                    if self._left < 0:
                        self._note(_too_many(directory.shown))
                        break
                    names.append(os.fsencode(entry.name))
        finally:
            os.close(listed)
        return sorted(names)


def _shown(directory: Directory, name: bytes) -> str:
    return os.path.join(directory.shown, os.fsdecode(name)) if name else directory.shown


def _too_deep(path: str) -> errors.ImageOpenError:
    return errors.ImageOpenError(
        f"{errors.clean(path, errors.PATH_LIMIT)} is not looked into: {DEPTH_MAX} directories are in one another above "
        "it. Move it to where fewer are.",
        "too_deep",
    )


def _too_many(path: str) -> errors.ImageOpenError:
    return errors.ImageOpenError(
        f"{errors.clean(path, errors.PATH_LIMIT)} is not looked through, for there are more than {NAMES_MAX} files and "
        "directories. Move what is no image to another directory.",
        "too_many_files",
    )
