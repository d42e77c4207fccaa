# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file that somebody named, looked up once.

Who owns a directory on the way may exchange any part of it at any moment. So a path is walked part by part, each opened
below the one before as a mere handle; what comes of it is held open together: the directory, the file's name there, and
the file. Whatever is done later goes through these descriptors, and no path is looked up a second time.

A symbolic link that a stranger may have put there must not lead to what is not his, nor to a file of his in a directory
that is not, where names in the file could mean what others have there; nor ".." from a directory that he may have
moved: see _Walk._check_owner(). The model is CHASE_SAFE of systemd (src/basic/chase.c, unsafe_transition()). Nor may it
go through a link of the kernel's below /proc, for the process behind that can have a mount namespace of its own.
"""

from __future__ import annotations

import errno
import os
import stat
import typing as t

from .. import errors
from ..words import opening
from .one_name import has_one_name

TURNS_MAX = 40  # symbolic links on the way to one file, as in Linux


_HANDLE = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY = os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH  # an ACL shows as the group's bits

Parts = tuple[bytes, ...]
Key = tuple[int, int]


def parts_of(path: bytes) -> Parts:
    """The parts of a path, absolute or relative; without "", "." and the root. ".." are parts."""
    return tuple(part for part in path.split(b"/") if part not in (b"", b"."))


def file_key(status: os.stat_result) -> Key:
    """Tells files apart, and block devices by what they are and not by the node that stands for them."""
    return (-1, status.st_rdev) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)


class UnsafeLinkError(OSError):
    """A symbolic link that a stranger may have made leads to what is not the stranger's."""

    def __init__(self) -> None:
        super().__init__(errno.ELOOP, "a link of one user leads to what another one owns")


