# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serving the doorbell of a guest that writes: its requests, and the journal of what they overwrite. Copies between
disks are in doorbell_copies.py: only guests for chains make any.

Runs in the jailed child, loaded before the fork.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import time
import typing as t

from ..host.disks import FALLOCATE_DISCARD, FALLOCATE_RESERVE, FALLOCATE_ZERO
from . import kvm
from .doorbell import ForecastError, Server, UndoError, UndoTimeError
from .doorbell_rules import File

if t.TYPE_CHECKING:
    from .journal import UndoJournal  # some runs have none, and need not load it

CHUNK = 1 << 20
_FORESEEN_MAX = 10**9  # seconds that are told: a guest may say anything of its progress
_FORESEEN_MIN = 4 << 20  # bytes of tables that the guest was seen to go over: of fewer, nothing can be told
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS)
_CUT = 0  # journal.CUT, which some runs need not load


class ChangingServer(Server):
    """Serves a guest that writes. What the journal's disk loses is saved first."""

    def __init__(
        self,
        memory: t.Any,
        files: t.Sequence[File],
        byte_budget: int,
        progress: t.Callable[[int, int], None] | None = None,
        journal: UndoJournal | None = None,
        seconds: float = math.inf,
        foresees: bool = False,
        memory_size: int = 0,
    ) -> None:
        """seconds: for this run and for undoing it. foresees: whether it ends before the first write where that
        will not do."""
        super().__init__(memory, files, byte_budget, progress, memory_size)
        library = self._library
        self._files = files
        self._journal = journal.descriptor if journal else -1
        self._trailer: t.Any = journal.TRAILER if journal else None
        self._mark = journal.mark if journal else b""
        self._old_length = journal.length if journal else 0
        self._undo_bytes, self._undo_records = journal.budget() if journal else (0, 0)
        self._started = time.monotonic()
        self._seconds = seconds
        self._deadline = self._started + seconds
        self._cut_off = 0  # errno of the record that is not whole
        self._journal_disk = self._descriptors.index(journal.disk.descriptor) if journal else -1
        # One chunk to copy through, and one that stays zero. They cost no memory until they are used.
        self._bounce = kvm.map_memory(2 * CHUNK, kvm.MAP_PRIVATE_ANONYMOUS_NORESERVE)
        self._zeros = self._bounce + CHUNK
        self._changes = self._what_changes()
        noted = {number: functools.partial(self._noted, number) for number in self._changes}
        self._operations.update(noted if journal else self._changes)
        reserve = self._reserve_noted if journal else self._reserve
        self._operations.update({library.DOORBELL_RESERVE: reserve, library.DOORBELL_FLUSH: self._flush})
        self._cut = -1  # where the journal's disk ends to the guest, while its file is longer
        if journal:
            self._operations[library.DOORBELL_RESIZE] = self._resize_noted
        if foresees:
            self._foresee()

    def _what_changes(self) -> dict[int, t.Callable[..., int]]:
        """What each request does that changes bytes."""
        library = self._library
        return {
            library.DOORBELL_WRITE: self._write,
            library.DOORBELL_ZERO: self._zero,
            library.DOORBELL_DISCARD: self._discard,
            library.DOORBELL_RESIZE: self._resize,
        }

    # ---- forecast ------------------------------------------------------------------------------------------

    def _foresee(self) -> None:
        """Watch the progress up to the first request that changes a file."""
        library = self._library
        tell, watched = self._report_progress, list[tuple[float, int]]()
        latest = [0, 0]
        changes = (*self._changes, library.DOORBELL_RESERVE)
        served = {number: self._operations[number] for number in changes}

        def note(disk: int, done: int, total: int, *unused: int) -> int:
            if not watched:
                watched.append((time.monotonic(), done))
            latest[:] = done, total
            return tell(disk, done, total, *unused)

        def first(number: int, *where: int) -> int:
            self._operations.update(served)
            self._operations[library.DOORBELL_PROGRESS] = tell
            if watched:
                self._check_forecast(*watched[0], *latest)
            return served[number](*where)

        self._operations[library.DOORBELL_PROGRESS] = note
        self._operations.update({number: functools.partial(first, number) for number in changes})

    def _check_forecast(self, since: float, begun: int, done: int, total: int) -> None:
        """Raises ForecastError when what is left will take too long at the speed so far: from `begun` to `done`, of
        `total` bytes, since that moment. What is left is written as well, and noted before; it goes no faster."""
        now = time.monotonic()
        if done - begun < _FORESEEN_MIN or total <= done:
            return
        seconds = now - self._started + (now - since) * (total - done) / (done - begun)
        if seconds > self._seconds:
            raise ForecastError(math.ceil(min(seconds, _FORESEEN_MAX)))

    # ---- requests ------------------------------------------------------------------------------------------

    def _write(self, disk: int, offset: int, length: int, memory: int, *_unused: int) -> int:
        """Bytes written, or -errno."""
        done: int = self._library.pwrite(self._descriptors[disk], self._memory + memory, length, offset)
        if done != length:
            done = self._loop(self._library.pwrite, disk, offset, length, self._memory + memory, done)
            if 0 <= done < length:
                # Never seen on Linux; the guest is promised all or an error.
                done = -errno.EIO
        if done > 0:
            self.bytes_written += done
        return done

    def _write_all(self, target: int, address: t.Any, length: int, offset: int) -> int:
        """length, or -errno."""
        moved = 0
        while moved < length:
            done: int = self._library.pwrite(target, address + moved, length - moved, offset + moved)
            if done <= 0:
                return -int(self._ffi.errno) if done < 0 else -errno.EIO
            moved += done
        return moved

    def _fallocate(self, disk: int, mode: int, offset: int, length: int) -> int:
        """0 or an errno."""
        if self._library.fallocate(self._descriptors[disk], mode, offset, length) == 0:
            return 0
        return int(self._ffi.errno)

    def _zero(self, disk: int, offset: int, length: int, *_unused: int) -> int:
        if length == 0:
            return 0
        failure = self._fallocate(disk, FALLOCATE_ZERO, offset, length)
        # EINVAL: a block device, and not whole sectors.
        if failure not in (*_NOT_SUPPORTED, errno.EINVAL):
            return -failure
        moved = 0
        while moved < length:
            step = min(CHUNK, length - moved)
            done = self._write_all(self._descriptors[disk], self._zeros, step, offset + moved)
            if done < 0:
                return done
            moved += step
            self.bytes_written += step
        return 0

    def _discard(self, disk: int, offset: int, length: int, *_unused: int) -> int:
        if length == 0:
            return 0
        failure = self._fallocate(disk, FALLOCATE_DISCARD, offset, length)
        if self._files[disk].is_block or failure in _NOT_SUPPORTED:
            return 0
        return -failure

    def _resize(self, disk: int, _offset: int, length: int, *_unused: int) -> int:
        if self._files[disk].is_block:
            # As raw_co_truncate() of QEMU: a device is as long as it is, which is enough for less.
            return 0 if self._reaches(disk, length) else -errno.EINVAL
        if self._library.ftruncate(self._descriptors[disk], length) == 0:
            return 0
        return -int(self._ffi.errno)

    def _reaches(self, disk: int, length: int) -> bool:
        """Whether a device has that many bytes. The jail has no system call that would tell its size."""
        return length == 0 or self._library.pread(self._descriptors[disk], self._bounce, 1, length - 1) == 1

    def _reserve(self, disk: int, offset: int, length: int, *_unused: int) -> int:
        if length == 0:
            return 0
        if self._files[disk].is_block:  # which has all its blocks, and fallocate() wants whole sectors there
            return 0 if self._reaches(disk, offset + length) else -errno.ENOSPC
        failure = self._fallocate(disk, FALLOCATE_RESERVE, offset, length)
        return 0 if failure in _NOT_SUPPORTED else -failure

    def _flush(self, disk: int, *_unused: int) -> int:
        if self._library.fdatasync(self._descriptors[disk]) != 0:
            return -int(self._ffi.errno)
        return 0

    # ---- journal -------------------------------------------------------------------------------------------

    def _noted(self, operation: int, disk: int, offset: int, length: int, *where: int) -> int:
        """Do a change with a record of what was there before it."""
        if self._cut >= 0:
            failure = self._settle(operation, disk, offset, length, *where)
            if failure:
                return -failure
        if disk == self._journal_disk:
            failure = self._save(operation, disk, offset, length)
            if failure:
                return -failure
            if operation == self._library.DOORBELL_DISCARD:
                return 0
        return self._changes[operation](disk, offset, length, *where)

    def _resize_noted(self, disk: int, _offset: int, length: int, *_unused: int) -> int:
        """What the file had at first is not let go of before keep(): somebody else may have the room when it is to be
        put back. To the guest it ends where it is to end."""
        library = self._library
        if disk != self._journal_disk or self._files[disk].is_block:
            return self._noted(library.DOORBELL_RESIZE, disk, 0, length)
        if length == self._cut:
            return 0
        held = min(os.lseek(self._descriptors[disk], 0, os.SEEK_END), self._old_length)
        if length >= held or (0 <= self._cut < length):
            return self._noted(library.DOORBELL_RESIZE, disk, 0, length)
        failure = self._note(_CUT, length, 0, 0)
        if not failure:
            self._cut = length
            self._operations[library.DOORBELL_READ] = self._read_in_front
        return -failure

    def _read_in_front(self, disk: int, offset: int, length: int, memory: int, *_unused: int) -> int:
        if disk == self._journal_disk and self._cut >= 0:
            length = max(0, min(length, self._cut - offset))
        return self._read(disk, offset, length, memory)

    def _settle(self, operation: int, disk: int, offset: int, length: int, *where: int) -> int:
        """Cut the file after all, where something behind its end is asked for: 0 or an errno. No honest guest does it,
        for it shortens a file when all else is done."""
        library = self._library
        end = length if operation == library.DOORBELL_RESIZE else offset + length
        reads = operation == library.DOORBELL_COPY and where[1] == self._journal_disk
        writes = disk == self._journal_disk and operation != library.DOORBELL_DISCARD and end > self._cut
        if not writes and not (reads and where[2] + length > self._cut):
            return 0
        cut, self._cut = self._cut, -1
        failure = self._save(library.DOORBELL_RESIZE, self._journal_disk, 0, cut)
        return failure or -self._resize(self._journal_disk, 0, cut)

    def _reserve_noted(self, disk: int, offset: int, length: int, *unused: int) -> int:
        """Blocks behind the end are seen by nobody, and stay until the file gets its length anew."""
        if disk == self._journal_disk:
            failure = self._cut >= 0 and self._settle(self._library.DOORBELL_RESERVE, disk, offset, length)
            failure = failure or self._note(self._library.DOORBELL_RESERVE, offset, length, 0)
            if failure:
                return -failure
        return self._reserve(disk, offset, length, *unused)

    def _save(self, operation: int, disk: int, offset: int, length: int) -> int:
        """Append to the journal what an operation is about to overwrite: 0 or an errno.

        Raises UndoError, UndoTimeError.
        """
        if operation == self._library.DOORBELL_DISCARD:
            return self._note(operation, offset, length, 0)
        started = time.monotonic()
        before = os.lseek(self._descriptors[disk], 0, os.SEEK_END)  # one system call, whatever the C library
        end = min(before, self._old_length)
        if operation == self._library.DOORBELL_RESIZE:
            if length == before or self._files[disk].is_block:
                # No byte changes: it lets go of blocks reserved behind the end, even on a full file system.
                return 0
            offset, length = length, max(0, end - length)
        failure = 0
        while not failure:
            saved = max(0, min(length, CHUNK, end - offset))
            step = saved or length
            failure = self._note(operation, offset, step, saved)
            offset += step
            length -= step
            if not length:
                break
        # To put it back takes as long as to note it, and as long again until the disk has it.
        now = time.monotonic()
        self._deadline -= 2 * (now - started)
        if now > self._deadline:
            raise UndoTimeError
        return failure

    def _note(self, operation: int, offset: int, length: int, saved: int) -> int:
        """Append one record: 0 or an errno. Raises UndoError."""
        if self._cut_off:
            return self._cut_off  # what came behind would not be found
        trailer = self._trailer.pack(operation, offset, length, saved, self._mark)
        self._undo_bytes -= saved
        self._undo_records -= 1
        if self._undo_bytes < 0 or self._undo_records < 0:
            raise UndoError
        descriptor = self._descriptors[self._journal_disk]
        failure, left = 0, saved
        while left > 0 and not failure:
            done = self._library.pread(descriptor, self._bounce, left, offset)
            if done <= 0:
                failure = int(self._ffi.errno) if done < 0 else errno.EIO
                break
            failure = self._append(self._journal, self._bounce, done)
            offset += done
            left -= done
        self._cut_off = failure or self._append(self._journal, self._ffi.from_buffer(trailer), len(trailer))
        return self._cut_off

    def _append(self, descriptor: int, address: t.Any, length: int) -> int:
        """0 or an errno."""
        while length > 0:
            done = self._library.write(descriptor, address, length)
            if done <= 0:
                return int(self._ffi.errno) if done < 0 else errno.EIO
            address += done
            length -= done
        return 0
