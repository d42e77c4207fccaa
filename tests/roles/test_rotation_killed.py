# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-playbook is killed at each task of bitmap_rotation, a machine writes, and the next run makes it good.

The images are made by qemu-img. Judges of what is there are qemu-img, the independent reader of the differential tests,
and in one test qemu-nbd and qcow2_info. AIRLOCK_LONG=1 kills more often.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import typing as t

import pytest
import yaml

from sandbox.images.image import Image
from tests.support import qemu
from tests.support.bitmaps import IN_USE, bitmaps_of, extents
from tests.support.nbd import extents as extents_by_nbd
from tests.support.patch import Patch
from tests.support.qcow2 import Qcow2

LONG = os.environ.get("AIRLOCK_LONG") == "1"
CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
ROLE = CHECKOUT / "roles/bitmap_rotation"
TIME = "20261121T030000Z"
PERIODS = [{"period": "day", "keep": 2}, {"period": "week", "keep": 1}]
BIT = 65536  # the granularity
MIB = 1 << 20

REPAIR, RECORD, STOP = "Remove what cannot be relied upon", "Begin to record", "Stop what has recorded so far"
MERGE, PRUNE = "Merge it into the longer periods", "Remove what has been kept long enough"
BEFORE = [
    "Look at the variables",
    "Take the time, once for all groups",
    "See that a rotation can be planned like this",
    "Rotate one group after the other",
    "Take the time",
    "Read what there is",
    REPAIR,
]
AFTER = [
    "Note what there is now",
    "Say which disks need a full backup",
    "Say which groups have not been rotated",
]
# Those between the tasks that change something, and between two items of the loops that have two.
MOMENTS = [
    *(f"start:{task}" for task in (RECORD, STOP, MERGE, PRUNE)),
    *(f"item:{task}:1" for task in (REPAIR, PRUNE)),
]


def day(number: int, period: str = "day") -> str:
    return f"r-{period}-202611{number:02}T020000Z"


NEW = f"r-day-{TIME}"
WEEK = day(19, "week")


