# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What operations read and write, and how often they ring, grows with an image's metadata and no faster: four times the
disk, or four times the snapshots, are four times as much at most. By counts, so that it is the same on any machine."""

from __future__ import annotations

import itertools
import pathlib
import subprocess
import typing as t

import pytest

from benchmarks import floor
from sandbox import operations
from sandbox.images.chain import open_chain
from sandbox.images.commits import commit, open_base
from sandbox.images.rebases import open_backing, rebase
from sandbox.operations import Action, Image, Report, Selector
from sandbox.vmm import machine

pytestmark = pytest.mark.kvm

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
TABLE = 512 * 64  # bytes of disk that an L2 table of 512 bytes maps
TIMES = 4
AT_MOST = 4.2  # what does not grow is in both, so it is less as a rule; a table that begins a block is the rest
NAME = b"before"
SELECTOR = Selector.by_name(NAME)

# How often all tables are read at most, and whether they are written; for disks that a snapshot shares all of.
READS = {"list": 0, "info": 0, "list bitmaps": 0, "compare": 0, "create": 2, "delete": 2}
WRITES = ("create", "delete")


class Costs(t.NamedTuple):
    """Of all guests that an operation has run."""

    read: int
    written: int
    exits: int
    windows: int

    @classmethod
    def of(cls, reports: t.Sequence[Report]) -> Costs:
        return cls(
            sum(report.bytes_read for report in reports),
            sum(report.bytes_written for report in reports),
            sum(report.exits for report in reports),
            max(report.windows for report in reports),
        )


Step = t.Callable[[Image], object]
Counted = t.Callable[[t.Callable[[], object]], Costs]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """counted(work) is what its guests cost."""
    reports: list[Report] = []
    real = machine.run

    def run(what: machine.Run) -> machine.Answer:
        answer = real(what)
        reports.append(answer.report)
        return answer

    monkeypatch.setattr(machine, "run", run)

    def costs(work: t.Callable[[], object]) -> Costs:
        reports.clear()
        work()
        return Costs.of(reports)

    return costs


def change(action: Action, name: bytes = b"b") -> Step:
    return lambda image: operations.change_bitmap(image, name, [action])


STEPS: dict[str, Step] = {
    "list": operations.list_snapshots,
    "info": operations.image_info,
    "create": lambda image: operations.create_snapshot(image, NAME, (1_700_000_000, 0)),
    "compare": lambda image: operations.compare_snapshot(image, SELECTOR),
    "apply": lambda image: operations.apply_snapshot(image, SELECTOR, False),
    "delete": lambda image: operations.delete_snapshot(image, SELECTOR),
    "add": change(Action.add(1 << 16)),
    "add another": change(Action.add(1 << 16), b"a"),
    "list bitmaps": operations.list_bitmaps,
    "merge": change(Action.merge(b"a")),
    "disable": change(Action.disable()),
    "enable": change(Action.enable()),
    "clear": change(Action.clear()),
    "remove": change(Action.remove()),
    "remove another": change(Action.remove(), b"a"),
}


def all_costs(path: pathlib.Path, counted: Counted) -> dict[str, Costs]:
    """Of one step after the other."""
    found = {}
    for name, step in STEPS.items():
        with Image.open(str(path), writable=True) as image:
            found[name] = counted(lambda step=step, image=image: step(image))  # type: ignore[misc]
    return found


def make(path: pathlib.Path, size: int, *options: str) -> pathlib.Path:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", *(["-o", ",".join(options)] if options else [])]
    subprocess.run([*command, str(path), str(size)], check=True)
    return path


def write(path: pathlib.Path, offsets: t.Iterable[int], length: int = 512) -> None:
    lines = "\n".join(f"write -q {offset} {length}" for offset in offsets)
    command = ["qemu-io", "-t", "unsafe", "-f", "qcow2", str(path)]
    subprocess.run(command, input=lines, text=True, check=True, stdout=subprocess.DEVNULL)


def hold(small: t.Mapping[str, Costs], large: t.Mapping[str, Costs]) -> None:
    """No cost has grown faster than the work."""
    for name, after in large.items():
        before = small[name]
        assert after.read <= AT_MOST * before.read, name
        assert after.written <= AT_MOST * before.written, name
        assert after.exits <= AT_MOST * before.exits, name


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (16 * MIB, ("cluster_size=512",)),
        (16 * MIB, ("cluster_size=512", "refcount_bits=64")),
        (8 * GIB, ("cluster_size=64k",)),
        (8 * GIB, ("cluster_size=64k", "extended_l2=on")),
        (1024 * GIB, ("cluster_size=2M",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_disks(tmp_path: pathlib.Path, counted: Counted, size: int, options: tuple[str, ...]) -> None:
    """Of which each cluster is mapped. And each table is read twice at most, where it is written, or else once."""
    found = []
    for one in (size, TIMES * size):
        path = make(tmp_path / "disk", one, "preallocation=metadata", *options)
        metadata = floor.metadata_of(str(path)).size
        found.append(all_costs(path, counted))
        path.unlink()
    small, large = found
    hold(small, large)
    cluster = 2 * MIB  # the largest: a few tables more, of bitmaps, or L1 tables
    for name, costs in large.items():
        assert costs.windows == 1
        assert costs.read <= READS.get(name, 1) * metadata + metadata // 4 + 4 * cluster, name
        assert costs.written <= (name in WRITES) * metadata + metadata // 16 + 4 * cluster, name


@pytest.mark.parametrize("counts", [(1, 1), (25, 25), (8, 32)], ids=["disk", "disk, 25 snapshots", "snapshots"])
def test_snapshots_that_share_no_table(tmp_path: pathlib.Path, counted: Counted, counts: tuple[int, int]) -> None:
    """Between any two of them each L2 table was written to. What grows is the disk, or how many there are."""
    disk = MIB
    found = []
    for count, size in zip(counts, (disk, disk if counts[0] != counts[1] else TIMES * disk)):
        path = make(tmp_path / "disk", size, "cluster_size=512")
        for number in range(count):
            write(path, range(0, size, TABLE))
            with Image.open(str(path), writable=True) as image:
                operations.create_snapshot(image, b"%d" % number, (1_700_000_000, 0))
        write(path, range(0, size, TABLE))
        found.append(all_costs(path, counted))
        path.unlink()
    hold(*found)


def test_snapshots_of_one_mapping(tmp_path: pathlib.Path, counted: Counted) -> None:
    """More than a counter of a byte can count: the tables are read for no snapshot once more."""
    path = make(tmp_path / "disk", 8 * GIB, "preallocation=metadata")
    metadata = floor.metadata_of(str(path)).size
    found = []
    for numbers in (range(18), range(18, 20)):
        for number in numbers:
            with Image.open(str(path), writable=True) as image:
                costs = counted(
                    lambda image=image, number=number: operations.create_snapshot(image, b"%d" % number, (0, 0))  # type: ignore[misc]
                )
            assert costs.read <= 3 * metadata + 2 * MIB
        found.append(all_costs(path, counted))
    for before, after in zip(*(costs.values() for costs in found)):
        assert after.read <= before.read + 64 * KIB
        assert after.exits <= before.exits + 2


def chain_costs(directory: pathlib.Path, size: int, counted: Counted) -> dict[str, Costs]:
    """Of a base that is mapped as a whole, and an overlay with a cluster for each of its tables."""
    directory.mkdir()
    for name in ("base", "other"):
        make(directory / name, size, "cluster_size=512", "preallocation=metadata")
    top = directory / "top"
    overlay = ["-b", "base", "-F", "qcow2", "-o", "cluster_size=512"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *overlay, str(top)], check=True)
    write(top, range(0, size, TABLE))
    found = {}
    with Image.open(str(top), writable=True) as image, open_chain(image) as chain:
        with open_backing(chain, b"other", "qcow2") as backing:
            found["rebase, dry"] = counted(lambda: rebase(chain, backing, dry_run=True))
        open_base(chain, 1)
        found["commit, dry"] = counted(lambda: commit(chain, dry_run=True))
        found["commit"] = counted(lambda: commit(chain))
        with open_backing(chain, b"other", "qcow2") as backing:
            found["rebase"] = counted(lambda: rebase(chain, backing))
    return found


def test_chains(tmp_path: pathlib.Path, counted: Counted) -> None:
    hold(*(chain_costs(tmp_path / str(size), size, counted) for size in (4 * MIB, TIMES * 4 * MIB)))


def test_layers(tmp_path: pathlib.Path, counted: Counted) -> None:
    """Of a chain: each is opened once, and once more by the guest that works on all of them."""
    found = []
    for count in (8, 32):
        directory = tmp_path / str(count)
        directory.mkdir()
        make(directory / "0", MIB)
        for below, above in itertools.pairwise(range(count)):
            command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below), "-F", "qcow2", str(above)]
            subprocess.run(command, check=True, cwd=directory)

        def work(directory: pathlib.Path = directory, count: int = count) -> None:
            top = str(directory / str(count - 1))
            with Image.open(top, writable=True) as image, open_chain(image) as chain:
                commit(chain, count - 1, empties=False, dry_run=True)

        found.append({"commit": counted(work)})
    hold(*found)
