# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How cost grows with the disk: `make bench-growth` prints a table for each size and draws docs/growth.svg.

Every cluster of the disks is mapped. Ours are Python calls, qemu-img's are whole processes, and take turns with ours up
to QEMU_UP_TO. Medians.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import typing as t
from collections.abc import Callable

from benchmarks import floor, measure
from benchmarks.growth_chart import Point, chart
from benchmarks.tables import table
from sandbox import operations
from sandbox.images.chain import open_chain
from sandbox.images.commits import commit, open_base
from sandbox.operations import Action, Image, Report, Selector

SIZES = (16 << 30, 128 << 30, 1 << 40, 4 << 40, 12 << 40)  # bytes; a file of ext4 ends at 16 TiB
SHORT = (1 << 30, 4 << 30)
QEMU_UP_TO = 1 << 40
FEWER_FROM = 1 << 40  # three rounds, where there are five with smaller disks
CLUSTER = 1 << 16
_GIB, _MIB = 1 << 30, 1 << 20
_NAME, _DATE = b"before", (1_700_000_000, 0)
_OLD, _NEW = b"old", b"new"
_WRITTEN_EACH = 4 * _GIB  # one cluster of an overlay in so many bytes of disk
_MARKED_EACH = _GIB  # one bit of the bitmap that is merged

SNAPSHOTS = ("list", "create", "apply", "delete")
BITMAPS = ("bitmap add", "bitmap merge", "bitmap remove")
COMMIT = ("commit",)


class Row(t.NamedTuple):
    """One operation. theirs: None where qemu-img was not run. report: of the last of our calls."""

    ours: measure.Spread
    theirs: measure.Spread | None
    report: Report


class Result(t.NamedTuple):
    """size: of the disk; metadata: of its tables; both in bytes. base: seconds of the floor. rows: by operation."""

    size: int
    metadata: int
    base: measure.Spread
    rows: dict[str, Row]


def name_of(size: int) -> str:
    """16 GiB, 4 TiB."""
    return f"{size >> 40} TiB" if size >= 1 << 40 else f"{size >> 30} GiB"


def room_for(size: int) -> int:
    """Bytes that measuring takes on the storage: the tables twice, two overlays, what is written to the disk."""
    metadata = size // CLUSTER * 10
    overlay = size // _WRITTEN_EACH * 2 * CLUSTER
    return 2 * metadata + 3 * overlay + size // _MARKED_EACH * 4096 + 64 * _MIB


def check_room(directory: pathlib.Path, sizes: t.Sequence[int]) -> str:
    """How much room it takes, as a sentence. Raises RuntimeError where it is not there."""
    needed, free = room_for(max(sizes)), shutil.disk_usage(directory).free
    told = f"It takes {needed / _GIB:.1f} GiB in {directory}, where {free / _GIB:.1f} GiB are free."
    if free < needed:
        raise RuntimeError(f"{told} Name another directory (--directory), or fewer sizes (--sizes).")
    return told


def run(directory: pathlib.Path, size: int, repeats: int, with_qemu: bool) -> Result:
    """Measures on a disk of `size` in files below `directory`, which are checked at the end and removed."""
    with tempfile.TemporaryDirectory(prefix="growth-", dir=directory) as name:
        image = os.path.join(name, "disk.qcow2")
        _create(image, size, "preallocation=metadata")
        metadata = floor.metadata_of(image)
        work = functools.partial(measure.seconds_of, floor.rewrite, image, metadata)
        base = measure.take_turns({"floor": lambda: _settled(work)}, repeats)["floor"]
        rounds = _Rounds(image, repeats, with_qemu)
        rounds.take(SNAPSHOTS)
        _mark(image, size)
        rounds.take(BITMAPS)
        _change(image, _OLD, Action.remove())
        _overlay(image, size)
        rounds.take(COMMIT)
        measure.run(["qemu-img", "check", "-q", image])
    return Result(size, metadata.size, base, rounds.rows)


def once_by_qemu(directory: pathlib.Path, size: int) -> tuple[float, float]:
    """Seconds of creating a snapshot by qemu-img and by us, once each, on one image, one behind the other."""
    with tempfile.TemporaryDirectory(prefix="growth-", dir=directory) as name:
        image = os.path.join(name, "disk.qcow2")
        _create(image, size, "preallocation=metadata")
        theirs = _settled(lambda: measure.seconds_of(_by_qemu, image, "create"))
        _by_us(image, "delete")
        ours = _settled(lambda: measure.seconds_of(_by_us, image, "create"))
        return theirs, ours


