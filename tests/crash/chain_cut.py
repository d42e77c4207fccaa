# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Cuts the power at every moment of an operation on a backing chain, and judges all files that can be left.

AIRLOCK_LONG=1 asks qemu-img, and runs the operation again, in more states, and draws more random subsets.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.crash import disk, replay
from tests.crash.cut import LONG, record
from tests.support import judge, qemu
from tests.support.bitmaps import Bitmap, bitmaps
from tests.support.qcow2 import INCOMPATIBLE_DIRTY, Qcow2
from tests.support.vmdk import Vmdk

RUN_AGAIN_EVERY = 3 if LONG else 60
RANDOM_SUBSETS = 100 if LONG else 6
TEARS = 2000 if LONG else 16
SECTOR = 512
ZEROED = 1  # entry of a vmdk grain table


@dataclass
class Cut:
    """An operation on the files of a directory. top: the image whose disk shows the same at every moment. target: the
    one whose disk changes, "" for none: each of its sectors is then the old or the new one at every moment. operate: is
    given the directory; done twice, it ends as done once."""

    directory: str
    top: str
    target: str
    operate: Callable[[str], object]


@dataclass
class _Wanted:
    """What each state is held against, made of the files before the operation and after it. disk: what the top shows.
    old, new: what the target shows. snapshots and bitmaps: of each qcow2 image, as they were. entries: of each vmdk
    image's tables, as they were. new_id: the target's content id."""

    disk: bytes
    old: bytes = b""
    new: bytes = b""
    snapshots: dict[str, object] = field(default_factory=dict)
    bitmaps: dict[str, list[Bitmap]] = field(default_factory=dict)
    entries: dict[str, dict[int, int]] = field(default_factory=dict)
    new_id: int | None = None


def _read(directory: str) -> replay.Files:
    found = {}
    for name in sorted(os.listdir(directory)):
        with open(os.path.join(directory, name), "rb") as file:
            found[name] = file.read()
    return found


def _write(directory: str, files: replay.Files, there: replay.Files) -> None:
    """there: what the directory has."""
    os.makedirs(directory, exist_ok=True)
    for name, content in files.items():
        if there.get(name) != content:
            with open(os.path.join(directory, name), "wb") as file:
                file.write(content)


def _images(directory: str, kind: str) -> list[str]:
    """The names of those of a format."""
    return [name for name in sorted(os.listdir(directory)) if disk.kind(os.path.join(directory, name)) == kind]


def _target(cut: Cut, directory: str) -> bytes:
    """What the target shows; a vmdk image by its tables, and by their copies."""
    if not cut.target:
        return b""
    path = os.path.join(directory, cut.target)
    kind = disk.kind(path)
    if kind == "raw":
        with open(path, "rb") as file:
            return file.read()
    copies = kind == "vmdk" and Vmdk(path).header["redundant"]
    return disk.shown(path) + (disk.shown_vmdk(path, redundant=True) if copies else b"")


def _content_id(cut: Cut, directory: str) -> int | None:
    """That of a target that is of vmdk."""
    path = os.path.join(directory, cut.target)
    return Vmdk(path).cid if cut.target and disk.kind(path) == "vmdk" else None


def _wanted(cut: Cut) -> _Wanted:
    """Before the operation."""
    wanted = _Wanted(disk.shown(os.path.join(cut.directory, cut.top)), _target(cut, cut.directory))
    for name in _images(cut.directory, "qcow2"):
        with Qcow2(os.path.join(cut.directory, name)) as image:
            assert judge.faults(image).damage == [], name
            wanted.snapshots[name] = judge.content(image).snapshots
            wanted.bitmaps[name] = bitmaps(image)
    for name in _images(cut.directory, "vmdk"):
        wanted.entries[name] = Vmdk(os.path.join(cut.directory, name)).entries()
    assert _judge_vmdks(cut.directory, wanted, False) == []
    return wanted


