# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu's own locks on an image: open-file-description byte locks, shared with running VMs and with qemu-img.

Byte 100 + i says "I use permission i", byte 200 + i says "I do not let others use permission i", for i in 0 consistent
read, 1 write, 2 write unchanged, 3 resize. All are taken as read locks; whoever wants permission i probes 200 + i,
whoever does not share it probes 100 + i. First take, then probe: of two that start together one at least sees the
other.
Source: qemu 10.0.2, block/file-posix.c.

The locks belong to the open file description: closing its last descriptor drops them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import typing as t

from .. import errors
from ..words import opening

# struct flock of a 64-bit Linux: l_type, l_whence, padding, l_start, l_len, l_pid, padding
_FLOCK = struct.Struct("=hh4xqqi4x")
_GETLK: int = getattr(fcntl, "F_OFD_GETLK", 36)
_SETLK: int = getattr(fcntl, "F_OFD_SETLK", 37)

# What a kernel or a file system without these locks answers.
_NO_LOCKS = (errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Lock(t.NamedTuple):
    """What is held on an image. active: False where the file system has no such locks; reason says why."""

    held: tuple[int, ...]
    active: bool = True
    reason: str = ""


class _Kind(t.NamedTuple):
    """The bytes that one kind of opener takes, and those that it probes, in qemu's order."""

    takes: tuple[int, ...]
    probes: tuple[int, ...]


_READ_WRITE = _Kind((100, 101, 103, 201, 203), (200, 201, 203, 101, 103))
_FORCE_SHARE = _Kind((100,), (200,))
# By what qemu has the file for, and whether it writes to it. Only a commit writes to a raw file; qemu's lets others
# write there at the same time, another commit even, and ours does not.
_KINDS = {
    ("qcow2", False): _Kind((100, 201, 203), (200, 101, 103)),
    ("qcow2", True): _READ_WRITE,
    ("vmdk", False): _Kind((100, 201, 203), (200, 101, 103)),
    ("vmdk", True): _READ_WRITE,
    ("raw", False): _Kind((100,), (200,)),
    ("raw", True): _READ_WRITE,
    ("data file", False): _Kind((100, 203), (200, 103)),
    ("data file", True): _Kind((100, 101, 103, 203), (200, 201, 203, 103)),
}


_READER, _NO_READERS = 100, 200


def lock_image(descriptor: int, path: str, writable: bool, force_share: bool = False, use: str = "qcow2") -> Lock:
    """Takes qemu's locks on an open image.

    descriptor: open for reading, and for writing when writable. path: for messages. use: "qcow2", "vmdk", "raw",
    or "data file" for the external data file of a qcow2 image.
    Raises errors.ImageInUseError, with no lock left behind, when somebody else's locks forbid it;
    errors.ForceShareError for a force_share that writes.
    """
    if writable and force_share:
        raise opening.force_share_error(path)
    kind = _FORCE_SHARE if force_share else _KINDS[use, writable]
    try:
        for byte in kind.takes:
            if not _take(descriptor, byte):
                raise _in_use(descriptor, path, byte, taking=True)
        for byte in kind.probes:
            if _is_held(descriptor, byte):
                raise _in_use(descriptor, path, byte, taking=False)
    except OSError as error:
        unlock_image(descriptor)
        if error.errno not in _NO_LOCKS:
            raise opening.open_error(path, error, writable) from error
        return Lock((), False, f"no locks here: {os.strerror(error.errno)}")
    return Lock(kind.takes)


def hand_over(reader: int, writer: int, path: str, use: str = "qcow2") -> Lock:
    """Takes a writer's locks on another descriptor of an image that is locked for reading already, without a gap.

    As qemu does it: the reader's descriptor takes and probes what a writer needs, for its own locks are in the way of
    any other; then the writer's takes the same. The caller closes the reader's. Raises errors.ImageInUseError; the
    reader's locks are as they were then.
    """
    try:
        lock = lock_image(reader, path, writable=True, use=use)
    except errors.ImageInUseError:
        for byte in _KINDS[use, False].takes:
            _take(reader, byte)
        raise
    for byte in lock.held:
        if not _take(writer, byte):
            raise _in_use(writer, path, byte, taking=True)
    return lock


def keep_readers_out(descriptor: int, path: str, lock: Lock) -> Lock:
    """For an image that is locked already: nobody else may read it from here on, as long as that lock is held.

    What it is for is a layer whose base changes. Raises errors.ImageInUseError, with no lock left behind, when somebody
    reads it; ImageOpenError.
    """
    if not lock.active:
        return lock
    try:
        if not _take(descriptor, _NO_READERS):
            raise _in_use(descriptor, path, _NO_READERS, taking=True)
        if _is_held(descriptor, _READER):
            raise _in_use(descriptor, path, _READER, taking=False)
    except OSError as error:
        raise opening.open_error(path, error, writable=False) from error
    return Lock((*lock.held, _NO_READERS))


def unlock_image(descriptor: int) -> None:
    """Drops every lock that lock_image() can have taken; quiet where there are no such locks."""
    for byte in (*_READ_WRITE.takes, _NO_READERS):
        try:
            fcntl.fcntl(descriptor, _SETLK, _flock(fcntl.F_UNLCK, byte))
        except OSError:
            return


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


def _take(descriptor: int, byte: int) -> bool:
    """A read lock on one byte; False when somebody has a write lock there."""
    try:
        fcntl.fcntl(descriptor, _SETLK, _flock(fcntl.F_RDLCK, byte))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_held(descriptor: int, byte: int) -> bool:
    """Whether another open file description has any lock on the byte."""
    return _probe(descriptor, byte)[0] != fcntl.F_UNLCK


def _probe(descriptor: int, byte: int) -> tuple[int, int]:
    """The type of the lock in the way, and its pid: -1 for the kind of lock that has no owner but a file."""
    answer = _FLOCK.unpack(fcntl.fcntl(descriptor, _GETLK, _flock(fcntl.F_WRLCK, byte)))
    return answer[0], answer[4]


def _in_use(descriptor: int, path: str, byte: int, taking: bool) -> errors.ImageInUseError:
    """The exception for a lock in the way of taking one, or of what was to be done. Drops our own locks first, so that
    only the holders are found."""
    from . import holders  # a long search, and most images are free

    unlock_image(descriptor)
    kind, pid = _probe(descriptor, byte)
    owner = pid if kind != fcntl.F_UNLCK and pid > 0 else 0
    return holders.in_use(descriptor, path, byte, taking, owner)
