# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every change that guests make to their disks, in the order in which it was done.

The jail knows nothing of this, and allows nothing for it: the record is in memory that the test shares with the child,
and the recorder stands between the child's table of operations and those who do them.
"""

from __future__ import annotations

import errno
import functools
import mmap
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from sandbox.vmm import child, kvm
from sandbox.vmm.doorbell import Server

SIZE = 1 << 30  # takes only the memory that is written to
_SHARED_NORESERVE = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x4000


class Event(NamedTuple):
    """A change. operation: DOORBELL_*, a COPY is a WRITE; disk: its index; data: of a WRITE."""

    operation: int
    disk: int
    offset: int
    length: int
    data: bytes


class Recorder:
    """size: bytes of records that there is room for; a change beyond them fails with ENOSPC after it was done."""

    HEADER = struct.Struct("<IIQQ")  # operation, disk, offset, length; then the data of a WRITE

    def __init__(self, size: int = SIZE) -> None:
        self._ffi, self._library = kvm.bindings()
        self._size = size
        self._memory = kvm.map_memory(size, _SHARED_NORESERVE)
        self._used = self._ffi.cast("uint64_t *", self._memory)  # bytes, these eight not counted
        self._records = self._memory + 8

    def close(self) -> None:
        """What was recorded is gone."""
        self._library.munmap(self._memory, self._size)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def events(self) -> Iterator[Event]:
        """What was recorded so far."""
        position, end = 0, self._used[0]
        while position < end:
            head = self._ffi.buffer(self._records + position, self.HEADER.size)[:]
            operation, disk, offset, length = self.HEADER.unpack(head)
            position += self.HEADER.size
            stored = length if operation == self._library.DOORBELL_WRITE else 0
            yield Event(
                operation,
                disk,
                offset,
                length,
                self._ffi.buffer(self._records + position, stored)[:] if stored else b"",
            )
            position += stored

    def observe(self, server: Server) -> Server:
        """The server, which from here on records what it does."""
        library = self._library
        for operation in (
            library.DOORBELL_WRITE,
            library.DOORBELL_COPY,
            library.DOORBELL_ZERO,
            library.DOORBELL_DISCARD,
            library.DOORBELL_RESIZE,
            library.DOORBELL_FLUSH,
        ):
            if operation in server._operations:  # those of a guest that writes
                server._operations[operation] = functools.partial(
                    self._recorded, server, operation, server._operations[operation]
                )
        return server

    def _recorded(
        self, server: Any, operation: int, perform: Callable[..., int], disk: int, offset: int, length: int, *where: int
    ) -> int:
        """What the server does, and a record of it."""
        library = self._library
        done = perform(disk, offset, length, *where)
        if done < 0 or (operation == library.DOORBELL_DISCARD and disk == server._journal_disk):
            return done  # a discard under a journal is not done yet
        stored = 0
        if operation in (library.DOORBELL_WRITE, library.DOORBELL_COPY):
            operation, length = library.DOORBELL_WRITE, done
            stored = length
        elif operation == library.DOORBELL_FLUSH:
            offset = length = 0
        position = self._used[0]
        end = position + self.HEADER.size + stored
        if 8 + end > self._size:
            return -errno.ENOSPC
        head = self.HEADER.pack(operation, disk, offset, length)
        self._ffi.memmove(self._records + position, head, len(head))
        position += len(head)
        while position < end:  # what the file holds, and not what somebody meant to write
            read = library.pread(server._descriptors[disk], self._records + position, end - position, offset)
            if read <= 0:
                return -errno.EIO
            position, offset = position + read, offset + read
        self._used[0] = end
        return done


@contextmanager
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """A recorder behind the doorbell of each guest that is started in here."""
    with Recorder() as recorder, monkeypatch.context() as patch:

        def plan(*given: Any) -> child.Job:
            job = child_plan(*given)
            return job._replace(server=lambda *made_of, **more: recorder.observe(job.server(*made_of, **more)))

        child_plan = child.plan
        patch.setattr(child, "plan", plan)
        yield recorder