class Directory:
    """An open directory. descriptor: O_PATH. paths: how it is called; the first is without symbolic links. shown: for
    people. close() closes the descriptor."""

    __slots__ = ("descriptor", "paths", "shown")

    def __init__(self, descriptor: int, paths: tuple[Parts, ...], shown: str) -> None:
        self.descriptor = descriptor
        self.paths = paths
        self.shown = shown

    def is_same(self, other: Directory) -> bool:
        """Whether both are one directory, whatever they are called. Raises OSError."""
        return file_key(os.fstat(self.descriptor)) == file_key(os.fstat(other.descriptor))

    def vouches_for(self, owner: int) -> bool:
        """Whether a file of that owner cannot be there by a hard link of a stranger's. Raises OSError."""
        status = os.fstat(self.descriptor)
        return _vouches(status.st_uid, status.st_mode, owner)

    def again(self) -> Directory:
        """The same with a descriptor of its own. Raises OSError."""
        return Directory(os.dup(self.descriptor), self.paths, self.shown)

    def sync(self) -> None:
        """Makes names that were added or removed lasting. Raises OSError where the file system cannot."""
        descriptor = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.descriptor)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Place:
    """A name in an open directory, and what was found there. It closes both on close(), or as a context manager.

    path: as it was named, for people. directory: where the file itself is. name: its name there, never a link's.
    handle: O_PATH, -1 where there is no such file. linked: the path's last part is a link to it. named: the operator
    named the file, and not an image alone. elsewhere: it is neither in the directory of the image that names it nor
    below. follow_links: whether links were followed wherever they lead.
    """

    __slots__ = ("directory", "elsewhere", "follow_links", "handle", "linked", "name", "named", "path")

    def __init__(
        self,
        path: str,
        directory: Directory,
        name: bytes,
        handle: int,
        *,
        linked: bool = False,
        named: bool = True,
        elsewhere: bool = False,
        follow_links: bool = False,
    ) -> None:
        """Takes over the directory and the handle."""
        self.path = path
        self.directory = directory
        self.name = name
        self.handle = handle
        self.linked = linked
        self.named = named
        self.elsewhere = elsewhere
        self.follow_links = follow_links

    @property
    def there(self) -> bool:
        """Whether there was such a file when it was looked up."""
        return self.handle >= 0

    @property
    def status(self) -> os.stat_result:
        """Of the file that was found. Raises OSError, EBADF where there was none."""
        return os.fstat(self.handle)

    @property
    def key(self) -> Key | None:
        """What tells the file from others; None where there is none."""
        return file_key(self.status) if self.there else None

    def again(self) -> Place:
        """The same with descriptors of its own. A file that was not there is not, whoever has made one since. Raises
        OSError."""
        directory = self.directory.again()
        try:
            handle = os.dup(self.handle) if self.there else -1
        except BaseException:
            directory.close()
            raise
        return Place(
            self.path,
            directory,
            self.name,
            handle,
            linked=self.linked,
            named=self.named,
            elsewhere=self.elsewhere,
            follow_links=self.follow_links,
        )

    def anew(self) -> Place:
        """What has its name in the directory now, by the rules for what the operator names. Raises ImageOpenError."""
        place = find_place(self.name, self.follow_links, self.directory)
        place.path = self.path
        return place

    def is_still_there(self) -> bool:
        """Whether the name still stands for the file that was found. Raises OSError."""
        found = os.stat(self.name, dir_fd=self.directory.descriptor, follow_symlinks=False)
        held = self.status
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def has_one_name(self) -> bool:
        """Whether this is known to be the only name of the file. Raises OSError where there was none."""
        return has_one_name(self.name, self.directory.descriptor, self.status)

    def remove(self) -> None:
        """Removes the name, if it still stands for the file that was found. Raises ImageOpenError, and ArgumentError
        for another file in its place."""
        try:
            if not self.is_still_there():
                raise errors.ArgumentError(
                    f"{errors.clean(self.path, errors.PATH_LIMIT)} has become another file meanwhile. It was not "
                    "removed; look at both.",
                    "overlay_replaced",
                )
            os.unlink(self.name, dir_fd=self.directory.descriptor)
        except OSError as error:
            raise opening.open_error(self.path, error, writable=True) from error

    def close(self) -> None:
        """Once is enough, twice does no harm."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)
        self.directory.close()

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def find_place(
    path: str | bytes, follow_links: bool = False, start: Directory | None = None, writable: bool = False
) -> Place:
    """Looks up what the operator named. start: where a relative path starts from, instead of the working directory.
    writable: what it is for, for the words of a failure.

    Links are followed, but none that a stranger may have put there to what is not the stranger's, unless follow_links.
    The directory must be there, the file need not. Raises ImageOpenError.
    """
    shown = os.fsdecode(path)
    try:
        return look_up(path, follow_links, start)
    except UnsafeLinkError as error:
        from ..words import advice

        raise errors.ImageOpenError(
            f"{errors.clean(shown, errors.PATH_LIMIT)} is not opened: a link on the way, symbolic or hard, or '..', in "
            "a directory that others may write, leads to or into what somebody else owns, or through another process. "
            f"Name the file by a path without it. If you trust all who may write there, {advice.say('follow_links')}.",
            "unsafe_link",
        ) from error
    except ValueError as error:
        raise opening.impossible_name(shown, error, writable) from error
    except OSError as error:
        raise opening.open_error(shown, error, writable) from error


def look_up(path: str | bytes, follow_links: bool = False, start: Directory | None = None) -> Place:
    """As find_place(). Raises OSError, UnsafeLinkError among them, and ValueError for a NUL in the path."""
    name = os.fsencode(path)
    if not name:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    with _Walk(follow_links) as walk:
        return walk.go(name, start)


def directory_at(place: Place) -> Directory:
    """A place that is a directory, as one. Raises OSError, NotADirectoryError among them."""
    if not stat.S_ISDIR(place.status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    below = parts_of(place.name)  # none for "."
    paths = [place.directory.paths[0] + below]
    as_named = parts_of(os.fsencode(place.path))
    if b".." not in as_named:  # otherwise it may read as another directory
        paths.append(parts_of(os.path.abspath(os.fsencode(place.path))))
    return Directory(os.open(b".", _DIRECTORY, dir_fd=place.handle), tuple(paths), place.path)


def _open_there(name: bytes, directory: int) -> int:
    """A handle of what has that name; -1 where nothing has. Raises OSError."""
    try:
        return os.open(name, _HANDLE, dir_fd=directory)
    except FileNotFoundError:
        return -1


def _vouches(owner: int, mode: int, owner_of_file: int) -> bool:
    """Whether a file in a directory cannot be there by a hard link that a stranger has made to another's. owner, mode:
    of the directory. In one that others may write nothing tells who has made it, whoever owns it."""
    return not mode & _OTHERS_WRITE and owner in (0, os.geteuid(), owner_of_file)


class _Untrusted(t.NamedTuple):
    """A link on the way that a stranger may have made, or a directory that he may have moved there, and the way leads
    up from it. owner: the only one whose files it may lead to. left: parts of the path behind it."""

    owner: int
    left: int


class _Entered(t.NamedTuple):
    """A directory on the way, open. owner, mode: as of when it was entered."""

    descriptor: int
    owner: int
    mode: int


class _Walk:
    """One way through the file system, from the root, the working directory, or a directory that is open.

    ".." is where the way has come from, never what the kernel says: who owns a directory may move it meanwhile to
    wherever he may write, and what is above it there is not what was named.
    """

    def __init__(self, follow_links: bool) -> None:
        self._follow_links = follow_links
        self._stack: list[_Entered] = []  # from where the way starts to here
        self._path: Parts = ()  # of here, without links
        self._ahead: list[bytes] = []
        self._untrusted: list[_Untrusted] = []
        self._turns = 0

    def __enter__(self) -> _Walk:
        return self

    def __exit__(self, *_exception: object) -> None:
        while self._stack:
            os.close(self._stack.pop().descriptor)

    def go(self, name: bytes, start: Directory | None) -> Place:
        """Raises OSError."""
        shown = os.fsdecode(name)
        if name.startswith(b"/"):
            self._start_at_root()
        elif start:
            self._start(os.dup(start.descriptor), start.paths[0])
            shown = os.path.join(start.shown, shown)
        else:
            self._start(os.open(b".", _DIRECTORY), parts_of(os.getcwdb()))
        self._ahead = list(parts_of(name))
        is_directory = name.endswith((b"/", b"/."))  # or must be one
        linked = False
        while self._ahead:
            part = self._ahead.pop(0)
            if part == b"..":
                self._back()
                continue
            last = not self._ahead
            handle = _open_there(part, self._here.descriptor)
            try:
                if handle < 0:
                    if not last or is_directory:
                        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                    self._check_owner(self._here.owner)  # of where it would be made
                    return self._place(shown, part, -1, linked)
                status = os.fstat(handle)
                if stat.S_ISLNK(status.st_mode):
                    linked = linked or last
                    magic = self._follow(part, handle, status)
                    if magic < 0:
                        continue
                    text = os.readlink(b"", dir_fd=handle)
                    os.close(handle)
                    handle, status = magic, os.fstat(magic)
                    if stat.S_ISDIR(status.st_mode) and (not last or is_directory):
                        entered, handle = handle, -1
                        self._start(entered, parts_of(text))
                        continue
                if last and not is_directory:
                    self._check_owner(status.st_uid, self._here.owner)  # names in the file start from there
                    self._check_names(part, status)
                    found, handle = handle, -1
                    return self._place(shown, part, found, linked)
                self._check_owner(status.st_uid)
                if not stat.S_ISDIR(status.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                entered, handle = handle, -1
                self._path = (*self._path, part)
                self._enter(entered, status)
            finally:
                if handle >= 0:
                    os.close(handle)
        return self._place(shown, b".", os.dup(self._here.descriptor), linked)

    @property
    def _here(self) -> _Entered:
        return self._stack[-1]

    def _place(self, shown: str, name: bytes, handle: int, linked: bool) -> Place:
        home = self._stack.pop().descriptor
        paths = [self._path]
        above = os.path.dirname(shown)
        if linked:
            above = os.fsdecode(b"/" + b"/".join(self._path))
        elif b".." not in parts_of(os.fsencode(above)):  # otherwise it may read as another directory
            paths.append(parts_of(os.path.abspath(os.fsencode(above))))
        directory = Directory(home, tuple(paths), above)
        return Place(shown, directory, name, handle, linked=linked, follow_links=self._follow_links)

    def _start(self, directory: int, path: Parts) -> None:
        """Goes on from a directory, whatever the way was before. Takes over the descriptor."""
        while self._stack:
            os.close(self._stack.pop().descriptor)
        self._path = path
        self._enter(directory, os.fstat(directory))

    def _start_at_root(self) -> None:
        self._start(os.open(b"/", _DIRECTORY), ())

    def _enter(self, directory: int, status: os.stat_result) -> None:
        """Takes over the descriptor."""
        self._stack.append(_Entered(directory, status.st_uid, status.st_mode))
        self._check_owner(status.st_uid)

    def _back(self) -> None:
        """To where the way has come from. Above where it started that is known by the path to there alone."""
        if len(self._stack) == 1 and self._path:
            self._ahead[:0] = (*self._path, b"..")
            self._start_at_root()
            return
        if self._path:
            left = self._stack.pop()
            os.close(left.descriptor)
            self._path = self._path[:-1]
            moved = self._here.mode & _OTHERS_WRITE and left.owner not in (0, os.geteuid(), self._here.owner)
            if moved and not self._follow_links:  # or may be: its owner chose what is above it
                self._untrusted.insert(0, _Untrusted(left.owner, 0))
        self._check_owner(self._here.owner)

    def _follow(self, name: bytes, link: int, status: os.stat_result) -> int:
        """A symbolic link; its text is what is ahead now. One of the kernel's own, below /proc, has no text to go by:
        a handle of what it leads to, otherwise -1."""
        self._turns += 1
        if self._turns > TURNS_MAX:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if not self._follow_links:
            self._note_maker(name, status)
        if status.st_dev == _device_of_proc():
            if self._untrusted:
                # Behind it may be what that stranger has mounted where nobody else sees it: anybody's files, in his
                # directory, without a second name.
                raise UnsafeLinkError
            return os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self._here.descriptor)
        text = os.readlink(b"", dir_fd=link)
        self._ahead[:0] = parts_of(text)
        if text.startswith(b"/"):
            self._start_at_root()
        else:
            self._check_owner(self._here.owner)  # where the text has no parts, it leads here
        return -1

    def _note_maker(self, name: bytes, status: os.stat_result) -> None:
        """Of a symbolic link. Whoever may write to a directory may put there any link that he can make, and exchange it
        for another; it stands for the owner of the directory where that is a stranger, and where others may write for
        its own as well, if nobody can have made it by a hard link to another's. Raises UnsafeLinkError."""
        here, trusted, left = self._here, (0, os.geteuid()), len(self._ahead)
        if here.owner not in trusted:
            self._untrusted.append(_Untrusted(here.owner, left))
        if here.mode & _OTHERS_WRITE:
            if not has_one_name(name, here.descriptor, status):
                raise UnsafeLinkError
            if status.st_uid not in (*trusted, here.owner):
                self._untrusted.append(_Untrusted(status.st_uid, left))

    def _check_names(self, name: bytes, status: os.stat_result) -> None:
        """A hard link is a link, too. Raises UnsafeLinkError for one that a stranger may have made."""
        here = self._here
        safe = self._follow_links or stat.S_ISDIR(status.st_mode) or _vouches(here.owner, here.mode, status.st_uid)
        if not safe and not has_one_name(name, here.descriptor, status):
            raise UnsafeLinkError

    def _check_owner(self, *owners: int) -> None:
        """owners: of what the way has come to, and of the directory that a file is in. Raises UnsafeLinkError when that
        is all that a link led to, and not all of it belongs to whom the link stands for."""
        while self._untrusted and len(self._ahead) <= self._untrusted[-1].left:
            if set(owners) != {self._untrusted.pop().owner}:
                raise UnsafeLinkError


def _device_of_proc() -> int:
    """The device number of the kernel's own links; -1 where there is no /proc."""
    try:
        return os.stat("/proc/self").st_dev
    except OSError:
        return -1
