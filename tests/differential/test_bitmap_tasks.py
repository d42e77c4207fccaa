# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Random tasks of qcow2_bitmap on random images, beside what its documentation says that they lead to.

Each task runs in check mode, for real, and again: the prediction must come true, bit for bit, the second run must find
nothing to do and leave the file as it is, and what is refused must be refused alike in check mode. In between QEMU
writes.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.support import qemu
from tests.support.bitmaps import Bitmap, bitmaps_of, describe, stale_names
from tests.support.cells import MEGA, Cell, random_cell
from tests.support.chains import Arena
from tests.unit.plugins import running

LONG = os.environ.get("AIRLOCK_LONG") == "1"
NAMES = ("monday", "tuesday", "week", "größer")
GRANULARITIES = (None, None, 512, "4k", "64 KiB", "1M")
BYTES = {None: 0, 512: 512, "4k": 4096, "64 KiB": 65536, "1M": MEGA}
AUTOCLEAR = 95  # the header's byte with the bit for bitmaps

Options = dict[str, Any]
Run = Callable[..., dict[str, Any]]


class RefusedError(Exception):
    """What the documentation says: refused. args[0]: the error_code."""


@dataclass(frozen=True)
class There:
    """What there is: bitmaps, the names of stale ones, and the bitmaps of the other image, each with its dirty bits."""

    size: int
    version: int
    default: int  # granularity of a new bitmap
    bitmaps: tuple[tuple[Bitmap, frozenset[int]], ...]
    stale: tuple[bytes, ...]
    other: tuple[tuple[Bitmap, frozenset[int]], ...]


def bits(bitmap: Bitmap) -> frozenset[int]:
    return frozenset(bit for first, count in bitmap.dirty or () for bit in range(first, first + count))


def dirty_bytes(bitmap: Bitmap, dirty: frozenset[int], size: int) -> int:
    return sum(min(bitmap.granularity, size - bit * bitmap.granularity) for bit in dirty)


def looked_at(path: str, other: str, cell: Cell) -> There:
    return There(
        cell.size // 512 * 512,
        2 if cell.compat == "0.10" else 3,
        min(max(cell.cluster_size, 4096), 65536),
        tuple((bitmap, bits(bitmap)) for bitmap in bitmaps_of(path)),
        tuple(stale_names(path)),
        tuple((bitmap, bits(bitmap)) for bitmap in bitmaps_of(other)),
    )


