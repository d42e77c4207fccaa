# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serving the doorbell of a guest that moves data between disks: copies, how fast, and whether flushes are done.

Runs in the jailed child, loaded before the fork.
"""

from __future__ import annotations

import errno
import time
import typing as t

from ..host.disks import ADVICE_DROP, SYNC_START
from .doorbell_rules import File
from .doorbell_writes import CHUNK, ChangingServer

_CLOCK_NANOSLEEP = 230  # the system call by its number: the C library's sleep() is another one on every system
_SLICE_SECONDS = 0.1
_STEP_MIN = 4096
_BEHIND_MAX = 8 << 20  # bytes copied to a file before the kernel is told to write them
_DROP_MIN = 1 << 20  # bytes of a copy whose source is dropped from the page cache: a call for each small one costs more

# copy_file_range does not do these two files; reading and writing will.
_COPY_ELSEWHERE = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ETXTBSY)


class MovingServer(ChangingServer):
    """Serves a guest that copies. What is written and copied goes at a rate, as ever on average of a slice of time."""

    COPIES = True

    def __init__(
        self,
        memory: t.Any,
        files: t.Sequence[File],
        byte_budget: int,
        progress: t.Callable[[int, int], None] | None = None,
        rate: int = 0,
        flushes: bool = True,
        **more: t.Any,
    ) -> None:
        """rate: bytes a second, 0: any. flushes: False: flushing does nothing."""
        self._rate = rate
        self._flushes = flushes
        self._due = 0.0  # until then the rate is kept to with what has gone so far
        self._step = min(max(int(rate * _SLICE_SECONDS), _STEP_MIN), _BEHIND_MAX) if rate else _BEHIND_MAX
        super().__init__(memory, files, byte_budget, progress, **more)
        self._behind = [0] * len(files)
        # Made now: nothing may fail later.
        self._in_offset = self._ffi.new("int64_t *")
        self._out_offset = self._ffi.new("int64_t *")
        self._duration = self._ffi.new("int64_t[2]")  # struct timespec
        self._arguments = [self._ffi.cast("long", number) for number in (time.CLOCK_MONOTONIC, 0)]

    def _what_changes(self) -> dict[int, t.Callable[..., int]]:
        return {**super()._what_changes(), self._library.DOORBELL_COPY: self._copy}

    def _write(self, disk: int, offset: int, length: int, memory: int, *unused: int) -> int:
        done = super()._write(disk, offset, length, memory, *unused)
        self._pace(done)
        return done

    def _copy(self, disk: int, offset: int, length: int, _memory: int, source: int, source_offset: int) -> int:
        """Bytes copied, fewer only at the end of the source, or -errno."""
        if source == disk and abs(source_offset - offset) < length:
            return -errno.EINVAL  # as copy_file_range says; reading and writing would make a mess of it
        moved = 0
        while moved < length:
            step = min(length - moved, self._step)
            done = self._copy_range(
                self._descriptors[source], source_offset + moved, self._descriptors[disk], offset + moved, step
            )
            if done < 0:
                return done
            self._write_behind(disk, done)
            self._drop_behind(disk, source, source_offset + moved, done)
            moved += done
            self._pace(done)
            if done < step:
                break
        self.bytes_read += moved
        self.bytes_written += moved
        return moved

    def _write_behind(self, disk: int, moved: int) -> None:
        """The disk works while the copying goes on, instead of after it. A hint: the flush tells what failed."""
        if not self._flushes:
            return
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

    def _flush(self, disk: int, *unused: int) -> int:
        return super()._flush(disk, *unused) if self._flushes else 0

    def _pace(self, moved: int) -> None:
        """Sleeps until so many more bytes were not too fast."""
        if not self._rate or moved <= 0:
            return
        now = time.monotonic()
        self._due = max(self._due, now - _SLICE_SECONDS) + moved / self._rate
        left = self._due - now
        if left > 0:
            self._duration[0] = int(left)
            self._duration[1] = int(left % 1 * 1e9)
            self._library.syscall(_CLOCK_NANOSLEEP, *self._arguments, self._duration, self._ffi.NULL)