def _lost_changes(old: Bitmap, now: Bitmap, changed: set[int]) -> bool:
    """Does a bitmap that claims to be complete not know of something? changed: sectors of the disk."""
    if now.in_use:
        return False
    known: set[int] = set()
    for start, count in now.dirty or ():
        known.update(range(start, start + count))
    due: set[int] = set()
    for start, count in old.dirty or ():
        due.update(range(start, start + count))
    if old.recording:
        due.update(sector * SECTOR // old.granularity for sector in changed)
    return not due <= known


def _differing(left: bytes, right: bytes) -> set[int]:
    """The sectors in which two disks are different; the shorter one has zeros behind its end."""
    size = max(len(left), len(right))
    left, right = left.ljust(size, b"\0"), right.ljust(size, b"\0")
    if left == right:
        return set()
    return {at // SECTOR for at in range(0, size, SECTOR) if left[at : at + SECTOR] != right[at : at + SECTOR]}


@dataclass(frozen=True)
class _Seen:
    """What can be said of one image by itself. kind: for the tally."""

    kind: str
    damage: tuple[str, ...]
    snapshots: object
    bitmaps: tuple[Bitmap, ...]


def _see(path: str) -> _Seen:
    with Qcow2(path) as image:
        if image.header["incompatible_features"] & INCOMPATIBLE_DIRTY:
            return _Seen("dirty", (), None, ())
        found = judge.faults(image)
        kind = "flags" if found.flags else "leaks" if found.leaks else "clean"
        return _Seen(kind, tuple(found.damage), judge.content(image).snapshots, tuple(bitmaps(image)))


def _judge_image(name: str, seen: _Seen, wanted: _Wanted, changed: set[int]) -> list[str]:
    """What is wrong with one image of a state. changed: sectors in which its disk shows something new."""
    if seen.kind == "dirty":
        return []
    wrong = [f"{name}: {text}" for text in seen.damage]
    if seen.snapshots != wanted.snapshots[name]:
        wrong.append(f"{name}: its snapshots are others")
    now = {bitmap.name: bitmap for bitmap in seen.bitmaps}
    for old in wanted.bitmaps[name]:
        if old.name not in now or _lost_changes(old, now[old.name], changed):
            wrong.append(f"{name}: the bitmap {old.name!r} has lost something")
    return wrong


def _judge_vmdks(directory: str, wanted: _Wanted, complete: bool) -> list[str]:
    """What is wrong with the vmdk images. complete: the target shows all that it is to show, and has its new
    content id. Only then may an image not know the id of its parent: QEMU reads nothing through it until the operation
    is run again."""
    wrong = []
    for name, old in wanted.entries.items():
        image = Vmdk(os.path.join(directory, name))
        now = image.entries()
        places = [entry for entry in now.values() if entry != ZEROED]
        if len(set(places)) < len(places):
            wrong.append(f"{name}: two grains are in one place")
        copies = image.entries(redundant=True) if image.header["redundant"] else now
        if any(entry != copies.get(grain) and entry != old.get(grain) for grain, entry in now.items()):
            wrong.append(f"{name}: a table has what its copy has not")  # no second run would find that
        knows = not image.parent or Vmdk(os.path.join(directory, image.parent)).cid == image.parent_cid
        if not knows and not complete:
            wrong.append(f"{name}: its parent has another content id")
    return wrong


def _judge(
    cut: Cut, directory: str, files: replay.Files, wanted: _Wanted, known: dict[int, _Seen], tally: Counter[str]
) -> list[str]:
    """What is wrong with a state. known: by the hash of an image's file, of states before."""
    wrong = []
    try:
        now = _target(cut, directory)
        if disk.shown(os.path.join(directory, cut.top)) != wanted.disk:
            wrong.append("the top shows something else")
    except disk.ChainError as error:
        return [f"there is nothing to read: {error}"]
    changed = _differing(now, wanted.old)
    if changed & _differing(now, wanted.new):
        wrong.append(f"{cut.target} has sectors that are neither old nor new")
    wrong += _judge_vmdks(directory, wanted, now == wanted.new and _content_id(cut, directory) == wanted.new_id)
    for name in wanted.snapshots:
        key = hash(files[name])
        if key not in known:
            known[key] = _see(os.path.join(directory, name))
        seen = known[key]
        tally[seen.kind] += 1
        wrong += _judge_image(name, seen, wanted, changed if name == cut.target else set())
    return wrong


def _repair(directory: str, wanted: _Wanted) -> None:
    """What a user has to do with an image that is dirty."""
    for name in wanted.snapshots:
        path = os.path.join(directory, name)
        with Qcow2(path) as image:
            dirty = image.header["incompatible_features"] & INCOMPATIBLE_DIRTY
        if dirty:
            qemu.run(["qemu-img", "check", "-q", "-r", "all", "-f", "qcow2", path])


def _run_again(cut: Cut, directory: str, wanted: _Wanted) -> list[str]:
    """qemu-img agrees with what was found, and the operation comes to its end in the second run."""
    _repair(directory, wanted)
    wrong = _check(directory, wanted)
    cut.operate(directory)
    top = os.path.join(directory, cut.top)
    if disk.shown(top) != wanted.disk or _differing(_target(cut, directory), wanted.new):
        wrong.append("the second run leads elsewhere")
    wrong += [f"the second run: {text}" for text in _judge_vmdks(directory, wanted, False)]
    if _shown_by_qemu(directory, cut.top) != wanted.disk:
        wrong.append("QEMU sees something else behind the second run")
    return wrong + [f"the second run: {text}" for text in _check(directory, wanted)]


def _shown_by_qemu(directory: str, name: str) -> bytes:
    raw = directory + ".shown"
    # From there: the name of a lower layer's data file starts from the directory that QEMU runs in.
    kind = disk.kind(os.path.join(directory, name))
    qemu.must(["qemu-img", "convert", "-f", kind, "-O", "raw", name, raw], cwd=directory)
    with open(raw, "rb") as file:
        return file.read()


def _check(directory: str, wanted: _Wanted) -> list[str]:
    """What qemu-img check says of the images, but for leaks."""
    checked = {name: qemu.check(name, cwd=directory) for name in wanted.snapshots}
    wrong = [f"{name}: {check.text[:300]}" for name, check in checked.items() if check.code not in (0, 3)]
    for name in wanted.entries:
        done = qemu.run(["qemu-img", "check", "-q", "-f", "vmdk", name], cwd=directory)
        wrong += [] if done.code == 0 else [f"{name}: {done.output[:300]}"]
    return wrong


def cut_power(cut: Cut, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Operates, then looks at every state that a power cut could have left instead. Returns how many images of states
    there were: clean, with leaks, with flags, dirty; and how many states."""
    before = _read(cut.directory)
    wanted = _wanted(cut)
    log = record(lambda: cut.operate(cut.directory), monkeypatch)
    for change in log:
        change.file = os.path.basename(change.file)
    assert disk.shown(os.path.join(cut.directory, cut.top)) == wanted.disk
    wanted.new = _target(cut, cut.directory)
    wanted.new_id = _content_id(cut, cut.directory)
    assert replay.replayed(before, log) == _read(cut.directory), "the log does not tell all that was done"
    tally: Counter[str] = Counter()
    known: dict[int, _Seen] = {}
    there: replay.Files = {}
    problems = []
    work = cut.directory + ".state"
    for story, files in replay.states(before, log, seed=1, extra=RANDOM_SUBSETS, tears=TEARS):
        _write(work, files, there)
        there = files
        tally["states"] += 1
        wrong = _judge(cut, work, files, wanted, known, tally)
        if not wrong and tally["states"] % RUN_AGAIN_EVERY == 0:
            wrong = _run_again(cut, work, wanted)
            there = {}
        if wrong:
            problems.append(f"{story}: {wrong[:3]}")
    assert not problems, f"{len(problems)} bad states beside {tally}, first: " + "\n".join(problems[:4])
    return tally