class _Rounds:
    """Contenders that take turns on one image, each of which leaves it as it was."""

    def __init__(self, image: str, repeats: int, with_qemu: bool) -> None:
        self.rows: dict[str, Row] = {}
        self._image = image
        self._repeats = repeats
        self._contenders: dict[str, Callable[[str, str], object]] = {"call": self._report}
        if with_qemu:
            self._contenders["qemu-img"] = _by_qemu
        self._reports: dict[str, Report] = {}
        self._seconds: dict[tuple[str, str], list[float]] = {}

    def take(self, steps: t.Sequence[str]) -> None:
        """All steps, in their order, by each contender in turn."""
        turns = {name: functools.partial(self._turn, name, steps) for name in self._contenders}
        measure.take_turns(turns, self._repeats)
        for step in steps:
            spreads = {name: measure.Spread.of(self._seconds[name, step]) for name in self._contenders}
            self.rows[step] = Row(spreads["call"], spreads.get("qemu-img"), self._reports[step])

    def _turn(self, name: str, steps: t.Sequence[str]) -> float:
        work = self._contenders[name]
        for step in steps:
            if step == "commit":
                shutil.copyfile(_beside(self._image, "master"), _beside(self._image, "overlay"))
            taken = _settled(lambda step=step: measure.seconds_of(work, self._image, step))  # type: ignore[misc]
            self._seconds.setdefault((name, step), []).append(taken)
            if step == "create":  # there is something to go back from
                measure.run(["qemu-io", "-f", "qcow2", "-c", "write -q 0 64k", self._image])
        return 0.0

    def _report(self, image: str, step: str) -> None:
        self._reports[step] = _by_us(image, step)


def _settled(work: Callable[[], float]) -> float:
    measure.write_back()
    return work()


def _by_us(path: str, step: str) -> Report:
    if step == "commit":
        with Image.open(_beside(path, "overlay"), writable=True) as top, open_chain(top) as chain:
            open_base(chain, 1)
            return commit(chain, 1, empties=True).report
    if step.startswith("bitmap"):
        action = {"add": Action.add(), "merge": Action.merge(_OLD), "remove": Action.remove()}[step.split()[1]]
        return _change(path, _NEW, action)
    with Image.open(path, writable=step != "list") as image:
        if step == "list":
            return operations.list_snapshots(image).report
        if step == "create":
            return operations.create_snapshot(image, _NAME, _DATE).report
        if step == "apply":
            return operations.apply_snapshot(image, Selector.by_name(_NAME), False).report
        return operations.delete_snapshot(image, Selector.by_name(_NAME)).report


def _change(path: str, name: bytes, action: Action) -> Report:
    with Image.open(path, writable=True) as image:
        return operations.change_bitmap(image, name, [action], counts=False).report


def _by_qemu(path: str, step: str) -> None:
    words = {
        "list": ["snapshot", "-l", path],
        "create": ["snapshot", "-c", _NAME.decode(), path],
        "apply": ["snapshot", "-a", _NAME.decode(), path],
        "delete": ["snapshot", "-d", _NAME.decode(), path],
        "bitmap add": ["bitmap", "--add", path, _NEW.decode()],
        "bitmap merge": ["bitmap", "--merge", _OLD.decode(), path, _NEW.decode()],
        "bitmap remove": ["bitmap", "--remove", path, _NEW.decode()],
        "commit": ["commit", "-q", "-f", "qcow2", _beside(path, "overlay")],
    }[step]
    measure.run(["qemu-img", *words])


def _create(path: str, size: int, *options: str) -> None:
    more = ["-o", ",".join(options)] if options else []
    measure.run(["qemu-img", "create", "-q", "-f", "qcow2", *more, path, str(size)])


def _beside(image: str, name: str) -> str:
    return os.path.join(os.path.dirname(image), name)


def _mark(image: str, size: int) -> None:
    """A bitmap with bits all over the disk."""
    _change(image, _OLD, Action.add())
    _write(image, [f"write -q {offset} 512" for offset in range(0, size, _MARKED_EACH)])
    _change(image, _OLD, Action.disable())


def _overlay(image: str, size: int) -> None:
    """On top of the image, with clusters all over the disk."""
    path = _beside(image, "master")
    backing = ["-b", os.path.basename(image), "-F", "qcow2"]
    measure.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, path])
    _write(path, [f"write -q -P 7 {offset} 64k" for offset in range(_GIB, size, _WRITTEN_EACH)] or ["write -q 0 64k"])


def _write(path: str, lines: list[str]) -> None:
    subprocess.run(
        ["qemu-io", "-f", "qcow2", path], input="\n".join(lines), text=True, check=True, stdout=subprocess.DEVNULL
    )


# ---- what is printed -------------------------------------------------------------------------------------------------


