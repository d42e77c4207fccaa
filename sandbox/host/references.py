# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of other files that come out of an image: which of them are opened, and how. docs/chain.md is the policy.

First the name is judged by itself (reference_rules.py). Then it is walked part by part from an open directory, each
part opened as a mere handle that follows no link and wakes no device; links are read and judged like names. A file is
opened for I/O only when all is decided.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import typing as t

from .. import errors
from .places import TURNS_MAX, Directory, Key, Parts, Place, UnsafeLinkError, directory_at, look_up, parts_of
from .reference_rules import NameRuleError, Reference, check_form, check_place, is_below, reduce

_HANDLE = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW


class _OutsideError(Exception):
    """The way leaves all directories."""


def _refusal(reference: Reference, home: Directory, error: NameRuleError | OSError) -> errors.ChainError:
    from . import reference_refusals  # words, and most names are sound

    return reference_refusals.refusal(reference, error, shown_path(reference.name, home))


def shown_path(name: bytes, home: Directory) -> str:
    """A name in an image, combined with the image's directory as qemu does it; for people, never to be opened."""
    return os.fsdecode(os.path.join(os.fsencode(home.shown), name))


class Policy:
    """Which files names may lead to: those in the directory of the image that names them, and below it, and the allowed
    roots: directories, with all below, or single files and block devices. Closing it closes what it holds open."""

    def __init__(self, allowed_roots: t.Sequence[str | bytes | Place] = (), follow_links: bool = False) -> None:
        """allowed_roots: a Place stays the caller's. follow_links: as of places.find_place(). Raises ArgumentError for
        a root that cannot be opened."""
        self._stack = contextlib.ExitStack()
        self._directories: list[Directory] = []
        self._files: dict[Parts, Place] = {}
        self._named: set[Key | None] = set()
        try:
            for root in allowed_roots:
                self._allow(root, follow_links)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Policy:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def check(self, reference: Reference, home: Directory) -> None:
        """Judges a name in an image by itself; no file is touched. home: the image's. Raises ChainError."""
        try:
            check_form(reference.name)
            spellings = [path for directory in (home, *self._directories) for path in directory.paths]
            check_place(reference.name, home.paths[0], spellings, self._files)
        except NameRuleError as error:
            raise _refusal(reference, home, error) from error

    def find(self, reference: Reference, home: Directory) -> Place:
        """What a name in an image leads to: the caller's, to be closed. It is judged by itself before anything is
        looked for. Raises ChainError."""
        self.check(reference, home)
        try:
            return self._find(reference.name, home)
        except (NameRuleError, OSError) as error:
            raise _refusal(reference, home, error) from error

    def _find(self, name: bytes, home: Directory) -> Place:
        with _Walk(home, self._directories, self._files) as walk:
            place = walk.go(name, shown_path(name, home))
            try:
                place.named = place.key in self._named
                place.elsewhere = walk.left_home
                self._check_kind(place)
            except BaseException:
                place.close()
                raise
        return place

    @staticmethod
    def _check_kind(place: Place) -> None:
        """Raises NameRuleError for all but files, and devices that the operator named."""
        mode = place.status.st_mode
        if stat.S_ISBLK(mode) and not place.named:
            raise NameRuleError("block_device")
        if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
            raise NameRuleError("not_regular")

    def _allow(self, root: str | bytes | Place, follow_links: bool) -> None:
        """Adds what the operator named. Raises ArgumentError."""
        name = root.path if isinstance(root, Place) else root
        try:
            place = self._stack.enter_context(root.again() if isinstance(root, Place) else look_up(root, follow_links))
            if not place.there:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            mode = place.status.st_mode
            if stat.S_ISDIR(mode):
                self._directories.append(self._stack.enter_context(directory_at(place)))
                return
        except (OSError, ValueError) as error:
            from ..words import advice  # as above

            reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "it has a NUL in it"
            if isinstance(error, UnicodeEncodeError):
                reason = f"it has characters that the locale does not have. {advice.say('locale').rstrip('.')}"
            if isinstance(error, UnsafeLinkError):
                way = advice.say("follow_links")
                reason = f"a link of one user leads to what another one owns. If you trust both, {way}"
            raise errors.ArgumentError(
                f"'{errors.clean(name)}' in {advice.say('roots')} cannot be opened: {reason}. Name a directory, a file "
                "or a device.",
                "bad_allowed_root",
            ) from error
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            from ..words import advice  # as above

            raise errors.ArgumentError(
                f"'{errors.clean(name)}' in {advice.say('roots')} is no directory, no regular file and no block "
                "device. Name one of these.",
                "bad_allowed_root",
            )
        self._named.add(place.key)
        for path in (place.directory.paths[0] + (place.name,), parts_of(os.path.abspath(os.fsencode(place.path)))):
            self._files[path] = place


