# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was there before a change: opaque bytes in a file, which make a group of images all or nothing.

Opened by the parent, written by the jailed child with write(2) alone, and read by the parent.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import struct
import time
import typing as t
from bisect import bisect_left

from .. import errors
from ..host.disks import FALLOCATE_DISCARD, Disk, beyond_standard
from ..host.places import Directory
from . import memory
from .doorbell_rules import OFFSET_MAX

CHUNK = 1 << 20

WRITE, COPY, ZERO, DISCARD, RESIZE, RESERVE, FLUSH = range(2, 9)  # as in enum doorbell_operation
CUT = 0  # a RESIZE that waits for keep(); `offset` is the length

BYTES_MIN = 64 << 20
RECORDS_MIN = 1 << 16
CLUSTER_MIN = 512
TOTAL_MIN = 1 << 30  # for all runs together, besides what the disk holds
RANGES_MAX = 1 << 18  # that keep() holds in memory: 20 MiB
_WINDOW = 1 << 15  # bytes of trailers that are read at once


class Note(t.NamedTuple):
    """One record of a journal. saved: the bytes that were at `offset`; they are in the journal at `position`."""

    operation: int
    offset: int
    length: int
    saved: int
    position: int


class UndoJournal:
    """Old content of one disk, in an unlinked file beside the image.

    A record is the saved bytes, CHUNK at most, and then their TRAILER: the file is read from its end, in as much memory
    for a million records as for one. Bytes behind the length that the disk has when the journal is made are not saved.
    DISCARDs, CUTs and RESERVEs are only noted: the bytes of the former two stay in the image until keep(), for whoever
    fills the file system would have the room that undo() needs. Ends with undo() or keep(), after which it can be used
    again, or close().

    What is in it may come from a jail that was broken out of: nothing in it is believed.

    length: of the disk, in bytes. seconds: for what keep() may take; whoever runs a guest says how many are left.
    spent: seconds that guests have taken so far.
    """

    TRAILER = struct.Struct("<QQQQ16s")  # operation, offset, length, bytes saved, the mark

    def __init__(self, disk: Disk, directory: Directory | None = None) -> None:
        """directory: where the image is, None for the place of temporary files. Raises OSError."""
        self.disk = disk
        self.length = disk.size
        self.seconds = math.inf
        self.spent = 0.0
        self._most = memory.held(disk) + TOTAL_MIN
        # No image can know it. So the last whole record is found in front of one that was cut off.
        self.mark = os.urandom(16)
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

    def budget(self) -> tuple[int, int]:
        """(bytes, records) that one run may add: more than any honest change needs, and few enough to be undone.

        A change rewrites metadata, and metadata is a small part of an image: 0.04 of the length is the most that
        creating, applying or deleting a snapshot saved of images of all cluster sizes and refcount widths (512 bytes,
        64 bits), 0.0002 for one of 1 TiB. So each byte once is plenty. A record is for a table or for a run of freed
        clusters, none of which is smaller than a cluster; there was one for 3 KiB of the image at most. What is no
        share of the length, as entries and headers, is in the constants.

        A task can have a run for each of an image's snapshots, and there can be 65,536: all together may add what the
        disk holds, whatever its length claims, and TOTAL_MIN. Raises OSError.
        """
        size, records = self.length + BYTES_MIN, self.length // CLUSTER_MIN + RECORDS_MIN
        left = max(0, self._most - os.fstat(self.descriptor).st_size)
        return min(size, left), min(records, left // self.TRAILER.size)

    def notes(self) -> t.Iterator[Note]:
        """All records, the last one first. One that was cut off is left out: its change had not begun.

        Raises OSError, GuestProtocolError for what the sandbox has not written.
        """
        end = self._end()
        window, start = b"", end
        while end > 0:
            at = end - self.TRAILER.size
            if at < start:
                start = max(0, end - _WINDOW)
                window = _read_exactly(self.descriptor, end - start, start)
            if at < start:
                raise _broken()
            operation, offset, length, saved, mark = self.TRAILER.unpack_from(window, at - start)
            end = at - saved
            if mark != self.mark or saved > CHUNK or end < 0 or offset + max(length, saved) > OFFSET_MAX:
                raise _broken()
            if saved and offset + saved > self.length:
                raise _broken()
            yield Note(operation, offset, length, saved, end)

    def trim(self) -> None:
        """Drop a record that was cut off, so that the next one is found behind the whole ones."""
        self._cut(self._end())

    def undo(self) -> None:
        """Put the disk back to the bytes and the length it had, and make that stable.

        Raises OSError, GuestProtocolError for a journal that the sandbox has not written.
        """
        target = self.disk.descriptor
        changed = False
        for note in self.notes():
            changed = True
            if note.saved:
                _write_exactly(target, _read_exactly(self.descriptor, note.saved, note.position), note.offset)
        if changed:
            if not self.disk.is_block:
                # Of a file that has this length already it lets go of the blocks reserved behind its end.
                os.ftruncate(target, self.length)
            os.fsync(target)
        self._cut(0)

    def keep(self) -> None:
        """Carry out the noted discards where nothing was written since, and the last cut, and forget everything.

        They are a courtesy: what there is no time for, or no memory, is not given back.
        """
        written = _Ranges()
        reach, is_cut = 0, False  # reach: as far as was written later
        deadline = time.monotonic() + self.seconds
        for note in self.notes():
            if note.operation == DISCARD:
                for start, end in written.missing(note.offset, note.offset + note.length):
                    _discard(self.disk.descriptor, start, end - start)
            elif note.operation in (WRITE, COPY, ZERO):
                written.add(note.offset, note.offset + note.length)
                reach = max(reach, note.offset + note.length)
            elif note.operation == RESIZE:
                reach = max(reach, note.offset)
            elif note.operation == CUT and not is_cut:
                is_cut = True
                if max(reach, note.offset) < self.disk.size:
                    os.ftruncate(self.disk.descriptor, max(reach, note.offset))
            if written.count > RANGES_MAX or time.monotonic() > deadline:
                break
        self._cut(0)

    def _end(self) -> int:
        """Where the last whole record ends. Raises OSError, GuestProtocolError."""
        size = os.fstat(self.descriptor).st_size
        for most in (self.TRAILER.size, 2 * self.TRAILER.size + CHUNK):
            reach = min(most, size)
            found = _read_exactly(self.descriptor, reach, size - reach).rfind(self.mark)
            if found >= 0:
                return size - reach + found + len(self.mark)
        if size > CHUNK + self.TRAILER.size:
            raise _broken()
        return 0

    def _cut(self, length: int) -> None:
        os.ftruncate(self.descriptor, length)
        os.lseek(self.descriptor, length, os.SEEK_SET)


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

    @property
    def count(self) -> int:
        return len(self._starts)

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


def _broken() -> errors.GuestProtocolError:
    return errors.GuestProtocolError("the note of what was there before is not as the sandbox writes it")


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
