# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serving the doorbell (guest/abi/doorbell.h): hold a batch against the rules (doorbell_rules.py), then do it.

Runs in the jailed child. Bytes go straight between a file and guest memory and are never looked at. Here is what a
guest needs that reads; doorbell_writes.py has the requests of one that writes.
"""

from __future__ import annotations

import errno
import typing as t

from . import kvm
from .doorbell_rules import BAD_BATCH, REQUEST, Checker, DoorbellRuleError, File

BATCH_HEAD = 64  # bytes in front of the first request
STATUS_OFFSET = 48  # of `status` in a request
STATUS_STRIDE = 8  # int64_t from one status to the next


class BytesError(Exception):
    """The guest asked for more bytes than its budget holds."""


class UndoError(Exception):
    """The guest changed so much that putting it back would cost more than any honest change."""


class UndoTimeError(Exception):
    """What is left of the time is needed to put back what the guest has changed."""


class ForecastError(Exception):
    """The guest would need more time than there is, and has changed nothing. args: seconds, from its start."""


class Finish(t.NamedTuple):
    """The end of the run: the payload's guest address and bytes."""

    memory: int
    length: int


class Server:
    """Serves a guest that reads: the rules let no other request through while no file is writable.

    bytes_read, bytes_written: what went over the doorbell, copies counted in both.
    """

    COPIES = False  # between disks: no other guest may than those that need it

    def __init__(
        self,
        memory: t.Any,
        files: t.Sequence[File],
        byte_budget: int,
        progress: t.Callable[[int, int], None] | None = None,
        memory_size: int = 0,
    ) -> None:
        """memory: the guest's, as char *. memory_size: bytes, 0: MEMORY_SIZE. Raises OSError."""
        ffi, library = kvm.bindings()
        self.bytes_read = 0
        self.bytes_written = 0
        self._ffi = ffi
        self._library = library
        self._memory = memory
        self._descriptors = [file.descriptor for file in files]
        self._left = byte_budget
        self._progress = progress
        at = memory + library.DOORBELL_ADDRESS
        self._count = ffi.cast("uint32_t *", at)
        self._requests = ffi.buffer(at + BATCH_HEAD, library.DOORBELL_BATCH * REQUEST.size)
        self._batch_limit = library.DOORBELL_BATCH
        self._status = ffi.cast("int64_t *", at + BATCH_HEAD + STATUS_OFFSET)
        self._operations: dict[int, t.Callable[..., int]] = {
            library.DOORBELL_READ: self._read,
            library.DOORBELL_PROGRESS: self._report_progress,
        }
        self._finish = library.DOORBELL_FINISH
        self._check = Checker(library, files, memory_size, self.COPIES)

    def serve(self) -> Finish | None:
        """Run the batch that the guest has laid out; the Finish when it was the last one.

        Raises DoorbellRuleError or BytesError before anything of the batch is done, UndoError or UndoTimeError in the
        middle.
        """
        count = self._count[0]
        if not 0 < count <= self._batch_limit:
            raise DoorbellRuleError(BAD_BATCH, 0, count)
        # Copied out once: what is checked is what is done.
        batch = list(REQUEST.iter_unpack(self._requests[0 : count * REQUEST.size]))
        self._left -= self._check(batch)
        if self._left < 0:
            raise BytesError
        failed = False
        at = -STATUS_STRIDE
        for request in batch:
            at += STATUS_STRIDE
            if failed:
                self._status[at] = -errno.ECANCELED
                continue
            operation, disk, offset, length, memory, source, _unused, source_offset, _unused, _unused = request
            if operation == self._finish:
                return Finish(memory, length)
            done = self._operations[operation](disk, offset, length, memory, source, source_offset)
            self._status[at] = done
            failed = done < 0
        return None

    def _read(self, disk: int, offset: int, length: int, memory: int, *_unused: int) -> int:
        """Bytes read, or -errno."""
        done: int = self._library.pread(self._descriptors[disk], self._memory + memory, length, offset)
        if done != length:
            done = self._loop(self._library.pread, disk, offset, length, self._memory + memory, done)
        if done > 0:
            self.bytes_read += done
        return done

    def _loop(self, call: t.Any, disk: int, offset: int, length: int, address: t.Any, done: int) -> int:
        """Go on after a transfer that did `done` bytes, or failed with -1, to the end or to the first error."""
        moved = 0
        while True:
            if done < 0:
                if self._ffi.errno == errno.EINTR:
                    done = 0
                else:
                    return -int(self._ffi.errno)
            elif done == 0:
                return moved
            moved += done
            if moved == length:
                return moved
            done = call(self._descriptors[disk], address + moved, length - moved, offset + moved)

    def _report_progress(self, _disk: int, done: int, total: int, *_unused: int) -> int:
        if self._progress:
            self._progress(done, total)
        return 0
