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
import os
import stat
import typing as t

from . import errors
from .reference_rules import Parts, Reference, RuleError, check_form, check_place, is_below, parts_of, reduce

TURNS_MAX = 40  # symbolic links on the way to one file, as in Linux

_HANDLE = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY = os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY

Key = tuple[int, int]


class Directory(t.NamedTuple):
    """An open directory. paths: how it is called; the first is without symbolic links. shown: for people."""

    descriptor: int
    paths: tuple[Parts, ...]
    shown: str


class Found(t.NamedTuple):
    """handle: O_PATH, the caller closes it. key: the same for two names of one file or device. home: where relative
    names in it start. path: for people."""

    handle: int
    key: Key
    home: Directory
    path: str


class _NamedFile(t.NamedTuple):
    """A file or device that the operator named."""

    descriptor: int
    path: str


class _OutsideError(Exception):
    """The way leaves all directories."""


def _refusal(reference: Reference, home: Directory, error: RuleError | OSError) -> errors.ChainError:
    from . import reference_refusals  # words, and most names are sound

    return reference_refusals.refusal(reference, error, shown_path(reference.name, home))


def shown_path(name: bytes, home: Directory) -> str:
    """A name in an image, combined with the image's directory as qemu does it; for people, never to be opened."""
    return os.fsdecode(os.path.join(os.fsencode(home.shown), name))


def file_key(status: os.stat_result) -> Key:
    """Tells files apart, and block devices by what they are and not by the node that stands for them."""
    return (-1, status.st_rdev) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)


class Policy:
    """Which files names may lead to: those in the directory of the image that names them, and below it, and the allowed
    roots: directories, with all below, or single files and block devices. Closing it closes what it holds open."""

    def __init__(self, allowed_roots: t.Sequence[str | bytes] = ()) -> None:
        """Raises ArgumentError for a root that cannot be opened."""
        self._stack = contextlib.ExitStack()
        self._directories: list[Directory] = []
        self._files: dict[Parts, _NamedFile] = {}
        self._devices: set[int] = set()
        try:
            for root in allowed_roots:
                self._allow(os.fsencode(root))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Policy:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def home_of(self, path: str) -> Directory:
        """The directory of a file that the operator named. Raises ImageOpenError."""
        name = os.path.dirname(os.fsencode(path))
        try:
            return self._directory(name or b".", os.fsdecode(name))
        except OSError as error:
            raise errors.open_error(path, error, writable=False) from error

    def check(self, reference: Reference, home: Directory) -> None:
        """Judges a name in an image by itself; no file is touched. home: the image's. Raises ChainError."""
        try:
            check_form(reference.name)
            spellings = [path for directory in (home, *self._directories) for path in directory.paths]
            check_place(reference.name, home.paths[0], spellings, self._files)
        except RuleError as error:
            raise _refusal(reference, home, error) from error

    def find(self, reference: Reference, home: Directory) -> Found:
        """What a name in an image leads to. It is judged by itself before anything is looked for. Raises ChainError."""
        self.check(reference, home)
        try:
            return self._find(reference.name, home)
        except (RuleError, OSError) as error:
            raise _refusal(reference, home, error) from error

    def _find(self, name: bytes, home: Directory) -> Found:
        shown = shown_path(name, home)
        with _Walk(home, self._directories, self._files) as walk:
            handle, status = walk.go(name)
            try:
                self._check_kind(status)
                return Found(handle, file_key(status), self._keep(walk, os.path.dirname(shown)), shown)
            except BaseException:
                os.close(handle)
                raise

    def _check_kind(self, status: os.stat_result) -> None:
        """Raises RuleError for all but files, and devices that the operator named."""
        if stat.S_ISBLK(status.st_mode) and status.st_rdev not in self._devices:
            raise RuleError("block_device")
        if not stat.S_ISBLK(status.st_mode) and not stat.S_ISREG(status.st_mode):
            raise RuleError("not_regular")

    def _keep(self, walk: _Walk, shown: str) -> Directory:
        """The directory in which the walk found the last part of the name, open as long as the policy."""
        if walk.home is None:  # the name leads straight to a file that the operator named
            path = walk.named.path if walk.named else ""
            return self._directory(os.fsencode(os.path.dirname(path)) or b".", shown)
        descriptor, paths = walk.home
        kept = os.dup(descriptor)
        self._stack.callback(os.close, kept)
        return Directory(kept, paths, shown)

    def _allow(self, root: bytes) -> None:
        """Adds what the operator named. Raises ArgumentError."""
        try:
            if not root:
                raise FileNotFoundError(2, "empty")
            handle = os.open(root, os.O_PATH | os.O_CLOEXEC)
            self._stack.callback(os.close, handle)
            status = os.fstat(handle)
            if stat.S_ISDIR(status.st_mode):
                self._directories.append(self._directory(root, os.fsdecode(root)))
                return
        except (OSError, ValueError) as error:
            reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "it has a NUL in it"
            raise errors.ArgumentError(
                f"'{errors.clean(root)}' in allowed_roots cannot be opened: {reason}. Name a directory, or a file.",
                "bad_allowed_root",
            ) from error
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
            raise errors.ArgumentError(
                f"'{errors.clean(root)}' in allowed_roots is no directory, no regular file and no block device.",
                "bad_allowed_root",
            )
        if stat.S_ISBLK(status.st_mode):
            self._devices.add(status.st_rdev)
        named = _NamedFile(handle, os.fsdecode(root))
        for path in (os.path.realpath(root), os.path.abspath(root)):
            self._files[parts_of(path)] = named

    def _directory(self, path: bytes, shown: str) -> Directory:
        """Opens a directory that the operator named, links followed. Raises OSError."""
        descriptor = os.open(path, _DIRECTORY)
        self._stack.callback(os.close, descriptor)
        paths = [parts_of(os.path.realpath(path))]
        if b".." not in parts_of(path):  # otherwise it may read as another directory
            paths.append(parts_of(os.path.abspath(path)))
        return Directory(descriptor, tuple(paths), shown)


