# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files behind the doorbell, opened for I/O. What is in them is nobody's business here."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from ..words import opening
from .places import Place, find_place

FALLOCATE_RESERVE = 0x01  # keep size
FALLOCATE_DISCARD = 0x03  # punch hole, keep size
FALLOCATE_ZERO = 0x10
ADVICE_DROP = 4  # of posix_fadvise(): will not be needed
SYNC_START = 0x02  # of sync_file_range(): start to write, wait for nothing

_BLKGETSIZE64 = 0x80081272
_KINDS = (
    (stat.S_ISDIR, "a directory", "is_directory"),
    (stat.S_ISFIFO, "a FIFO", "not_regular"),
    (stat.S_ISSOCK, "a socket", "not_regular"),
    (stat.S_ISCHR, "a character device", "not_regular"),
)


class Disk:
    """An open regular file or block device. It closes its descriptor on close(), or as a context manager.

    path: as the caller named it. descriptor: 3 or higher. writable: opened for writing. is_block: a block device.
    identity: (st_dev, st_ino).
    """

    def __init__(self, path: str, descriptor: int, writable: bool) -> None:
        """Owns the descriptor from here on. Raises OSError; then the caller still owns it."""
        status = os.fstat(descriptor)
        self.path = path
        self.descriptor = descriptor
        self.writable = writable
        self.is_block = stat.S_ISBLK(status.st_mode)
        self.identity = (status.st_dev, status.st_ino)

    @property
    def size(self) -> int:
        """Bytes, as of now. Raises OSError."""
        if not self.is_block:
            return os.fstat(self.descriptor).st_size
        answer = fcntl.ioctl(self.descriptor, _BLKGETSIZE64, bytes(8))
        return int(struct.unpack("=Q", answer)[0])

    def close(self) -> None:
        """Once is enough, twice does no harm."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def open_disk(path: str, writable: bool) -> Disk:
    """Open a file that the caller named, as find_place() finds it. Raises ImageOpenError."""
    with find_place(path, writable=writable) as place:
        return disk_of_place(place, writable)


def disk_of_place(place: Place, writable: bool) -> Disk:
    """The very file that was found, opened for I/O; the place stays open.

    It is looked at before it is opened: opening a FIFO or a device can hang or have effects. Raises ImageOpenError.
    """
    path = place.path
    try:
        if not place.there:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        for matches, what, code in _KINDS:
            if matches(place.status.st_mode):
                raise opening.not_regular(path, what, code, writable)
        descriptor = _reopen(place, writable)
    except OSError as error:
        raise opening.open_error(path, error, writable) from error
    try:
        disk = Disk(path, descriptor, writable)
        _unused = disk.size
    except OSError as error:
        os.close(descriptor)
        raise opening.open_error(path, error, writable) from error
    return disk


def _reopen(place: Place, writable: bool) -> int:
    """A descriptor for I/O of the very file that was found. Raises OSError."""
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(f"/proc/self/fd/{place.handle}", flags)
    except FileNotFoundError:
        # No /proc. By its name in the directory, then, and only if it still is the same file.
        descriptor = os.open(place.name, flags | os.O_NOFOLLOW, dir_fd=place.directory.descriptor)
        found, held = os.fstat(descriptor), place.status
        if (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
            os.close(descriptor)
            raise OSError(errno.ENOENT, "the file was replaced") from None
    return beyond_standard(descriptor)


def beyond_standard(descriptor: int) -> int:
    """The descriptor, moved to 3 or higher: in a process started without standard streams it could be one of them,
    and nothing printed by accident may land in an image. Raises OSError."""
    if descriptor > 2:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)
