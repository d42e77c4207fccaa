# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest may ask for: the rules of guest/abi/doorbell.h, field by field."""

from __future__ import annotations

import struct
import typing as t

OFFSET_MAX = (1 << 63) - 1  # off_t
VALUE_MAX = (1 << 64) - 1  # stands for larger ones
PAYLOAD_MAX = 64 << 20  # bytes: twice what the longest list takes; the parent holds it in memory
# What a request costs that moves fewer bytes, or none: a system call and what it does to the file system. A full budget
# of 4 TiB pays for a billion; an honest guest that frees all of a 1 TiB image, cluster by cluster, makes 17 million.
REQUEST_BYTES = 4096
REQUEST = struct.Struct("<IIQQQIIQqQ")  # struct doorbell_request

# The rules that a guest can break, by the number that the child reports.
RULES = (
    "batch size",
    "operation",
    "disk index",
    "file range",
    "memory range",
    "disk opened for reading",
    "size limit",
    "request after finish",
    "payload size",
)
BAD_BATCH, BAD_OPERATION, BAD_DISK, BAD_RANGE, BAD_MEMORY = range(5)
BAD_WRITE, BAD_SIZE, BAD_FINISH, BAD_PAYLOAD = range(5, len(RULES))


class DoorbellRuleError(Exception):
    """The guest broke a rule. args: the index in RULES, the request's index in its batch, the offending value."""


class File(t.NamedTuple):
    """One disk as the child knows it. limit: bytes that the file may reach."""

    descriptor: int
    writable: bool
    is_block: bool
    limit: int


class Checker:
    """Holds every request of a batch against the rules."""

    def __init__(self, library: t.Any, files: t.Sequence[File], memory_size: int = 0, copies: bool = False) -> None:
        """memory_size: where guest memory ends; 0: where it does as a rule. copies: whether disk to disk is allowed."""
        self._files = files
        self._copies = copies
        self._first = library.DATA_ADDRESS
        self._end = memory_size or library.MEMORY_SIZE
        self._checks: dict[int, t.Callable[..., int]] = {
            library.DOORBELL_READ: self._read,
            library.DOORBELL_WRITE: self._write,
            library.DOORBELL_COPY: self._copy,
            library.DOORBELL_ZERO: self._zero,
            library.DOORBELL_DISCARD: self._extent,
            library.DOORBELL_RESIZE: self._resize,
            library.DOORBELL_RESERVE: self._extent,
            library.DOORBELL_FLUSH: self._flush,
            library.DOORBELL_PROGRESS: self._nothing,
            library.DOORBELL_FINISH: self._finish,
        }
        self._copy_number, self._last = library.DOORBELL_COPY, library.DOORBELL_FINISH

    def __call__(self, batch: t.Sequence[tuple[int, ...]]) -> int:
        """The bytes that the batch is charged. Raises DoorbellRuleError."""
        charged = 0
        for index, (operation, disk, offset, length, memory, source, _reserved, source_offset, *_rest) in enumerate(
            batch
        ):
            check = self._checks.get(operation)
            if check is None:
                raise DoorbellRuleError(BAD_OPERATION, index, operation)
            if operation == self._last and index != len(batch) - 1:
                raise DoorbellRuleError(BAD_FINISH, index, operation)
            charged += max(REQUEST_BYTES, check(index, disk, offset, length, memory, source, source_offset))
        return charged

    def _memory(self, index: int, memory: int, length: int) -> None:
        # Python's integers do not overflow: the sum is the sum.
        if not self._first <= memory <= memory + length <= self._end:
            raise DoorbellRuleError(BAD_MEMORY, index, memory)

    def _source(self, index: int, disk: int, offset: int, length: int) -> None:
        if disk >= len(self._files):
            raise DoorbellRuleError(BAD_DISK, index, disk)
        if offset + length > OFFSET_MAX:
            raise DoorbellRuleError(BAD_RANGE, index, offset)

    def _target(self, index: int, disk: int, end: int) -> None:
        if disk >= len(self._files):
            raise DoorbellRuleError(BAD_DISK, index, disk)
        file = self._files[disk]
        if not file.writable:
            raise DoorbellRuleError(BAD_WRITE, index, disk)
        if end > OFFSET_MAX:
            raise DoorbellRuleError(BAD_RANGE, index, VALUE_MAX)
        if end > file.limit:
            raise DoorbellRuleError(BAD_SIZE, index, end)

    def _read(self, index: int, disk: int, offset: int, length: int, memory: int, *_unused: int) -> int:
        self._memory(index, memory, length)
        self._source(index, disk, offset, length)
        return length

    def _write(self, index: int, disk: int, offset: int, length: int, memory: int, *_unused: int) -> int:
        self._memory(index, memory, length)
        self._target(index, disk, offset + length)
        return length

    def _copy(
        self, index: int, disk: int, offset: int, length: int, _memory: int, source: int, source_offset: int
    ) -> int:
        self._source(index, source, source_offset, length)
        self._target(index, disk, offset + length)
        if not self._copies:
            raise DoorbellRuleError(BAD_OPERATION, index, self._copy_number)
        return length

    def _zero(self, index: int, disk: int, offset: int, length: int, *_unused: int) -> int:
        self._target(index, disk, offset + length)
        return length  # where the file system has no zeros of its own, they are written

    def _extent(self, index: int, disk: int, offset: int, length: int, *_unused: int) -> int:
        self._target(index, disk, offset + length)
        return 0

    def _resize(self, index: int, disk: int, _offset: int, length: int, *_unused: int) -> int:
        self._target(index, disk, length)
        return 0

    def _flush(self, index: int, disk: int, *_unused: int) -> int:
        self._target(index, disk, 0)
        return 0

    def _nothing(self, *_unused: int) -> int:
        return 0

    def _finish(self, index: int, _disk: int, _offset: int, length: int, memory: int, *_unused: int) -> int:
        if length:
            self._memory(index, memory, length)
        if length > PAYLOAD_MAX:
            raise DoorbellRuleError(BAD_PAYLOAD, index, length)
        return 0
