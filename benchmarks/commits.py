# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An overlay committed into its base: much data in one piece, in many places, through many layers, and hardly any.

Both programs begin with copies of the same files, and with nothing left to be written back.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import random
import subprocess
import typing as t

from benchmarks import measure
from benchmarks.large_image import AIRLOCK
from sandbox import operations
from sandbox.images.chain import open_chain
from sandbox.images.commits import commit, open_base

CLUSTER = 64 << 10
PROGRAMS = {"qemu-img": "qemu-img", "airlock": AIRLOCK}


class Case(t.NamedTuple):
    """size: of the disk, bytes. writes: for each overlay, the lowest first, the (offset, length) that are written."""

    title: str
    size: int
    writes: list[list[tuple[int, int]]]


class Row(t.NamedTuple):
    title: str
    times: dict[str, measure.Spread]
    memory: dict[str, measure.Memory]


def dense(length: int) -> Case:
    step = 16 << 20  # qemu-io writes no 2 GiB at once
    return Case(f"{length >> 20} MiB in one piece", length, [[(at, step) for at in range(0, length, step)]])


def scattered(size: int, count: int) -> Case:
    """Clusters anywhere on the disk."""
    places = random.Random(1).sample(range(size // CLUSTER), count)
    writes = [(place * CLUSTER, CLUSTER) for place in sorted(places)]
    return Case(f"{count:,} clusters scattered over {size >> 30} GiB", size, [writes])


def layers(count: int, size: int) -> Case:
    """A quarter of the disk in each of `count` overlays, in pieces of 1 MiB."""
    pieces = range(size >> 20)
    chosen = (sorted(random.Random(layer).sample(pieces, len(pieces) // 4)) for layer in range(count))
    return Case(
        f"a chain of {count} overlays, {size >> 20} MiB",
        size,
        [[(piece << 20, 1 << 20) for piece in pieces] for pieces in chosen],
    )


def small() -> Case:
    return Case("one cluster", 1 << 30, [[(0, CLUSTER)]])


@contextlib.contextmanager
def file_system(directory: pathlib.Path, size: int, kind: str) -> t.Iterator[pathlib.Path]:
    """A directory on an ext4 as mkfs makes it, or on an XFS that shares extents, in a file. Wants to be root."""
    make = {"ext4": ["mkfs.ext4", "-q"], "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"]}[kind]
    backing, place = directory / f"{kind}.raw", directory / kind
    place.mkdir()
    with open(backing, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    try:
        measure.run([*make, str(backing)])
        measure.run(["mount", "-o", "loop", str(backing), str(place)])
        try:
            yield place
        finally:
            measure.run(["umount", str(place)])
    finally:
        backing.unlink()
        place.rmdir()


def run(directory: pathlib.Path, case: Case, repeats: int) -> Row:
    """Measures one case; RuntimeError where the two bases do not hold the same at the end."""
    master = directory / "master"
    master.mkdir()
    folders = {name: directory / name for name in (*PROGRAMS, "call")}
    try:
        _make(master, case)
        turns = {name: functools.partial(_turn, name, master, folder, case) for name, folder in folders.items()}
        times = measure.take_turns(turns, repeats)
        theirs, *ours = [str(folder / "base.qcow2") for folder in folders.values()]
        for base in ours:
            measure.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", theirs, base])
            measure.run(["qemu-img", "check", "-q", base])
        memory = {}
        for name in PROGRAMS:
            _copy(master, folders[name])
            memory[name] = measure.peak_memory(_command(name, folders[name], case))
    finally:
        for folder in (master, *folders.values()):
            _remove(folder)
    return Row(case.title, times, memory)


def _make(directory: pathlib.Path, case: Case) -> None:
    below = "base.qcow2"
    measure.run(["qemu-img", "create", "-q", "-f", "qcow2", str(directory / below), str(case.size)])
    for number, writes in enumerate(case.writes):
        path = directory / _layer(number)
        measure.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, str(path)])
        below = path.name
        steps = "".join(
            f"write -q -P {1 + number + offset // CLUSTER % 200} {offset} {length}\n" for offset, length in writes
        )
        subprocess.run(
            ["qemu-io", "-f", "qcow2", "-n", str(path)], input=steps, text=True, check=True, stdout=subprocess.DEVNULL
        )


def _layer(number: int) -> str:
    return f"layer{number}.qcow2"


def _copy(master: pathlib.Path, folder: pathlib.Path) -> None:
    """Blocks of its own, as if it had been written here; and nothing of it is dirty."""
    _remove(folder)
    folder.mkdir()
    for file in master.iterdir():
        measure.run(["cp", "--reflink=never", "--sparse=never", str(file), str(folder)])
    measure.write_back()


def _remove(folder: pathlib.Path) -> None:
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _command(name: str, folder: pathlib.Path, case: Case) -> list[str]:
    """With a base named, both leave the overlays as they are."""
    base = ["-b", str(folder / "base.qcow2")] if len(case.writes) > 1 else []
    return [PROGRAMS[name], "commit", "-q", "-f", "qcow2", *base, str(folder / _layer(len(case.writes) - 1))]


def _turn(name: str, master: pathlib.Path, folder: pathlib.Path, case: Case) -> float:
    _copy(master, folder)
    work = functools.partial(_call, folder, case)
    if name != "call":
        work = functools.partial(measure.run, _command(name, folder, case))
    seconds = measure.seconds_of(work)
    # What this turn leaves in memory would push out what the next one is to find there.
    _forget(folder)
    return seconds


def _forget(folder: pathlib.Path) -> None:
    """Nothing of these files stays in the page cache."""
    measure.write_back()
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _call(folder: pathlib.Path, case: Case) -> None:
    top = str(folder / _layer(len(case.writes) - 1))
    with operations.Image.open(top, writable=True) as image, open_chain(image) as chain:
        base = len(chain.layers) - 1
        open_base(chain, base)
        commit(chain, base, empties=base == 1)