class _Walk:
    """One way through the file system, below open directories all the time."""

    def __init__(self, home: Directory, allowed: t.Sequence[Directory], files: t.Mapping[Parts, _NamedFile]) -> None:
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
        # Where the last part of the name was looked for: a descriptor, closed with the walk, and its paths.
        self.home: tuple[int, tuple[Parts, ...]] | None = None
        self.named: _NamedFile | None = None  # where the way has led to one

    def __enter__(self) -> _Walk:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._start(self._top)
        if self.home:
            os.close(self.home[0])

    def go(self, name: bytes) -> tuple[int, os.stat_result]:
        """A handle of what the name leads to, a link or a directory never. Raises RuleError, OSError."""
        try:
            if name.startswith(b"/"):
                self._enter((), parts_of(name))
            else:
                self._ahead = list(parts_of(name))
            while self.named is None:
                found = self._step()
                if found:
                    return found
        except _OutsideError:
            raise RuleError("symlink" if self._turns else "outside") from None
        handle = os.dup(self.named.descriptor)
        return handle, os.fstat(handle)

    def _step(self) -> tuple[int, os.stat_result] | None:
        """One part; the end of the way, when it is a file."""
        if not self._ahead:
            raise RuleError("not_regular")
        part = self._ahead.pop(0)
        if part == b"..":
            self._back()
            return None
        here = self._below[-1][1] if self._below else self._top.descriptor
        if not self._ahead and self.home is None:
            names = tuple(name for name, _descriptor in self._below)
            self.home = os.dup(here), tuple(path + names for path in self._top.paths)
        handle = os.open(part, _HANDLE, dir_fd=here)
        try:
            status = os.fstat(handle)
            if stat.S_ISLNK(status.st_mode):
                self._follow(os.readlink(b"", dir_fd=handle))
            elif stat.S_ISDIR(status.st_mode):
                self._below.append((part, handle))
                handle = -1
            elif self._ahead:
                raise NotADirectoryError(20, "not a directory")
            else:
                found, handle = handle, -1
                return found, status
        finally:
            if handle >= 0:
                os.close(handle)
        return None

    def _back(self) -> None:
        if self._below:
            os.close(self._below.pop()[1])
        else:
            self._enter(self._top.paths[0][:-1], tuple(self._ahead))

    def _follow(self, target: bytes) -> None:
        """A symbolic link's text, judged like a name."""
        self._turns += 1
        if self._turns > TURNS_MAX:
            raise RuleError("symlink_loop")
        ahead = (*parts_of(target), *self._ahead)
        if target.startswith(b"/"):
            self._enter((), ahead)
        else:
            self._ahead = list(ahead)

    def _enter(self, start: Parts, parts: Parts) -> None:
        """Goes on from the directory that a path leads into. Raises _OutsideError."""
        path = reduce(start, parts, self._known)
        if path in self._files:
            self.named = self._files[path]
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
