# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was there before a change, and what was changed in which order: opaque bytes in a file.

An UndoJournal makes a group of images all or nothing; a Recorder feeds crash tests. Both are opened by the parent,
written by the jailed child with write(2) alone, and read by the parent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import typing as t
from bisect import bisect_left

from .disks import FALLOCATE_DISCARD, Disk, beyond_standard
from .places import Directory

CHUNK = 1 << 20

WRITE, ZERO, DISCARD, RESIZE, FLUSH = 2, 4, 5, 6, 8  # as in enum doorbell_operation


class UndoJournal:
    """Old content of one disk, in an unlinked file beside the image.

    A record is a header (operation, offset, length, bytes saved, length of the file before), then the saved bytes.
    DISCARDs are only noted: their bytes stay in the image until keep(). Ends with undo() or keep(), after which it can
    be used again, or close().
    """

    HEADER = struct.Struct("<QQQQQ")

    def __init__(self, disk: Disk, directory: Directory | None = None) -> None:
        """directory: where the image is, None for the place of temporary files. Raises OSError."""
        self.disk = disk
        self.descriptor = _unlinked_file(directory)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> UndoJournal:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    @property
    def empty(self) -> bool:
        """Nothing was changed, nor is to be discarded."""
        return os.fstat(self.descriptor).st_size == 0

    def records(self) -> list[tuple[int, int, int, int, int, int]]:
        """(operation, offset, length, bytes saved, file length before, position of the saved bytes), in order.

        A record that was cut off ends the list: the change it was written for had not begun.
        """
        end = os.fstat(self.descriptor).st_size
        found = []
        position = 0
        while position + self.HEADER.size <= end:
            operation, offset, length, saved, before = self.HEADER.unpack(
                _read_exactly(self.descriptor, self.HEADER.size, position)
            )
            position += self.HEADER.size
            if position + saved > end:
                break
            found.append((operation, offset, length, saved, before, position))
            position += saved
        return found

    def trim(self) -> None:
        """Drop a record that was cut off, so that the next one is found behind the whole ones."""
        end = 0
        for _operation, _offset, _length, saved, _before, position in self.records():
            end = position + saved
        self._cut(end)

    def undo(self) -> None:
        """Put the disk back to the bytes and the length it had, and make that stable. Raises OSError."""
        records = self.records()
        target = self.disk.descriptor
        for _operation, offset, _length, saved, _before, position in reversed(records):
            for done in range(0, saved, CHUNK):
                old = _read_exactly(self.descriptor, min(saved - done, CHUNK), position + done)
                _write_exactly(target, old, offset + done)
        if records:
            if not self.disk.is_block:
                os.ftruncate(target, records[0][4])
            os.fsync(target)
        self._cut(0)

    def keep(self) -> None:
        """Carry out the noted discards where nothing was written since, and forget everything."""
        written = _Ranges()
        for operation, offset, length, _saved, _before, _position in reversed(self.records()):
            if operation == DISCARD:
                for start, end in written.missing(offset, offset + length):
                    _discard(self.disk.descriptor, start, end - start)
            elif operation != RESIZE:
                written.add(offset, offset + length)
        self._cut(0)

    def _cut(self, length: int) -> None:
        os.ftruncate(self.descriptor, length)
        os.lseek(self.descriptor, length, os.SEEK_SET)


class Event(t.NamedTuple):
    """What was done to a disk. operation: WRITE, ZERO, DISCARD, RESIZE (to length) or FLUSH. data: of a WRITE."""

    operation: int
    disk: int
    offset: int
    length: int
    data: bytes


class Recorder:
    """Every change of every disk, in the order in which it was done, in a file. For tests; a COPY is a WRITE."""

    HEADER = struct.Struct("<IIQQ")  # operation, disk, offset, length; then the data of a WRITE

    def __init__(self, path: str) -> None:
        """Creates the file, or empties it. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self.descriptor = beyond_standard(os.open(path, flags, 0o600))

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def events(self) -> t.Iterator[Event]:
        """What was recorded so far; the last event is left out when it was cut off. Raises OSError."""
        end = os.fstat(self.descriptor).st_size
        position = 0
        while position + self.HEADER.size <= end:
            operation, disk, offset, length = self.HEADER.unpack(
                _read_exactly(self.descriptor, self.HEADER.size, position)
            )
            position += self.HEADER.size
            stored = length if operation == WRITE else 0
            if position + stored > end:
                return
            yield Event(operation, disk, offset, length, _read_exactly(self.descriptor, stored, position))
            position += stored


class _Ranges:
    """A set of byte ranges: sorted, apart."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        first = bisect_left(self._ends, start)
        last = first
        while last < len(self._starts) and self._starts[last] <= end:
            start = min(start, self._starts[last])
            end = max(end, self._ends[last])
            last += 1
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def missing(self, start: int, end: int) -> t.Iterator[tuple[int, int]]:
        """The parts of start..end that are not in the set."""
        at = bisect_left(self._ends, start)
        while start < end:
            if at == len(self._starts) or self._starts[at] >= end:
                yield start, end
                return
            if self._starts[at] > start:
                yield start, self._starts[at]
            start = self._ends[at]
            at += 1


def _unlinked_file(directory: Directory | None) -> int:
    """A descriptor of a file without a name, in the directory if that works, else where temporary files go."""
    if directory:
        with contextlib.suppress(OSError):
            flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
            return beyond_standard(os.open(b".", flags, 0o600, dir_fd=directory.descriptor))
    import tempfile  # costs milliseconds, and is rarely needed

    with tempfile.TemporaryFile() as file:
        return beyond_standard(os.dup(file.fileno()))


def _read_exactly(descriptor: int, length: int, offset: int) -> bytes:
    """Raises OSError, EIO when the file ends before."""
    parts = []
    while length > 0:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return b"".join(parts)


def _write_exactly(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def _discard(descriptor: int, offset: int, length: int) -> None:
    """Punch a hole where the file system can; otherwise the bytes stay, which is allowed."""
    from . import kvm  # not needed, nor cffi, by who only reads

    _ffi, library = kvm.bindings()
    library.fallocate(descriptor, FALLOCATE_DISCARD, offset, length)
