# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guest as a shared library of this machine, with its disks in memory: no KVM, no jail, no files.

Compiled once for each state of the sources, into build/native/, and loaded with cffi.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cffi

TOP = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent / "c"
BARE = {"start.c", "memory.c", "library.c"}  # what only a bare virtual processor can run
FLAGS = ("-std=gnu11", "-O1", "-g", "-fPIC", "-msse2", "-Wall", "-Wextra", "-Werror")
COVERAGE = "AIRLOCK_COVERAGE"  # names a directory: lines are counted there, see coverage.py
KEPT = 20  # libraries in build/native/; who goes back to an earlier state finds it
DATE = (1767323045, 0)
NOT_COUNTED = (1 << 64) - 1


def sources() -> list[Path]:
    """The guest's C files that a computer with an operating system can run."""
    rooms = [room for room in (TOP / "guest").iterdir() if room.name != "families"]  # families.c stands for all of them
    return sorted(path for room in rooms for path in room.glob("*.c") if path.name not in BARE)


def declarations() -> str:
    """The ABI and the tests' entries as cffi's parser takes them."""
    headers = [*sorted((TOP / "guest" / "abi").glob("*.h")), HERE / "host.h", HERE / "probes.h"]
    lines = [line for header in headers for line in header.read_text(encoding="ascii").splitlines()]
    return "\n".join(line for line in lines if not line.startswith("#"))


@functools.cache
def _state() -> bytes:
    """What tells this state of the sources and of the compiler from others."""
    state = hashlib.sha256(subprocess.run(["gcc", "--version"], check=True, capture_output=True).stdout)
    for path in sorted([*(TOP / "guest").rglob("*.[ch]"), *HERE.glob("*.[ch]")]):
        state.update(b"%s\0%d\0" % (bytes(path.relative_to(TOP)), path.stat().st_size) + path.read_bytes())
    return state.digest()


def _objects(directory: Path, options: Sequence[str]) -> list[str]:
    """Compiles all files into the directory. Raises CalledProcessError."""
    directory.mkdir(exist_ok=True)

    def one(source: Path) -> str:
        target = str(directory / f"{source.parent.name}-{source.stem}.o")  # rooms have files of the same name
        command = ["gcc", *FLAGS, *options, f"-I{TOP / 'guest'}", f"-I{HERE}", "-c", str(source), "-o", target]
        subprocess.run(command, check=True)
        return target

    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, [*sources(), HERE / "families.c", HERE / "host.c", HERE / "probes.c"]))


