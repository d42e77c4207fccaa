# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers as a guest would give them, made by hand, for tests."""

from __future__ import annotations

import typing as t

from sandbox.images.bitmaps import Bitmap
from sandbox.images.calls import Snapshot
from sandbox.vmm import kvm, machine
from sandbox.vmm.machine import Answer, Report


def record(snapshot: Snapshot) -> bytes:
    """struct snapshot_record with its text and padding."""
    ffi, _library = kvm.bindings()
    struct = ffi.new("struct snapshot_record *")
    struct.vm_state_size = snapshot.vm_state_size
    struct.vm_clock = snapshot.vm_clock
    struct.icount = (1 << 64) - 1 if snapshot.icount is None else snapshot.icount
    struct.disk_size = snapshot.disk_size
    struct.date_seconds = snapshot.date_seconds
    struct.date_nanoseconds = snapshot.date_nanoseconds
    struct.id_length = len(snapshot.id)
    struct.name_length = len(snapshot.name)
    data = bytes(ffi.buffer(struct)) + snapshot.id + snapshot.name
    return data + bytes(-len(data) % 8)


def records(snapshots: t.Iterable[Snapshot]) -> bytes:
    return b"".join(map(record, snapshots))


def bitmap_record(bitmap: Bitmap) -> bytes:
    """struct bitmap_record with its name and padding."""
    ffi, _library = kvm.bindings()
    struct = ffi.new("struct bitmap_record *")
    struct.dirty_bytes = (1 << 64) - 1 if bitmap.dirty_bytes is None else bitmap.dirty_bytes
    struct.dirty_count = (1 << 64) - 1 if bitmap.dirty_count is None else bitmap.dirty_count
    struct.granularity = bitmap.granularity
    struct.flags = bitmap.recording + 2 * bitmap.in_use + 4 * bitmap.stale
    struct.name_length = len(bitmap.name)
    return bytes(ffi.buffer(struct)) + bitmap.name + bytes(-len(bitmap.name) % 8)


class Guest:
    """Stands in for machine.run: answers with one struct, and keeps the calls. report: what every answer says.

    family: of operations, that the guest is to be.
    """

    family = "snapshot"
    report = Report((), 1, 0, 0, 0.5, 1 << 20)

    def __init__(self) -> None:
        self.calls: list[machine.Run] = []
        self.payload = b""
        self.result = b""

    def answers(self, operation: str, payload: bytes = b"", **fields: t.Any) -> None:
        """The next runs end with this result struct; header fields as header_NAME, bytes into arrays."""
        ffi, _library = kvm.bindings()
        struct = ffi.new(f"struct result_{operation} *")
        struct.header.abi_version = ffi.integer_const("ABI_VERSION")
        for key, value in fields.items():
            in_header = key.startswith("header_")
            target = struct.header if in_header else struct
            name = key[len("header_") :] if in_header else key
            if isinstance(value, bytes):
                ffi.memmove(getattr(target, name), value, len(value))
            else:
                setattr(target, name, value)
        self.result = bytes(ffi.buffer(struct))
        self.payload = payload

    def run(self, what: machine.Run) -> Answer:
        assert getattr(what.guest, "__name__", "") == f"_{self.family}_guest"
        self.calls.append(what)
        return Answer(self.result + bytes(8192 - len(self.result)), self.payload, self.report)
