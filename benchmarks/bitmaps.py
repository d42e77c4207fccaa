# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bitmap operations on an image whose L2 tables are all there, beside qemu-img; and a file that claims many."""

from __future__ import annotations

import functools
import os
import pathlib
import resource
import struct
import subprocess
import typing as t

from benchmarks import large_image, measure
from sandbox import errors, operations
from sandbox.operations import Action

GRANULARITY = 512
NEW = b"new"
PATTERNS = {b"even": b"\x55", b"odd": b"\xaa"}  # the bits of two bitmaps in which no cluster is empty
SPARSE = b"sparse"
CLAIMED = 10_000
QEMU_SECONDS = 30  # after which qemu-img need not go on with the image that claims so many
QEMU_BYTES = 4 << 30  # of address space that it may have there

_OFFSET = 0x00FFFFFFFFFFFE00
_ENTRY = struct.Struct(">QIIBBHI")  # of the bitmap directory


class Step(t.NamedTuple):
    """One list of actions on the bitmap `new`: words of qemu-img's command line, and the same for a Python call."""

    title: str
    words: tuple[str, ...]
    actions: tuple[Action, ...]


STEPS = (
    Step("add", ("--add", "-g", str(GRANULARITY)), (Action.add(GRANULARITY),)),
    Step("merge a sparse bitmap", ("--merge", "sparse"), (Action.merge(SPARSE),)),
    Step("merge a full bitmap", ("--merge", "even"), (Action.merge(b"even"),)),
    Step("merge two full bitmaps", ("--merge", "odd"), (Action.merge(b"odd"),)),
    Step("merge, all set already", ("--merge", "even"), (Action.merge(b"even"),)),
    Step("disable", ("--disable",), (Action.disable(),)),
    Step("enable", ("--enable",), (Action.enable(),)),
    Step("clear", ("--clear",), (Action.clear(),)),
    Step("remove", ("--remove",), (Action.remove(),)),
)


class Row(t.NamedTuple):
    """One step. times, memory: by contender. report: of the Python call."""

    title: str
    times: dict[str, measure.Spread]
    report: t.Any
    memory: dict[str, measure.Memory]


class Claims(t.NamedTuple):
    """The image that claims much. theirs: how qemu-img info ended. size: of the file, in bytes."""

    size: int
    times: dict[str, measure.Spread]
    memory: measure.Memory
    theirs: str


def make_image(path: pathlib.Path, size: str) -> None:
    """Every cluster of the disk is mapped; two bitmaps of 512 bytes granularity have bits in every cluster of theirs,
    a third one in a few. None of them records."""
    large_image.make_image(path, size)
    for name in (*PATTERNS, SPARSE):
        measure.run(["qemu-img", "bitmap", "--add", "-g", str(GRANULARITY), "--disable", str(path), name.decode()])
    with open(path, "r+b") as image:
        for name, (table, entries) in _tables(image).items():
            if name in PATTERNS:
                os.pwrite(image.fileno(), struct.pack(">Q", 1) * entries, table)  # "all ones", without a cluster
            else:
                os.pwrite(image.fileno(), struct.pack(">Q", 1), table)
    # qemu-img stores no such entries: it makes clusters of them.
    measure.run(["qemu-img", "bitmap", "--disable", str(path), SPARSE.decode()])
    with open(path, "r+b") as image:
        cluster_size = 1 << struct.unpack(">I", os.pread(image.fileno(), 4, 20))[0]
        for name, (table, entries) in _tables(image).items():
            for offset in struct.unpack(f">{entries}Q", os.pread(image.fileno(), 8 * entries, table)):
                if offset & _OFFSET:
                    _fill(image, offset & _OFFSET, cluster_size, PATTERNS.get(name, bytes(511) + b"\1"))
        os.fsync(image.fileno())


