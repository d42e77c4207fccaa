# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Side by side with qemu-img: `make bench` prints these tables, `make bench-short` the same from a small image.

Whole processes, taking turns on one image, medians. Nothing here passes or fails by time; that the images stay whole is
checked, by qemu-img check and byte by byte against qemu-img's own.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import subprocess
import tempfile
import typing as t

from benchmarks import bitmaps, commits, growth, large_image, measure, small_images
from benchmarks.tables import table

_MIB = 1 << 20


def show_large(size: str, result: large_image.Result) -> None:
    metadata = result.metadata
    print(
        f"\n## An image of {size}, every cluster mapped\n\n"
        f"{len(metadata.l2_tables)} L2 tables and {len(metadata.refcount_blocks)} refcount blocks of "
        f"{metadata.cluster_size >> 10} KiB: {metadata.size / _MIB:.0f} MiB of metadata. The floor, which reads and "
        f"rewrites it once in a plain loop with one fdatasync: {result.base.median:.3f} s "
        f"({result.base.minimum:.3f} to {result.base.maximum:.3f}).\n"
    )
    heads = ["seconds, median", "qemu-img", "airlock", "Python call", "qemu-img / airlock", "airlock / floor"]
    rows = []
    for row in result.rows:
        theirs, ours = row.times["qemu-img"].median, row.times["airlock"].median
        numbers = [f"{theirs:.3f}", f"{ours:.3f}", f"{row.times['call'].median:.3f}"]
        rows.append([row.operation, *numbers, f"{theirs / ours:.1f}", f"{ours / result.base.median:.1f}"])
    print(table(heads, rows) + "\n")
    heads = ["of the whole process tree", "exits", "read MiB", "written MiB", "peak MiB, airlock", "peak MiB, qemu-img"]
    rows = []
    for row in result.rows:
        rows.append(_resources(row.operation, row.report, row.memory))
    print(table(heads, rows))


def show_bitmaps(size: str, rows: list[bitmaps.Row]) -> None:
    print(f"\n## Bitmaps of an image of {size}, every cluster mapped, {bitmaps.GRANULARITY} bytes to a bit\n")
    heads = ["seconds, median", "qemu-img", "airlock", "Python call", "qemu-img / airlock"]
    lines = []
    for row in rows:
        theirs, ours = row.times["qemu-img"].median, row.times["airlock"].median
        numbers = [f"{theirs:.3f}", f"{ours:.3f}", f"{row.times['call'].median:.3f}"]
        lines.append([row.title, *numbers, f"{theirs / ours:.1f}"])
    print(table(heads, lines) + "\n")
    heads = ["of the whole process tree", "exits", "read MiB", "written MiB", "peak MiB, airlock", "peak MiB, qemu-img"]
    print(table(heads, [_resources(row.title, row.report, row.memory) for row in rows]))


def show_commits(title: str, rows: list[commits.Row]) -> None:
    print(f"\n## Overlays committed, {title}\n")
    heads = [
        "seconds, median (least)",
        "qemu-img",
        "airlock",
        "Python call",
        "qemu-img / airlock",
        "peak MiB, airlock",
        "qemu-img",
    ]
    lines = []
    for row in rows:
        spreads = [row.times[name] for name in ("qemu-img", "airlock", "call")]
        cells = [f"{spread.median:.3f} ({spread.minimum:.3f})" for spread in spreads]
        ratio = f"{spreads[0].median / spreads[1].median:.1f}"
        lines.append([row.title, *cells, ratio, *(_peak(row.memory[name]) for name in ("airlock", "qemu-img"))])
    print(table(heads, lines))


def _resources(title: str, report: t.Any, memory: dict[str, measure.Memory]) -> list[str]:
    """Cells of a row: what the guest did, and the memory of both programs."""
    moved = [str(report.exits), f"{report.bytes_read / _MIB:.0f}", f"{report.bytes_written / _MIB:.0f}"]
    return [title, *moved, *(_peak(memory[program]) for program in ("airlock", "qemu-img"))]


def _peak(memory: measure.Memory) -> str:
    return f"{memory.shared_once / _MIB:.0f} (at most {memory.each_apart / _MIB:.0f})"


def show_claims(claims: bitmaps.Claims) -> None:
    title = f"A file of {claims.size >> 10} KiB that claims {bitmaps.CLAIMED:,} bitmaps of a disk of 64 GiB"
    show_spreads(title, "milliseconds", 1000, claims.times, ("airlock bitmap --list", "Python call"))
    print(f"Peak memory of airlock: {_peak(claims.memory)} MiB. qemu-img info {claims.theirs}.")