def show(result: Result) -> None:
    base = result.base
    print(
        f"\n## {name_of(result.size)}, every cluster mapped\n\n{result.metadata / _MIB:.1f} MiB of metadata. The "
        "floor, which reads and rewrites them once in a plain loop: "
        f"{base.median:.3f} s ({base.minimum:.3f} to {base.maximum:.3f}).\n"
    )
    heads = ["seconds, median", "call", "least", "most", "/ floor", "qemu-img", "qemu-img / call"]
    heads += ["read MiB", "written MiB", "exits", "windows", "peak MiB"]
    rows = []
    for step, row in result.rows.items():
        ours, report = row.ours, row.report
        theirs = ["", ""]
        if row.theirs:
            theirs = [f"{row.theirs.median:.3f}", f"{row.theirs.median / ours.median:.1f}"]
        times = [f"{seconds:.3f}" for seconds in (ours.median, ours.minimum, ours.maximum)]
        moved = [f"{moved / _MIB:.1f}" for moved in (report.bytes_read, report.bytes_written)]
        counts = [str(report.exits), str(report.windows), str(report.peak_memory >> 20)]
        rows.append([step, *times, f"{ours.median / base.median:.1f}", *theirs, *moved, *counts])
    print(table(heads, rows), flush=True)


def show_growth(results: t.Sequence[Result]) -> None:
    """From the largest disk that qemu-img had, or else the smallest, to the largest."""
    last = results[-1]
    first = [results[0], *(each for each in results[:-1] if each.size <= QEMU_UP_TO)][-1]
    print(f"\n## From {name_of(first.size)} to {name_of(last.size)}: {last.size / first.size:.1f} times the disk\n")
    rows = []
    for step, row in last.rows.items():
        before, after = first.rows[step], row
        times = after.ours.median / before.ours.median
        read = after.report.bytes_read / max(before.report.bytes_read, 1)
        exits = after.report.exits / max(before.report.exits, 1)
        rows.append([step, f"{times:.1f}", f"{read:.1f}", f"{exits:.1f}"])
    print(table(["times as much", "seconds", "bytes read", "exits"], rows))


def points(results: t.Sequence[Result]) -> dict[str, t.Sequence[Point]]:
    """The lines of the chart: bytes of disk, seconds."""
    lines: dict[str, t.Sequence[Point]] = {
        step: [(each.size, each.rows[step].ours.median) for each in results] for step in results[0].rows
    }
    lines["floor"] = [(each.size, each.base.median) for each in results]
    for step in ("create", "commit"):
        theirs = [(each.size, row.median) for each in results if (row := each.rows[step].theirs)]
        if theirs:
            lines[f"qemu-img {step}"] = theirs
    return lines


def measure_all(directory: pathlib.Path, sizes: t.Sequence[int], repeats: int, drawn: pathlib.Path | None) -> None:
    """Prints all tables, and draws the chart. repeats: 0: what suits the size. Raises RuntimeError without room."""
    print(check_room(directory, sizes), flush=True)
    results = []
    for size in sizes:
        count = repeats or (3 if size >= FEWER_FROM else 5)
        results.append(run(directory, size, count, with_qemu=size <= QEMU_UP_TO))
        show(results[-1])
    show_growth(results)
    if drawn:
        drawn.write_text(chart(points(results), name_of), encoding="utf-8")


def _size(text: str) -> int:
    """Raises ValueError, which argparse words."""
    return int(text[:-1]) << {"G": 30, "T": 40}[text[-1:]] if text[-1:] in "GT" else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=_size, nargs="+", default=SIZES, help="of disks, such as 16G 1T, ascending")
    parser.add_argument("--repeats", type=int, default=0, help="rounds (default 5, and 3 from 1 TiB on)")
    parser.add_argument("--directory", type=pathlib.Path, default=None, help="for the images (default build/)")
    parser.add_argument("--chart", type=pathlib.Path, help="file to draw")
    parser.add_argument("--create-once", type=_size, metavar="SIZE", help="only create, by qemu-img too, once each")
    arguments = parser.parse_args()
    directory = arguments.directory or pathlib.Path("build")
    directory.mkdir(exist_ok=True)
    directory = directory.resolve()
    try:
        if arguments.create_once:
            print(check_room(directory, [arguments.create_once]), flush=True)
            theirs, ours = once_by_qemu(directory, arguments.create_once)
            print(
                f"create on {name_of(arguments.create_once)}, once each: qemu-img {theirs:.2f} s, Python call "
                f"{ours:.2f} s, {theirs / ours:.1f} times"
            )
        else:
            measure_all(directory, sorted(arguments.sizes), arguments.repeats, arguments.chart)
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