class Disks:
    """Two images of a machine. b has, beyond what a has, a bitmap that somebody who was killed has left."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self.paths = [str(directory / "a.qcow2"), str(directory / "b.qcow2")]

    def make(self) -> None:
        """qemu-img makes them."""
        for path in self.paths:
            qemu.create(path, "64M")
            self._bitmap(path, "foreign")
            for number, period in [(9, "week"), (19, "day"), (20, "day")]:
                self._bitmap(path, day(number, period))
                self.write(number, path)
                if number != 20:
                    qemu.must(["qemu-img", "bitmap", "--disable", path, day(number, period)])
        self._bitmap(self.paths[1], day(15))
        in_use(self.paths[1], day(15))

    @staticmethod
    def _bitmap(path: str, name: str) -> None:
        qemu.must(["qemu-img", "bitmap", "--add", "-g", str(BIT), path, name])

    def write(self, mebibyte: int, *paths: str) -> None:
        """What a machine writes while it runs."""
        for path in paths or self.paths:
            qemu.must(["qemu-io", "-c", f"write -P {mebibyte} {mebibyte}M {BIT}", path])

    def content(self) -> list[bytes]:
        return [pathlib.Path(path).read_bytes() for path in self.paths]

    def rotate(
        self, *options: str, kill_at: str = "", groups: t.Sequence[t.Sequence[str]] = (), code: int = 0, **more: str
    ) -> str:
        """Runs the playbook, with more variables of the role; what it has printed. With kill_at it must not come to its
        end."""
        inventory = self.directory / "inventory.json"
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "bitmap_rotation_prefix": "r",
            "bitmap_rotation_periods": PERIODS,
            "bitmap_rotation_granularity": "64k",
            "bitmap_rotation_groups": [
                {"name": f"machine-{number}", "disks": list(disks)}
                for number, disks in enumerate(groups or [self.paths])
            ],
            "bitmap_rotation_time": TIME,
            **{f"bitmap_rotation_{name}": value for name, value in more.items()},
        }
        inventory.write_text(json.dumps({"all": {"hosts": {"localhost": variables}}}))
        environment = dict(
            os.environ,
            ANSIBLE_COLLECTIONS_PATH=str(CHECKOUT / "build/tree"),
            ANSIBLE_LOCAL_TEMP=str(self.directory / "local"),
            ANSIBLE_REMOTE_TEMP=str(self.directory / "remote"),
            ANSIBLE_PIPELINING="1",
            ANSIBLE_NOCOLOR="1",
        )
        if kill_at:
            environment.update(
                ANSIBLE_CALLBACK_PLUGINS=str(pathlib.Path(__file__).parent / "callback"),
                ANSIBLE_CALLBACKS_ENABLED="kill_at",
                KILL_AT=kill_at,
            )
        command = ["ansible-playbook", "-i", str(inventory), "airlock.images.rotate_bitmaps", *options]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == (-signal.SIGKILL if kill_at else code), done.stdout
        return done.stdout

    def seen(self, path: str) -> dict[str, tuple[bool, list[int]]]:
        """The bitmaps of an image: whether each records, and the mebibytes whose beginning is dirty in it. qemu-img and
        the independent reader must agree."""
        shown = json.loads(qemu.must(["qemu-img", "info", "--output=json", path]).output)
        flags = {one["name"]: one["flags"] for one in shown["format-specific"]["data"]["bitmaps"]}
        read = {one.name.decode(): (one.recording, one.in_use) for one in bitmaps_of(path)}
        assert {name: ("auto" in flag, "in-use" in flag) for name, flag in flags.items()} == read
        found = {}
        with Qcow2(path) as image:
            for entry in image.bitmap_directory():
                ranges = extents(image, entry)
                assert all(length == BIT for _offset, length in ranges)
                found[entry.name.decode()] = (
                    read[entry.name.decode()][0],
                    [offset // MIB for offset, _length in ranges],
                )
        return found


def in_use(path: str, name: str) -> None:
    """Marks a bitmap as one that was opened and not stored."""
    with Patch(path) as patch, patch.image() as image:
        (entry,) = [entry for entry in image.bitmap_directory() if entry.name.decode() == name]
        patch.write(entry.offset + 12, (entry.flags | IN_USE).to_bytes(4, "big"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Disks:
    disks = Disks(tmp_path_factory.mktemp("made"))
    disks.make()
    return disks


@pytest.fixture
def disks(made: Disks, tmp_path: pathlib.Path) -> Disks:
    """Copies, to be worked on."""
    for path in made.paths:
        qemu.copy(path, str(tmp_path / pathlib.Path(path).name))
    return Disks(tmp_path)


def judge(disks: Disks, between: t.Collection[int] = (), may_leak: bool = False) -> None:
    """The right bitmaps with the right bits. between: what was written between two runs; it must be somewhere, and
    where it is depends on how far the first one had come. may_leak: a guest was killed between two of its writes."""
    disks.write(40)
    for path in disks.paths:
        seen = disks.seen(path)
        assert {name: recording for name, (recording, _bits) in seen.items()} == {
            "foreign": True,
            day(20): False,
            NEW: True,
            WEEK: False,
        }
        last, new, week = ({*seen[name][1]} for name in (day(20), NEW, WEEK))
        assert set(between) <= last | new
        assert last - set(between) == {20}
        assert new - set(between) == {40}
        assert week == last | {19}
        assert set(seen["foreign"][1]) == {9, 19, 20, 40, *between}
        checked = qemu.run(["qemu-img", "check", path])
        assert checked.code == 0 or (may_leak and checked.code == 3), checked  # 3: nothing but leaked clusters


def test_these_are_the_tasks_of_the_role() -> None:
    names = []
    for file in ("main.yml", "group.yml"):
        (block,) = yaml.safe_load((ROLE / "tasks" / file).read_text())
        names += [task["name"] for task in block["block"]]
    assert sorted(names) == sorted([*BEFORE, RECORD, STOP, MERGE, PRUNE, *AFTER])


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_run_again(disks: Disks, moment: str) -> None:
    disks.rotate(kill_at=moment)
    disks.write(30)
    disks.rotate()
    judge(disks, between={30})


def test_killed_before_and_after_all_changes(disks: Disks) -> None:
    """Who has changed nothing before the last of these tasks has not before the others either; what comes after all
    changes is the same each time."""
    before = disks.content()
    for task in BEFORE if LONG else BEFORE[-1:]:
        disks.rotate(kill_at=f"start:{task}")
        assert disks.content() == before
    for task in AFTER if LONG else AFTER[:1]:
        disks.rotate(kill_at=f"start:{task}")
    assert "changed=0" in disks.rotate()
    judge(disks)


def test_not_killed(disks: Disks) -> None:
    before = disks.content()
    foreseen = disks.rotate("--check")
    assert foreseen.count("changed: [localhost] =>") == 7
    assert disks.content() == before
    assert "Nothing older is left" not in disks.rotate()
    judge(disks)
    before = disks.content()
    assert "changed=0" in disks.rotate()
    assert disks.content() == before
    told = qcow2_info(disks, WEEK)
    for path in disks.paths:
        expected = [(number * MIB, BIT) for number in (19, 20)]
        assert extents_by_nbd(path, WEEK.encode()) == expected
        assert told[path] == expected


def test_a_group_that_is_in_use_does_not_keep_the_others(disks: Disks) -> None:
    a, b = disks.paths
    before = pathlib.Path(b).read_bytes()
    with Image.open(b, writable=True):
        failed = disks.rotate(groups=[[b], [a]], code=2)
        skipped = disks.rotate(groups=[[b], [a]], in_use="skip")
    assert "machine-1: " not in failed
    assert f"process {os.getpid()}" in failed
    assert "changed=0" in skipped
    assert pathlib.Path(b).read_bytes() == before
    assert disks.seen(a)[NEW] == (True, [])


def qcow2_info(disks: Disks, name: str) -> dict[str, list[tuple[int, int]]]:
    """The dirty ranges of a bitmap, for each image, as the module tells them."""
    arguments = json.dumps({"path": disks.paths, "dirty_extents": True, "bitmap": name})
    inventory = str(disks.directory / "inventory.json")
    done = subprocess.run(
        ["ansible", "-i", inventory, "-m", "airlock.images.qcow2_info", "-a", arguments, "--one-line", "localhost"],
        env=dict(os.environ, ANSIBLE_COLLECTIONS_PATH=str(CHECKOUT / "build/tree"), ANSIBLE_NOCOLOR="1"),
        capture_output=True,
        text=True,
        check=True,
    )
    images = json.loads(done.stdout.partition("=>")[2])["images"]
    return {image["path"]: [(one["offset"], one["length"]) for one in image["dirty_extents"]] for image in images}


def test_one_disk_of_two_was_done(disks: Disks) -> None:
    disks.rotate(groups=[disks.paths[:1]])
    disks.write(30)
    disks.rotate()
    judge(disks, between={30})


@pytest.mark.parametrize("left", ["in use", "stale", "none records"])
def test_everything_is_lost(disks: Disks, left: str) -> None:
    """All that was recorded is doubtful, so that nothing of it may stay; what is said of that is not forgotten."""
    for path in disks.paths:
        if left == "in use":
            for name in disks.seen(path):
                in_use(path, name)
        elif left == "stale":
            with Patch(path) as patch:
                patch.write(95, b"\0")
        else:
            qemu.must(["qemu-img", "bitmap", "--disable", path, day(20)])
    disks.rotate(kill_at=f"item:{REPAIR}:1")
    assert "Nothing older is left" in disks.rotate()
    disks.write(40)
    for path in disks.paths:
        seen = disks.seen(path)
        assert seen.pop("foreign", None) is None or left != "stale"
        assert seen == {NEW: (True, [40])}


def test_killed_while_a_module_works(disks: Disks) -> None:
    for _time in range(40 if LONG else 2):
        disks.rotate(kill_at=f"later:{random.choice([REPAIR, RECORD, STOP, MERGE, PRUNE])}:{random.uniform(0, 0.5)}")
    disks.write(30)
    disks.rotate()
    judge(disks, between={30}, may_leak=True)