def _fill(image: t.BinaryIO, offset: int, length: int, pattern: bytes) -> None:
    os.pwrite(image.fileno(), pattern * (length // len(pattern)), offset)


def _tables(image: t.BinaryIO) -> dict[bytes, tuple[int, int]]:
    """Offset and entries of the table of each bitmap, of an image that qemu-img just wrote. Raises ValueError."""
    descriptor = image.fileno()
    place = struct.unpack(">I", os.pread(descriptor, 4, 100))[0]
    while True:
        kind, length = struct.unpack(">II", os.pread(descriptor, 8, place))
        if kind == 0:
            raise ValueError("the image has no bitmaps")
        if kind == 0x23852875:
            break
        place += 8 + (length + 7 & ~7)
    count, _reserved, _size, position = struct.unpack(">IIQQ", os.pread(descriptor, 24, place + 8))
    found = {}
    for _index in range(count):
        table, entries, _flags, _type, _bits, name_length, _extra = _ENTRY.unpack(
            os.pread(descriptor, _ENTRY.size, position)
        )
        found[os.pread(descriptor, name_length, position + _ENTRY.size)] = (table, entries)
        position += _ENTRY.size + name_length + 7 & ~7
    return found


def run(directory: pathlib.Path, size: str, repeats: int) -> list[Row]:
    """Measures on an image of `size` in `directory`, which is checked at the end and removed."""
    image = directory / "bitmaps.qcow2"
    path = str(image)
    try:
        make_image(image, size)
        times, reports = _times(path, repeats)
        memory = {
            name: {step.title: measure.peak_memory(_command(program, path, step)) for step in STEPS}
            for name, program in (("qemu-img", "qemu-img"), ("airlock", large_image.AIRLOCK))
        }
        measure.run(["qemu-img", "check", "-q", path])
    finally:
        image.unlink(missing_ok=True)
    return [
        Row(
            step.title,
            {contender: times[contender, step.title] for contender in ("qemu-img", "airlock", "call")},
            reports[step.title],
            {contender: peaks[step.title] for contender, peaks in memory.items()},
        )
        for step in STEPS
    ]


def _times(path: str, repeats: int) -> tuple[dict[tuple[str, str], measure.Spread], dict[str, t.Any]]:
    """Each contender in turn goes through all steps: the last one leaves the image as the first one finds it."""
    reports: dict[str, t.Any] = {}

    def call(step: Step) -> None:
        with operations.Image.open(path, writable=True) as image:
            reports[step.title] = operations.change_bitmap(image, NEW, step.actions, counts=False).report

    contenders: dict[str, t.Callable[[Step], object]] = {
        "qemu-img": lambda step: measure.run(_command("qemu-img", path, step)),
        "airlock": lambda step: measure.run(_command(large_image.AIRLOCK, path, step)),
        "call": call,
    }
    seconds: dict[tuple[str, str], list[float]] = {}

    def chain(contender: str) -> float:
        for step in STEPS:
            measure.write_back()
            taken = measure.seconds_of(contenders[contender], step)
            seconds.setdefault((contender, step.title), []).append(taken)
        return 0.0

    measure.take_turns({name: functools.partial(chain, name) for name in contenders}, repeats)
    return {key: measure.Spread.of(values) for key, values in seconds.items()}, reports


def _command(program: str, path: str, step: Step) -> list[str]:
    return [program, "bitmap", *step.words, path, NEW.decode()]


def equal(directory: pathlib.Path, size: str) -> str:
    """All steps by both on copies of one image of `size`: a line that says that the dirty ranges are the same.

    RuntimeError names the step after which they are not.
    """
    theirs, ours = directory / "theirs.qcow2", directory / "ours.qcow2"
    try:
        make_image(theirs, size)
        measure.run(["cp", "--sparse=auto", str(theirs), str(ours)])
        for step in STEPS:
            for program, image in (("qemu-img", theirs), (large_image.AIRLOCK, ours)):
                measure.run(_command(program, str(image), step))
            measure.run(["qemu-img", "check", "-q", str(ours)])
            if _facts(theirs) != _facts(ours):
                raise RuntimeError(f"after {step.title!r} the bitmaps are not what qemu-img makes of them")
    finally:
        theirs.unlink(missing_ok=True)
        ours.unlink(missing_ok=True)
    return (
        f"On an image of {size}, after each of these: qemu-img check clean, the bitmaps' flags, granularity and counts "
        "of dirty bits those of qemu-img."
    )


def _facts(path: pathlib.Path) -> object:
    with operations.Image.open(str(path)) as image:
        return operations.list_bitmaps(image).bitmaps


def claiming(directory: pathlib.Path, repeats: int) -> Claims:
    """A small file with 10,000 bitmaps that no memory holds: how long until it is listed, or refused."""
    image = directory / "claims.qcow2"
    path = str(image)
    try:
        measure.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64G"])
        measure.run(["qemu-img", "bitmap", "--add", path, "one"])
        claim(image)
        command = [large_image.AIRLOCK, "bitmap", "--list", path]
        work: dict[str, t.Callable[[], object]] = {
            "Python call": functools.partial(listed, path),
            "airlock bitmap --list": functools.partial(_ended, command),
        }
        turns = {name: functools.partial(measure.seconds_of, job) for name, job in work.items()}
        times = measure.take_turns(turns, repeats)
        return Claims(image.stat().st_size, times, measure.peak_memory(command, may_fail=True), _theirs(path))
    finally:
        image.unlink(missing_ok=True)


def claim(image: pathlib.Path) -> None:
    """Appends a directory in which 10,000 bitmaps have one table, of which every entry says that all is dirty."""
    with open(image, "r+b") as file:
        table = -(-image.stat().st_size // 65536) * 65536
        entries = (64 << 30) // GRANULARITY // 8 // 65536
        names = (b"%08d" % number for number in range(CLAIMED))
        directory = b"".join(_ENTRY.pack(table, entries, 2, 1, 9, len(name), 0) + name for name in names)
        file.seek(table)
        file.write((struct.pack(">Q", 1) * entries).ljust(65536, b"\0") + directory)
        place = struct.unpack(">I", os.pread(file.fileno(), 4, 100))[0]
        while struct.unpack(">I", os.pread(file.fileno(), 4, place))[0] != 0x23852875:
            place += 8 + (struct.unpack(">I", os.pread(file.fileno(), 4, place + 4))[0] + 7 & ~7)
        os.pwrite(file.fileno(), struct.pack(">IIQQ", CLAIMED, 0, len(directory), table + 65536), place + 8)


def listed(path: str) -> None:
    """Either answer will do."""
    with operations.Image.open(path) as image:
        try:
            operations.list_bitmaps(image)
        except errors.AirlockError:
            return


def _ended(command: list[str]) -> None:
    subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)


def _theirs(path: str) -> str:
    """What becomes of qemu-img info, which has to load all of it."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (QEMU_BYTES, QEMU_BYTES))

    try:
        done = subprocess.run(
            ["qemu-img", "info", path], check=False, capture_output=True, timeout=QEMU_SECONDS, preexec_fn=limit
        )
    except subprocess.TimeoutExpired:
        return f"had not ended after {QEMU_SECONDS} seconds"
    return (
        "listed it" if done.returncode == 0 else f"ended with {done.returncode} under a limit of {QEMU_BYTES >> 30} GiB"
    )