def merged(target: Bitmap, dirty: frozenset[int], source: Bitmap, more: frozenset[int], size: int) -> frozenset[int]:
    """All bits of the target that share a byte of the disk with a dirty bit of the source."""
    found = set(dirty)
    for bit in more:
        end = min((bit + 1) * source.granularity, size)
        found.update(range(bit * source.granularity // target.granularity, -(-end // target.granularity)))
    return frozenset(found)


def meant(there: There, options: Options) -> tuple[tuple[Bitmap, frozenset[int]], ...]:
    """The bitmaps that a task leads to. Raises RefusedError."""
    name = options["name"].encode()
    rest = [pair for pair in there.bitmaps if pair[0].name != name]
    found = [pair for pair in there.bitmaps if pair[0].name == name]
    if options.get("state") == "absent":
        return tuple(rest) if found or name not in there.stale else ()
    granularity = BYTES[options.get("granularity")]
    fault = ""
    if found and found[0][0].in_use:
        fault = "bitmap_inconsistent"
    elif found and granularity not in (0, found[0][0].granularity):
        fault = "bitmap_other_granularity"
    if fault and not options.get("recreate"):
        raise RefusedError(fault)
    fresh = bool(fault) or not found
    if fresh and there.version == 2:
        raise RefusedError("bitmap_version_2")
    if fresh:
        kept = found[0][0].granularity if found else there.default
        bitmap, dirty = Bitmap(name, granularity or kept, True, False, None), frozenset[int]()
    else:
        bitmap, dirty = found[0][0], frozenset[int]() if options.get("cleared") else found[0][1]
    for merge in options.get("merge", ()):
        dirty = after_merge(there, options["name"], bitmap, dirty, merge)
    if options.get("enabled") is not None:
        bitmap = replace(bitmap, recording=options["enabled"])
    if fresh:
        return (*rest, (bitmap, dirty))
    return tuple((bitmap, dirty) if pair[0].name == name else pair for pair in there.bitmaps)


def after_merge(there: There, own: str, bitmap: Bitmap, dirty: frozenset[int], merge: Any) -> frozenset[int]:
    wanted = merge if isinstance(merge, dict) else {"name": merge}
    if "path" not in wanted and wanted["name"] == own:
        return dirty
    places = there.other if "path" in wanted else there.bitmaps
    sources = [pair for pair in places if pair[0].name == wanted["name"].encode()]
    stale = "path" not in wanted and wanted["name"].encode() in there.stale
    if not sources and wanted.get("ignore_missing") and not stale:
        return dirty
    if not sources:
        raise RefusedError("bitmap_not_found")
    if sources[0][0].in_use:
        raise RefusedError("bitmap_inconsistent")
    return merged(bitmap, dirty, *sources[0], there.size)


def draw(rng: random.Random, other: str) -> Options:
    """A task. Options are left out more often than not."""
    options: Options = {"name": rng.choice(NAMES)}
    absent, granularity = rng.random() < 0.15, rng.choice(GRANULARITIES)
    if granularity is not None:
        options["granularity"] = granularity
    if absent:
        return {**options, "state": "absent"}
    options["recreate"] = rng.random() < 0.4
    if rng.random() < 0.5:
        options["enabled"] = rng.random() < 0.5
    options["cleared"] = rng.random() < 0.25
    merges: list[Any] = []
    while rng.random() < 0.5:
        merge: Options = {"name": rng.choice(NAMES)}
        if rng.random() < 0.5:
            merge["path"] = other
        if rng.random() < 0.7:
            merge["ignore_missing"] = True
        merges.append(merge if len(merge) > 1 or rng.random() < 0.5 else merge["name"])
    return {**options, "merge": merges}


def disturb(rng: random.Random, path: str, size: int) -> None:
    """What happens to an image between two tasks: QEMU writes, dies, or a program without bitmaps writes."""
    writes = [f"write {rng.randrange(size // 512) * 512} {rng.choice((512, 4096, 70000))}" for _write in range(2)]
    what = rng.random()
    (qemu.crash if what < 0.1 else qemu.io)(path, *writes)
    if 0.1 <= what < 0.15:
        with open(path, "r+b") as file:
            file.seek(AUTOCLEAR)
            file.write(b"\0")


def digest(path: str) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def records(pairs: tuple[tuple[Bitmap, frozenset[int]], ...], size: int) -> list[tuple[Any, ...]]:
    return [
        (
            bitmap.name.decode(),
            bitmap.granularity,
            bitmap.recording,
            bitmap.in_use,
            None if bitmap.in_use else dirty_bytes(bitmap, dirty, size),
            None if bitmap.in_use else len(dirty),
        )
        for bitmap, dirty in pairs
    ]


def told(answer: dict[str, Any]) -> list[tuple[Any, ...]]:
    fields = ("name", "granularity", "recording", "in_use", "dirty_bytes", "dirty_count")
    return [tuple(bitmap[field] for field in fields) for bitmap in answer["bitmaps"] if not bitmap["stale"]]


def one_task(run: Run, path: str, there: There, options: Options) -> bool:
    """One task, four times; whether it was carried out."""
    before = digest(path)
    expected, code = there.bitmaps, ""
    try:
        expected = meant(there, options)
    except RefusedError as refused:
        code = refused.args[0]
    if code:
        for check in (True, False):
            answer = run(check, path=path, **options)
            assert (answer["rc"], answer.get("error_code")) == (1, code), answer
            assert digest(path) == before
        return False
    leaks = qemu.check(path).complaints  # QEMU itself leaks what stale bitmaps held
    stale_goes = options.get("state") == "absent" and options["name"].encode() in there.stale
    changed = expected != there.bitmaps or stale_goes
    predicted = run(True, path=path, **options)
    assert (predicted["rc"], predicted.get("changed")) == (0, changed), predicted
    assert digest(path) == before
    done = run(False, path=path, **options)
    assert (done["rc"], done.get("changed")) == (0, changed), done
    assert (digest(path) != before) == changed
    now = tuple((replace(bitmap, dirty=None), bits(bitmap)) for bitmap in bitmaps_of(path))
    assert now == tuple((replace(bitmap, dirty=None), dirty) for bitmap, dirty in expected), [
        describe(bitmap) for bitmap in bitmaps_of(path)
    ]
    assert told(predicted) == told(done) == records(expected, there.size)
    judged, after = qemu.check(path), digest(path)
    assert judged.complaints <= leaks, judged.text
    assert done["images"][0]["leaked_clusters"] in (len(leaks), None) or there.stale
    for check in (True, False):
        again = run(check, path=path, **options)
        assert (again["rc"], again.get("changed")) == (0, False), again
        assert again["bitmaps"] == done["bitmaps"]
        assert digest(path) == after
    return changed


@pytest.fixture
def run(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    running.make_tree(tmp_path)
    yield lambda check, **arguments: running.run(capsys, "qcow2_bitmap", check, False, arguments)
    sys.path.remove(str(tmp_path))


@pytest.mark.parametrize("seed", range(500 if LONG else 8))
def test_random_tasks(arena: Arena, run: Run, seed: int) -> None:
    rng = random.Random(seed)
    cell = replace(
        random_cell(rng), size=rng.randrange(MEGA // 512, 5 * MEGA // 512) * 512, preallocation="off", lazy=False
    )
    path, other = cell.make(arena.directory), os.path.join(arena.directory, "other.qcow2")
    qemu.create(other, cell.size)
    for name in NAMES[:2]:
        qemu.must(["qemu-img", "bitmap", "--add", "-g", rng.choice(("512", "64k")), "-f", "qcow2", other, name])
    (qemu.crash if rng.random() < 0.1 else qemu.io)(other, "write 0 70000", f"write {cell.size - 512} 512")
    carried_out = 0
    for number in range(8):
        disturb(rng, path, cell.size)
        options = draw(rng, other) if number else {"name": rng.choice(NAMES)}
        carried_out += one_task(run, path, looked_at(path, other, cell), options)
    assert carried_out or cell.compat == "0.10"
