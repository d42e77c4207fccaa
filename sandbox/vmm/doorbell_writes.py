# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serving the doorbell of a guest that writes: all its requests, and the journal of what they overwrite.

Runs in the jailed child, loaded before the fork.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import time
import typing as t

from ..host.disks import ADVICE_DROP, FALLOCATE_DISCARD, FALLOCATE_RESERVE, FALLOCATE_ZERO, SYNC_START
from . import kvm
from .doorbell import Server, UndoError, UndoTimeError
from .doorbell_rules import File

if t.TYPE_CHECKING:
    from .journal import UndoJournal  # some runs have none, and need not load it

CHUNK = 1 << 20
_BEHIND_MAX = 8 << 20  # bytes copied to a file before the kernel is told to write them
_DROP_MIN = 1 << 20  # bytes of a copy whose source is dropped from the page cache: a call for each small one costs more

# copy_file_range does not do these two files; reading and writing will.
_COPY_ELSEWHERE = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ETXTBSY)
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS)


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
        memory_size: int = 0,
    ) -> None:
        """seconds: for this run and for undoing it."""
        super().__init__(memory, files, byte_budget, progress, memory_size)
        ffi, library = self._ffi, self._library
        self._files = files
        self._journal = journal.descriptor if journal else -1
        self._trailer: t.Any = journal.TRAILER if journal else None
        self._mark = journal.mark if journal else b""
        self._old_length = journal.length if journal else 0
        self._undo_bytes, self._undo_records = journal.budget() if journal else (0, 0)
        self._deadline = time.monotonic() + seconds
        self._cut_off = 0  # errno of the record that is not whole
        self._journal_disk = self._descriptors.index(journal.disk.descriptor) if journal else -1
        # One chunk to copy through, and one that stays zero. They cost no memory until they are used.
        self._bounce = kvm.map_memory(2 * CHUNK, kvm.MAP_PRIVATE_ANONYMOUS_NORESERVE)
        self._zeros = self._bounce + CHUNK
        self._behind = [0] * len(files)
        self._in_offset = ffi.new("int64_t *")
        self._out_offset = ffi.new("int64_t *")
        self._changes: dict[int, t.Callable[..., int]] = {
            library.DOORBELL_WRITE: self._write,
            library.DOORBELL_COPY: self._copy,
            library.DOORBELL_ZERO: self._zero,
            library.DOORBELL_DISCARD: self._discard,
            library.DOORBELL_RESIZE: self._resize,
        }
        noted = {number: functools.partial(self._noted, number) for number in self._changes}
        self._operations.update(noted if journal else self._changes)
        reserve = self._reserve_noted if journal else self._reserve
        self._operations.update({library.DOORBELL_RESERVE: reserve, library.DOORBELL_FLUSH: self._flush})

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

    def _copy(self, disk: int, offset: int, length: int, _memory: int, source: int, source_offset: int) -> int:
        """Bytes copied, fewer only at the end of the source, or -errno."""
        if source == disk and abs(source_offset - offset) < length:
            return -errno.EINVAL  # as copy_file_range says; reading and writing would make a mess of it
        moved = 0
        while moved < length:
            step = min(length - moved, _BEHIND_MAX)
            done = self._copy_range(
                self._descriptors[source], source_offset + moved, self._descriptors[disk], offset + moved, step
            )
            if done < 0:
                return done
            self._write_behind(disk, done)
            self._drop_behind(disk, source, source_offset + moved, done)
            moved += done
            if done < step:
                break
        self.bytes_read += moved
        self.bytes_written += moved
        return moved

    def _write_behind(self, disk: int, moved: int) -> None:
        """The disk works while the copying goes on, instead of after it. A hint: the flush tells what failed."""
        self._behind[disk] += moved
        if self._behind[disk] >= _BEHIND_MAX:
            self._library.sync_file_range(self._descriptors[disk], 0, 0, SYNC_START)
            self._behind[disk] = 0

    def _drop_behind(self, disk: int, source: int, offset: int, length: int) -> None:
        """An overlay that will be emptied need not stay in the page cache: its pages are the next ones to copy to."""
        if length >= _DROP_MIN and source != disk and self._files[source].writable:
            self._library.posix_fadvise(self._descriptors[source], offset, length, ADVICE_DROP)

    def _copy_range(self, source: int, source_offset: int, target: int, offset: int, length: int) -> int:
        """Copy between files in the kernel, and through the bounce buffer what it will not."""
        moved = 0
        while moved < length:
            self._in_offset[0] = source_offset + moved
            self._out_offset[0] = offset + moved
            step = min(length - moved, 1 << 30)
            done = self._library.copy_file_range(source, self._in_offset, target, self._out_offset, step, 0)
            if done < 0 and self._ffi.errno not in _COPY_ELSEWHERE:
                return -int(self._ffi.errno)
            if done <= 0:
                # 0 is the end of the source, or a file system that does not tell: read() tells.
                break
            moved += int(done)
        while moved < length:
            done = self._library.pread(source, self._bounce, min(length - moved, CHUNK), source_offset + moved)
            if done < 0:
                return -int(self._ffi.errno)
            if done == 0:
                break
            written = self._write_all(target, self._bounce, int(done), offset + moved)
            if written < 0:
                return written
            moved += written
        return moved

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
        if disk == self._journal_disk:
            failure = self._save(operation, disk, offset, length)
            if failure:
                return -failure
            if operation == self._library.DOORBELL_DISCARD:
                return 0
        return self._changes[operation](disk, offset, length, *where)

    def _reserve_noted(self, disk: int, offset: int, length: int, *unused: int) -> int:
        """Blocks behind the end are seen by nobody, and stay until the file gets its length anew."""
        if disk == self._journal_disk:
            failure = self._note(self._library.DOORBELL_RESERVE, offset, length, 0)
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
