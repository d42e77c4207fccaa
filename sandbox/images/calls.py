# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The structs of guest/abi/calls.h as Python values: calls are written, answers are read and distrusted.

Every count and length of an answer is checked here; what does not fit is a GuestProtocolError.
"""

from __future__ import annotations

import array
import functools
import typing as t

from .. import errors
from ..guests._limits import SNAPSHOT_ID_MAX, SNAPSHOT_NAME_MAX, SNAPSHOTS_MAX
from ..vmm import kvm
from .records import Records

_NO_ICOUNT = (1 << 64) - 1


class Snapshot(t.NamedTuple):
    """One snapshot. Sizes in bytes, vm_clock in nanoseconds, date since 1970 in UTC; icount None: not recorded.

    id and name are bytes of the image's maker: anything but NUL can be in them.
    """

    id: bytes
    name: bytes
    date_seconds: int
    date_nanoseconds: int
    vm_state_size: int
    vm_clock: int
    icount: int | None
    disk_size: int


class Selector(t.NamedTuple):
    """Which snapshot is meant; made by one of its three class methods."""

    kind: str
    id: bytes
    name: bytes

    @classmethod
    def by_name(cls, name: bytes) -> Selector:
        """The first with this name in table order: qemu-img snapshot -d."""
        return cls("SELECT_BY_NAME", b"", name)

    @classmethod
    def by_id_or_name(cls, text: bytes) -> Selector:
        """The one with this id, else the first with this name: qemu-img snapshot -a. The guest takes both from name."""
        return cls("SELECT_BY_ID_OR_NAME", b"", text)

    @classmethod
    def by_id(cls, identifier: bytes, name: bytes = b"") -> Selector:
        """The one with this id, and with this name too unless that is empty."""
        return cls("SELECT_BY_ID", identifier, name)

    def can_match(self) -> bool:
        """Whether any snapshot can be meant: longer texts are in no snapshot's id or name."""
        return len(self.id) <= SNAPSHOT_ID_MAX and len(self.name) <= SNAPSHOT_NAME_MAX

    def shown(self) -> str:
        """The text that the operator gave, for messages."""
        return (self.id if self.kind == "SELECT_BY_ID" else self.name).decode("utf-8", "surrogateescape")


def build(operation: str, disk_sizes: t.Sequence[int], fields: t.Mapping[str, t.Any], may_ask: bool = False) -> bytes:
    """A call struct. operation: as in the struct's name, "snapshot_list" for struct call_snapshot_list.

    disk_sizes: bytes of each disk. fields: the struct's own, but header; bytes and lists give an array, whose rest
    stays zero. may_ask: for memory.
    """
    ffi, _library = kvm.bindings()
    call = ffi.new(f"struct call_{operation} *")
    call.header.abi_version = ffi.integer_const("ABI_VERSION")
    call.header.operation = ffi.integer_const(f"CALL_{operation.upper()}")
    call.header.disk_count = len(disk_sizes)
    call.header.may_ask = may_ask
    call.header.disk_size[0 : len(disk_sizes)] = list(disk_sizes)
    for key, value in fields.items():
        if isinstance(value, Selector):
            _select(ffi, getattr(call, key), value)
        elif isinstance(value, bytes):
            ffi.memmove(getattr(call, key), value, len(value))
        else:
            setattr(call, key, value)
    return bytes(ffi.buffer(call))


def _select(ffi: t.Any, target: t.Any, selector: Selector) -> None:
    target.kind = ffi.integer_const(selector.kind)
    target.id_length = len(selector.id)
    target.name_length = len(selector.name)
    ffi.memmove(target.id, selector.id, len(selector.id))
    ffi.memmove(target.name, selector.name, len(selector.name))


def result(operation: str, data: bytes) -> t.Any:
    """The result struct of an operation, owning its bytes. Raises GuestProtocolError for another form than agreed."""
    ffi, _library = kvm.bindings()
    kind = f"struct result_{operation}"
    size = ffi.sizeof(kind)
    if len(data) < size:
        raise errors.GuestProtocolError(f"The guest's answer has {len(data)} bytes, {size} were agreed.")
    struct = ffi.new(f"{kind} *")
    ffi.memmove(struct, data, size)
    header = struct.header
    if header.abi_version != ffi.integer_const("ABI_VERSION"):
        raise errors.GuestProtocolError(f"The guest speaks version {header.abi_version} of the interface.")
    if header.text_length > len(header.text):
        raise errors.GuestProtocolError(f"The guest's answer quotes {header.text_length} bytes of text.")
    return struct


def text(array: t.Any, length: int, limit: int, what: str) -> bytes:
    """`length` bytes of a uint8_t array, as they stand in the image. Raises GuestProtocolError above `limit`."""
    if length > limit or length > len(array):
        raise errors.GuestProtocolError(f"The guest's answer has {what} of {length} bytes.")
    return bytes(list(array[0:length]))


def snapshots(payload: bytes, count: int) -> Records[Snapshot]:
    """The records of a payload: exactly `count`, and nothing behind them. Raises GuestProtocolError.

    Each is checked here, and decoded when it is looked at.
    """
    if count > SNAPSHOTS_MAX:
        raise errors.GuestProtocolError(f"The guest's answer has {count} snapshots.")
    ffi, _library = kvm.bindings()
    size = ffi.sizeof("struct snapshot_record")
    buffer = ffi.from_buffer(payload)
    places = array.array("Q")
    position = 0
    for index in range(count):
        end = position + size
        if end > len(payload):
            raise errors.GuestProtocolError(f"The guest's answer ends within snapshot {index} of {count}.")
        record = ffi.cast("struct snapshot_record *", buffer + position)
        end += record.id_length + record.name_length
        if record.id_length > SNAPSHOT_ID_MAX or record.name_length > SNAPSHOT_NAME_MAX or end > len(payload):
            raise errors.GuestProtocolError(f"The guest's answer has an id or a name too long in snapshot {index}.")
        if payload.find(b"\0", position + size, end) >= 0:
            raise errors.GuestProtocolError(f"The guest's answer has a NUL in the name of snapshot {index}.")
        places.append(position)
        position = (end + 7) & ~7
    if position != len(payload):
        raise errors.GuestProtocolError(f"The guest's answer has {len(payload)} bytes for {count} snapshots.")
    return Records(places, functools.partial(_snapshot, ffi, payload, buffer))


def _snapshot(ffi: t.Any, payload: bytes, buffer: t.Any, position: int) -> Snapshot:
    """A record that snapshots() has checked."""
    record = ffi.cast("struct snapshot_record *", buffer + position)
    start = position + ffi.sizeof("struct snapshot_record")
    middle = start + record.id_length
    return Snapshot(
        bytes(payload[start:middle]),
        bytes(payload[middle : middle + record.name_length]),
        record.date_seconds,
        record.date_nanoseconds,
        record.vm_state_size,
        record.vm_clock,
        None if record.icount == _NO_ICOUNT else record.icount,
        record.disk_size,
    )
