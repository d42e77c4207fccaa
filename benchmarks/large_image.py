# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Create, apply and delete on an image whose L2 tables are all there: qemu-img, build/airlock and a Python call."""

from __future__ import annotations

import errno
import functools
import os
import pathlib
import shutil
import typing as t
from collections.abc import Callable

from benchmarks import floor, measure
from sandbox import operations

AIRLOCK = os.path.abspath("build/airlock")
NAME = b"before"
DATE = (1_700_000_000, 0)
OPERATIONS = {"create": "-c", "apply": "-a", "delete": "-d"}


class Row(t.NamedTuple):
    """One operation. times: by contender. report: of the Python call. memory: by contender."""

    operation: str
    times: dict[str, measure.Spread]
    report: t.Any
    memory: dict[str, measure.Memory]


class Result(t.NamedTuple):
    """metadata: of the fresh image. base: seconds to read and rewrite it plainly."""

    metadata: floor.Metadata
    base: measure.Spread
    rows: list[Row]


def make_image(path: pathlib.Path, size: str) -> None:
    """A sparse file in which every cluster of the disk is mapped. RuntimeError where the disk has no room for it."""
    free = shutil.disk_usage(path.parent).free
    if free < 1 << 30:
        raise RuntimeError(f"{path.parent} has {free >> 20} MiB free; an image of {size} takes 1 GiB for its tables")
    measure.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", str(path), size])


def run(directory: pathlib.Path, size: str, repeats: int) -> Result:
    """Measures on an image of `size` in `directory`, which is checked at the end and removed."""
    image = directory / "large.qcow2"
    try:
        make_image(image, size)
        metadata = floor.metadata_of(str(image))
        path = str(image)
        base = measure.take_turns(
            {"floor": functools.partial(measure.seconds_of, floor.rewrite, path, metadata)}, repeats
        )["floor"]
        times, reports = _times(path, repeats)
        memory = {name: _memory(path, command) for name, command in (("qemu-img", "qemu-img"), ("airlock", AIRLOCK))}
        measure.run(["qemu-img", "check", "-q", path])
    finally:
        image.unlink(missing_ok=True)
    rows = [
        Row(
            operation,
            {contender: times[contender, operation] for contender in ("qemu-img", "airlock", "call")},
            reports[operation],
            {contender: memory[contender][operation] for contender in memory},
        )
        for operation in OPERATIONS
    ]
    return Result(metadata, base, rows)


def _times(path: str, repeats: int) -> tuple[dict[tuple[str, str], measure.Spread], dict[str, t.Any]]:
    """Each contender in turn creates, applies and deletes a snapshot, so each starts from the same image.

    Between create and apply a guest writes a cluster: there is something to go back from.
    """
    reports: dict[str, t.Any] = {}

    def call(operation: str) -> None:
        reports[operation] = _call(path, operation)

    steps: dict[str, Callable[[str], object]] = {
        "qemu-img": functools.partial(_command, "qemu-img", path),
        "airlock": functools.partial(_command, AIRLOCK, path),
        "call": call,
    }
    seconds: dict[tuple[str, str], list[float]] = {}

    def chain(contender: str) -> float:
        for operation in OPERATIONS:
            measure.write_back()
            taken = measure.seconds_of(steps[contender], operation)
            seconds.setdefault((contender, operation), []).append(taken)
            if operation == "create":
                _guest_write(path)
        return 0.0

    measure.take_turns({name: functools.partial(chain, name) for name in steps}, repeats)
    return {key: measure.Spread.of(values) for key, values in seconds.items()}, reports


def _memory(path: str, program: str) -> dict[str, measure.Memory]:
    peaks = {}
    for operation, flag in OPERATIONS.items():
        peaks[operation] = measure.peak_memory([program, "snapshot", flag, NAME.decode(), path])
        if operation == "create":
            _guest_write(path)
    return peaks


def _command(program: str, path: str, operation: str) -> None:
    measure.run([program, "snapshot", OPERATIONS[operation], NAME.decode(), path])


def _call(path: str, operation: str) -> t.Any:
    """The same from Python; the answer is the report of its guest."""
    with operations.Image.open(path, writable=True) as image:
        if operation == "create":
            return operations.create_snapshot(image, NAME, DATE).report
        if operation == "apply":
            return operations.apply_snapshot(image, operations.Selector.by_id_or_name(NAME), False).report
        return operations.delete_snapshot(image, operations.Selector.by_name(NAME)).report


def _guest_write(path: str) -> None:
    measure.run(["qemu-io", "-f", "qcow2", "-c", "write -q 0 64k", path])


def identical(directory: pathlib.Path, size: str) -> str:
    """The same three operations by both on copies of one image of `size`: a line that says how the files compare.

    Create is compared under one frozen date; RuntimeError names the operation after which the two files differ.
    """
    theirs, ours = directory / "theirs.qcow2", directory / "ours.qcow2"
    frozen = {"SOURCE_DATE_EPOCH": str(DATE[0]), "TZ": "UTC"}
    clock = ["faketime", "-f", "2023-11-14 22:13:20"]  # DATE
    try:
        make_image(theirs, size)
        measure.run(["cp", "--sparse=auto", str(theirs), str(ours)])
        for operation, flag in OPERATIONS.items():
            for program, image, prefix in (("qemu-img", theirs, clock), (AIRLOCK, ours, [])):
                measure.run([*prefix, program, "snapshot", flag, NAME.decode(), str(image)], {**os.environ, **frozen})
            measure.run(["qemu-img", "check", "-q", str(ours)])
            if not same_bytes(theirs, ours):
                raise RuntimeError(f"after {operation} the image is not what qemu-img makes of it")
            if operation == "create":
                _guest_write(str(theirs))
                _guest_write(str(ours))
    finally:
        theirs.unlink(missing_ok=True)
        ours.unlink(missing_ok=True)
    return (
        f"On an image of {size}, after each of create, apply and delete: qemu-img check clean, "
        "file identical to qemu-img's to the byte."
    )


def same_bytes(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Whether two files hold the same bytes; what is a hole in both is not read."""
    with open(first, "rb", buffering=0) as one, open(second, "rb", buffering=0) as other:
        size = os.fstat(one.fileno()).st_size
        if os.fstat(other.fileno()).st_size != size:
            return False
        offset = 0
        while offset < size:
            offset = min(_next_data(file.fileno(), offset, size) for file in (one, other))
            length = min(1 << 20, size - offset)
            if os.pread(one.fileno(), length, offset) != os.pread(other.fileno(), length, offset):
                return False
            offset += length
    return True


def _next_data(descriptor: int, offset: int, size: int) -> int:
    """The first offset from `offset` on that is no hole; `size` where only holes follow."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size