def show_spreads(
    title: str, unit: str, scale: float, spreads: dict[str, measure.Spread], ratio: tuple[str, str]
) -> None:
    """A table of spreads and, below, how many times the first of `ratio` takes what the second takes."""
    print(f"\n## {title}\n")
    rows = [
        [name, *(f"{value * scale:.2f}" for value in (s.median, s.minimum, s.maximum))] for name, s in spreads.items()
    ]
    print(table([unit, "median", "least", "most"], rows))
    first, second = (spreads[name].median for name in ratio)
    print(f"\n{ratio[0]} / {ratio[1]}: {first / second:.2f}")


def _qemu_version() -> str:
    return subprocess.run(["qemu-img", "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="small images and few runs: does it work?")
    names = ["large", "bitmaps", "commits", "claims", "listing", "tasks", "commit-tasks", "fleet"]
    parser.add_argument("--only", choices=names, help="one part")
    arguments = parser.parse_args()
    size, repeats, calls, count, images = ("4G", 1, 5, 2, 3) if arguments.short else ("1T", 5, 200, 20, 100)
    print(f"{datetime.date.today()}, {os.cpu_count()} CPUs, Linux {os.uname().release}, {_qemu_version()}")
    os.makedirs("build", exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir="build") as name:
        directory = pathlib.Path(name).resolve()
        parts: dict[str, t.Callable[[], None]] = {
            "large": lambda: large(directory, size, repeats),
            "bitmaps": lambda: large_bitmaps(directory, size, repeats),
            "commits": lambda: all_commits(directory, arguments.short, repeats),
            "claims": lambda: show_claims(bitmaps.claiming(directory, repeats)),
            "listing": lambda: show_spreads(
                "The snapshots of a small image, listed",
                "milliseconds",
                1000,
                small_images.listing(directory, calls),
                ("airlock snapshot -l", "qemu-img snapshot -l"),
            ),
            "tasks": lambda: show_spreads(
                "One task that changes nothing",
                "milliseconds a task",
                1000,
                small_images.tasks(directory, count, repeats),
                ("qcow2_snapshot, unchanged", "command: qemu-img snapshot -l"),
            ),
            "commit-tasks": lambda: show_spreads(
                "One task that commits one cluster",
                "milliseconds a task",
                1000,
                small_images.commit_tasks(directory, count, repeats),
                ("qcow2_commit", "command: qemu-img commit"),
            ),
            "fleet": lambda: show_spreads(
                "A snapshot of many images",
                "seconds a playbook",
                1,
                small_images.fleet(directory, images, min(repeats, 3)),
                (f"loop of {images} command tasks", f"one qcow2_snapshot task, {images} images"),
            ),
        }
        if arguments.short:  # at length, it is a target of its own
            parts["growth"] = lambda: growth.measure_all(directory, growth.SHORT, 1, directory / "growth.svg")
        for part in [arguments.only] if arguments.only else parts:
            parts[part]()


def large(directory: pathlib.Path, size: str, repeats: int) -> None:
    show_large(size, large_image.run(directory, size, repeats))
    print("\n" + large_image.identical(directory, "64G" if repeats > 1 else "1G"))


def large_bitmaps(directory: pathlib.Path, size: str, repeats: int) -> None:
    show_bitmaps(size, bitmaps.run(directory, size, repeats))
    print("\n" + bitmaps.equal(directory, "64G" if repeats > 1 else "1G"))


def all_commits(directory: pathlib.Path, short: bool, repeats: int) -> None:
    length, size, count = (16 * _MIB, 16 << 30, 100) if short else (2 << 30, 1 << 40, 100_000)
    cases = [
        commits.dense(length),
        commits.scattered(size, count),
        commits.layers(10, length // 2),
        commits.small(),
    ]
    show_commits("where copying is copying", [commits.run(directory, case, repeats) for case in cases])
    for kind, title in (("ext4", "on an ext4 with a journal"), ("xfs", "on XFS, which shares extents")):
        if os.geteuid():
            print(f"\nOverlays committed {title}: not measured, for mounting needs root.")
            continue
        with commits.file_system(directory, max(8 * length, 1 << 30), kind) as place:
            show_commits(title, [commits.run(place, commits.dense(length), repeats)])


if __name__ == "__main__":
    main()