def compiled(options: Sequence[str] = ()) -> Path:
    """The shared library with these compiler options; made once for all workers and all sessions to come, until a
    source changes. Raises CalledProcessError with what the compiler has printed."""
    directory = TOP / "build" / "native"
    if COVERAGE in os.environ:
        directory, options = Path(os.environ[COVERAGE]), [*options, "--coverage", "-O0"]
    directory.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(_state() + "\0".join((*FLAGS, *options)).encode()).hexdigest()[:16]
    library = directory / f"guest-{name}.so"
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            library.touch()
            return library
        draft = library.with_suffix(".draft")
        objects = _objects(library.with_suffix(""), options)
        link = ["gcc", "-shared", *options, "-Wl,--wrap=heap_open", *objects, "-lz", "-lzstd", "-o", str(draft)]
        subprocess.run(link, check=True)
        draft.rename(library)
        if COVERAGE not in os.environ:
            shutil.rmtree(library.with_suffix(""))
        for old in sorted(directory.glob("guest-*.so"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink()
    return library


@dataclass(frozen=True)
class Request:
    """One request as it came over the doorbell. operation: READ, WRITE, ...; offset and length in bytes."""

    operation: str
    batch: int
    offset: int
    length: int


@dataclass(frozen=True)
class Answer:
    """How a run ended. refusal: the name without REFUSAL_, "" for success. result: the struct of the operation."""

    refusal: str
    arguments: tuple[int, ...]
    text: bytes
    modified: bool
    leaked: int
    result: Any
    payload: bytes
    requests: int


class BitmapAction(NamedTuple):
    """kind: add, remove, ... granularity: of an addition, bytes. source: of a merge, from disk 0 or 1."""

    kind: str
    granularity: int = 0
    source: bytes = b""
    disk: int = 0


class BrokenRuleError(AssertionError):
    """The guest asked for what abi/doorbell.h forbids, or for more than any operation needs."""


class Guest:
    """The library and its disks. After load() each run works on what the last one left."""

    def __init__(self, library: Path) -> None:
        self.ffi = cffi.FFI()
        self.ffi.cdef(declarations())
        self.lib = self.ffi.dlopen(str(library))
        self.host = self.lib.host_open()
        self.disk = self.host.disks[0]
        self.refusals = self._names("enum refusal", "REFUSAL_")
        self.tables = self._names("enum table", "TABLE_")
        self.operations = self._names("enum doorbell_operation", "DOORBELL_")

    def _names(self, enum: str, prefix: str) -> dict[int, str]:
        elements: Mapping[int, str] = self.ffi.typeof(enum).elements
        return {number: name.removeprefix(prefix) for number, name in elements.items()}

    # The disk

    def load(self, path: str | Path) -> None:
        """Takes an image into memory; holes of the file cost nothing."""
        self.lib.host_clear()
        descriptor = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            self.disk.length = size
            position = 0
            while position < size:
                try:
                    start = os.lseek(descriptor, position, os.SEEK_DATA)
                except OSError as error:
                    if error.errno == errno.ENXIO:
                        break
                    raise
                position = os.lseek(descriptor, start, os.SEEK_HOLE)
                self.lib.host_load(os.pread(descriptor, position - start, start), start, position - start)
        finally:
            os.close(descriptor)

    def rest(self) -> None:
        """Holds no image and no memory till the next load()."""
        self.lib.host_rest()

    def load_bytes(self, image: bytes) -> None:
        self.lib.host_clear()
        self.disk.length = len(image)
        self.lib.host_load(image, 0, len(image))

    def load_other(self, image: bytes) -> None:
        """Disk 1, which is only read: a source of merges. Till the next load(); b"": there is none."""
        self._other = self.ffi.from_buffer(image)
        other = self.host.disks[1]
        other.bytes = self.ffi.cast("uint8_t *", self._other) if image else self.ffi.NULL
        other.length = other.limit = len(image)

    def image(self) -> bytes:
        """The whole disk as it is now."""
        return bytes(self.ffi.buffer(self.disk.bytes, self.disk.length))

    def store(self, path: str | Path) -> None:
        Path(path).write_bytes(self.ffi.buffer(self.disk.bytes, self.disk.length))

    def fail(self, index: int, with_errno: int = errno.EIO, operation: str = "") -> None:
        """The request with this index (of those with this operation) fails; till the next load()."""
        kinds = {name: number for number, name in self.operations.items()}
        self.host.fail_at = index
        self.host.fail_for = kinds[operation] if operation else 0
        self.host.fail_with = -with_errno

    # Runs

    def call(self, operation: str, **fields: Any) -> Answer:
        """Runs an operation. fields: those of its call struct; bytes fill arrays, a dict fills a struct within."""
        call = self.ffi.cast(f"struct call_{operation} *", self.host.call)
        self.ffi.buffer(self.host.call)[:] = bytes(len(self.host.call))
        call.header.abi_version = self.lib.ABI_VERSION
        call.header.operation = getattr(self.lib, f"CALL_{operation.upper()}")
        call.header.disk_count = 2 if self.host.disks[1].bytes else 1
        self._fill(call, fields)
        return self._outcome(self.lib.host_run(), operation)

    def _fill(self, target: Any, fields: Mapping[str, Any]) -> None:
        for name, value in fields.items():
            if isinstance(value, dict):
                self._fill(getattr(target, name), value)
            elif isinstance(value, list):
                for i, one in enumerate(value):
                    self._fill(getattr(target, name)[i], one)
            elif isinstance(value, bytes):
                self.ffi.buffer(getattr(target, name))[: len(value)] = value
            else:
                setattr(target, name, value)

    def verify(self) -> Answer:
        """The verification that comes before every change."""
        return self._outcome(self.lib.host_verify(), "snapshot_create")

    def probe(self, name: str, *arguments: Any) -> Answer:
        """Calls a function of probes.h. The operation in the answer means nothing."""
        return self._outcome(getattr(self.lib, f"probe_{name}")(*arguments), "snapshot_create")

    def _outcome(self, end: int, operation: str) -> Answer:
        if end != self.lib.HOST_FINISHED:
            raise BrokenRuleError(f"{operation}: {'endless' if end == self.lib.HOST_ENDLESS else 'a rule is broken'}")
        result = self.ffi.new(f"struct result_{operation} *")
        self.ffi.memmove(result, self.host.result, self.ffi.sizeof(result[0]))
        header = result.header
        payload = b""
        if self.host.payload_length:
            payload = bytes(self.ffi.buffer(self.host.payload, self.host.payload_length))
        return Answer(
            refusal=self.refusals[header.code] if header.code else "",
            arguments=tuple(header.arguments),
            text=bytes(self.ffi.buffer(header.text)[: header.text_length]),
            modified=header.modified != 0,
            leaked=header.leaked_clusters,
            result=result,
            payload=payload,
            requests=self.host.requests,
        )

    def create(self, name: bytes, date: tuple[int, int] = DATE) -> Answer:
        return self.call(
            "snapshot_create", name=name, name_length=len(name), date_seconds=date[0], date_nanoseconds=date[1]
        )

    def apply(self, text: bytes, resize: bool = True) -> Answer:
        selector = {"kind": self.lib.SELECT_BY_ID_OR_NAME, "name": text, "name_length": len(text)}
        return self.call("snapshot_apply", snapshot=selector, resize_allowed=resize)

    def delete(self, name: bytes) -> Answer:
        selector = {"kind": self.lib.SELECT_BY_NAME, "name": name, "name_length": len(name)}
        return self.call("snapshot_delete", snapshot=selector)

    def compare(self, text: bytes) -> Answer:
        selector = {"kind": self.lib.SELECT_BY_ID_OR_NAME, "name": text, "name_length": len(text)}
        return self.call("snapshot_compare", snapshot=selector)

    def change_bitmap(self, name: bytes, *actions: BitmapAction, dry_run: bool = False, counts: bool = True) -> Answer:
        """A list of actions on one bitmap; all bits are counted."""
        text, rows = b"", []
        for kind, granularity, source, disk in actions:
            number = getattr(self.lib, f"BITMAP_{kind.upper()}")
            place = {"source_disk": disk, "source_at": len(text), "source_length": len(source)}
            rows.append({"kind": number, "granularity": granularity, **place})
            text += source
        fields = {"name": name, "name_length": len(name), "dry_run": dry_run, "counts": counts}
        return self.call("bitmap_change", **fields, action_count=len(rows), actions=rows, text=text)

    def bitmaps(self, extents_of: bytes = b"", limit: int = 0, start: int = 0) -> Answer:
        """All bitmaps, counted, and at most `limit` dirty ranges of one."""
        fields = {"name": extents_of, "name_length": len(extents_of), "extents_limit": limit, "extents_start": start}
        return self.call("bitmap_list", counts=1, **fields)

    def listing(self) -> list[tuple[bytes, bytes]]:
        """The snapshots as (id, name)."""
        answer = self.call("snapshot_list")
        if answer.refusal:
            raise ValueError(answer.refusal)
        return records(answer.payload, answer.result.snapshot_count)

    def log(self) -> list[Request]:
        """What came over the doorbell since load()."""
        entries = self.host.log[0 : self.host.logged]
        return [Request(self.operations[e.operation], e.batch, e.offset, e.length) for e in entries]


class Record(NamedTuple):
    """A bitmap in a payload; counts are None where nothing was counted."""

    name: bytes
    granularity: int
    flags: int
    dirty_bytes: int | None
    dirty_count: int | None


def bitmap_records(payload: bytes, count: int) -> tuple[list[Record], int]:
    """The bitmaps at the start of a payload, and where they end."""
    found, at = [], 0
    for _unused in range(count):
        covered, bits, granularity, flags, length = struct.unpack_from("<QQIII", payload, at)
        numbers = (None if number == NOT_COUNTED else number for number in (covered, bits))
        found.append(Record(payload[at + 32 : at + 32 + length], granularity, flags, *numbers))
        at += 32 + length + 7 & ~7
    return found, at


def records(payload: bytes, count: int) -> list[tuple[bytes, bytes]]:
    """(id, name) of each snapshot in a payload. Raises ValueError when it does not come out even."""
    found, at = [], 0
    for _unused in range(count):
        id_length, name_length = struct.unpack_from("<HH", payload, at + 40)
        middle = at + 48 + id_length
        found.append((payload[at + 48 : middle], payload[middle : middle + name_length]))
        at = middle + name_length + 7 & ~7
    if at != len(payload):
        raise ValueError(f"{len(payload)} bytes for {count} records")
    return found