class _Walk:
    """One way through the file system, below open directories all the time."""

    def __init__(self, home: Directory, allowed: t.Sequence[Directory], files: t.Mapping[Parts, Place]) -> None:
        self._directories = (home, *allowed)
        self._files = files
        self._known = {
            path[:length]
            for directory in self._directories
            for path in directory.paths
            for length in range(len(path) + 1)
        }
        self._top = home
        self._below: list[tuple[bytes, int]] = []  # the directories below it that the way has come through
        self._ahead: list[bytes] = []
        self._turns = 0
        self._linked = False  # the last part of the name is a link
        self._named: Place | None = None  # where the way has led to one

    def __enter__(self) -> _Walk:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._start(self._top)

    @property
    def left_home(self) -> bool:
        """Whether the way has come to another of the directories than the image's, and to none below that."""
        home = self._directories[0].paths[0]
        return self._top.paths[0][: len(home)] != home

    def go(self, name: bytes, shown: str) -> Place:
        """What the name leads to, a link or a directory never. shown: for people. Raises NameRuleError, OSError."""
        try:
            if name.startswith(b"/"):
                self._enter((), parts_of(name))
            else:
                self._ahead = list(parts_of(name))
            while self._named is None:
                found = self._step(shown)
                if found:
                    return found
        except _OutsideError:
            raise NameRuleError("symlink" if self._turns else "outside") from None
        place = self._named.again()
        place.path = shown
        return place

    def _step(self, shown: str) -> Place | None:
        """One part; the end of the way, when it is a file."""
        if not self._ahead:
            raise NameRuleError("not_regular")
        part = self._ahead.pop(0)
        if part == b"..":
            self._back()
            return None
        here = self._below[-1][1] if self._below else self._top.descriptor
        handle = os.open(part, _HANDLE, dir_fd=here)
        try:
            status = os.fstat(handle)
            if stat.S_ISLNK(status.st_mode):
                self._linked = self._linked or not self._ahead
                self._follow(os.readlink(b"", dir_fd=handle))
            elif stat.S_ISDIR(status.st_mode):
                self._below.append((part, handle))
                handle = -1
            elif self._ahead:
                raise NotADirectoryError(20, "not a directory")
            else:
                place = Place(shown, self._home(here, shown), part, handle, linked=self._linked)
                handle = -1
                return place
        finally:
            if handle >= 0:
                os.close(handle)
        return None

    def _home(self, here: int, shown: str) -> Directory:
        """The directory that the file is in: behind all links, for whoever made a link does not choose where the names
        in another's image start from."""
        names = tuple(name for name, _descriptor in self._below)
        paths = tuple(path + names for path in self._top.paths)
        above = os.fsdecode(b"/" + b"/".join(paths[0])) if self._linked else os.path.dirname(shown)
        return Directory(os.dup(here), paths, above)

    def _back(self) -> None:
        if self._below:
            os.close(self._below.pop()[1])
        else:
            self._enter(self._top.paths[0][:-1], tuple(self._ahead))

    def _follow(self, target: bytes) -> None:
        """A symbolic link's text, judged like a name."""
        self._turns += 1
        if self._turns > TURNS_MAX:
            raise NameRuleError("symlink_loop")
        ahead = (*parts_of(target), *self._ahead)
        if target.startswith(b"/"):
            self._enter((), ahead)
        else:
            self._ahead = list(ahead)

    def _enter(self, start: Parts, parts: Parts) -> None:
        """Goes on from the directory that a path leads into. Raises _OutsideError."""
        path = reduce(start, parts, self._known)
        if path in self._files:
            self._named = self._files[path]
            return
        for directory in self._directories:
            for known in directory.paths:
                if is_below(path, known):
                    self._start(directory)
                    self._ahead = list(path[len(known) :])
                    return
        raise _OutsideError

    def _start(self, directory: Directory) -> None:
        while self._below:
            os.close(self._below.pop()[1])
        self._top = directory
