# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever an image holds, a task returns little of it, in little memory; what it decides, it decides on all of it."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import huge_images
from tests.unit.plugins.running import PLUGINS, make_tree
from tests.unit.plugins.scripted import Script

MIB = 1 << 20
RETURNED = MIB  # bytes of JSON at most

MODULE = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
from ansible.module_utils.testing import patch_module_args
main = importlib.import_module(sys.argv[2]).main
try:
    with patch_module_args(json.loads(sys.argv[3])):
        main()
finally:
    with open("/proc/self/status") as status:
        sys.stderr.write(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
"""
# The greatest of all processes of a command, in KiB.
GREATEST = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, done.returncode, len(done.stdout))
"""


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> pathlib.Path:
    """A directory with the images `snapshots`, `bitmaps` and `base`, and a tree of the collection."""
    place = tmp_path_factory.mktemp("huge")
    for name, image in huge_images.make_once(tmp_path_factory, worker_id).items():
        os.link(image, place / name)
    tree = place / "tree"
    tree.mkdir()
    make_tree(tree)
    sys.path.remove(str(tree))
    return place


def run(place: pathlib.Path, module: str, **arguments: t.Any) -> tuple[dict[str, t.Any], int, int]:
    """The answer of a module in a process of its own; its bytes; how much memory the process took at most, in bytes."""
    modes = {"_ansible_check_mode": True, "_ansible_diff": True}
    command = [sys.executable, "-c", MODULE, "tree", f"{PLUGINS}.modules.{module}", json.dumps({**arguments, **modes})]
    done = subprocess.run(command, cwd=place, capture_output=True, check=False)
    return json.loads(done.stdout), len(done.stdout), int(done.stderr.split()[-1]) * 1024


# Module, its options, what is in the answer for the one image.
TASKS: list[tuple[str, dict[str, t.Any], dict[str, t.Any]]] = [
    ("qcow2_info", {"path": "snapshots"}, {"snapshot_count": huge_images.SNAPSHOTS}),
    ("qcow2_info", {"path": "bitmaps", "chain": True}, {"bitmap_count": huge_images.BITMAPS}),
    ("qcow2_info", {"path": "snapshots", "limit": huge_images.SNAPSHOTS}, {"snapshot_count": huge_images.SNAPSHOTS}),
    ("qcow2_snapshot", {"path": "snapshots", "name": "first"}, {"snapshot_count": huge_images.SNAPSHOTS}),
    (
        "qcow2_snapshot",
        {"path": "snapshots", "name": "first", "state": "absent"},
        {"snapshot_count": huge_images.SNAPSHOTS - 1, "changed": True},
    ),
    (
        "qcow2_snapshot",
        {"path": "snapshots", "retention": {"prefix": "\udc80", "keep": 1}},
        {"snapshot_count": 2, "removed_count": huge_images.SNAPSHOTS - 2, "changed": True},
    ),
    ("qcow2_bitmap", {"path": "bitmaps", "name": "first"}, {"bitmap_count": huge_images.BITMAPS, "changed": False}),
    (
        "qcow2_bitmap",
        {"path": "bitmaps", "name": "first", "state": "absent"},
        {"bitmap_count": huge_images.BITMAPS - 1, "changed": True, "bitmap": None},
    ),
]


@pytest.mark.parametrize(("module", "options", "told"), TASKS, ids=[f"{task[0]}-{task[1]}" for task in TASKS])
def test_of_a_huge_image_little_is_returned(
    huge: pathlib.Path, module: str, options: dict[str, t.Any], told: dict[str, t.Any]
) -> None:
    answer, size, memory = run(huge, module, **options)
    (image,) = answer["images"]
    assert {key: image[key] for key in told} == told
    assert answer["truncated"]
    assert image["truncated"]
    assert size < RETURNED
    assert memory < 200 * MIB
    # Nothing is there twice.
    assert not {"snapshots", "bitmaps", "listing"} & answer.keys()
    assert "listing" not in image
    for side in ("before", "after"):
        assert all(len(diff[side]) < 100_000 for diff in answer.get("diff", []))


def test_the_last_ones_are_returned(huge: pathlib.Path) -> None:
    answer, _size, _memory = run(huge, "qcow2_info", path="snapshots", limit=3)
    last = huge_images.SNAPSHOTS - 1
    assert [snapshot["id"] for snapshot in answer["images"][0]["snapshots"]] == [f"{last - i:060d}" for i in (2, 1, 0)]
    answer, _size, _memory = run(huge, "qcow2_bitmap", path="bitmaps", name="first", limit=0)
    assert answer["images"][0]["bitmaps"] == []
    assert answer["bitmap"]["name"] == "first"  # which is none of the last ones
    answer, size, _memory = run(huge, "qcow2_snapshot", path="snapshots", name="first")
    (image,) = answer["images"]
    assert "first" not in [snapshot["name"] for snapshot in image["snapshots"]]
    assert image["snapshot"]["name"] == "first"
    assert size < RETURNED


@pytest.mark.parametrize("policy", ["refuse", "drop"])
def test_of_an_overlay_with_huge_bitmaps(huge: pathlib.Path, policy: str) -> None:
    answer, size, memory = run(huge, "qcow2_commit", path="bitmaps", bitmaps=policy, drop=True)
    if policy == "refuse":
        assert answer["error_code"] == "has_bitmaps"
    else:
        assert answer["bitmap_count"] == huge_images.BITMAPS
        assert len(answer["bitmaps"]) == 300
    assert size < RETURNED
    assert memory < 200 * MIB


def test_of_a_chain_with_huge_layers(huge: pathlib.Path) -> None:
    answer, size, memory = run(huge, "qcow2_chain", layers=["base", "bitmaps"])
    assert answer["changed"] is False
    assert size < RETURNED
    assert memory < 200 * MIB


@pytest.mark.parametrize("image", ["snapshots", "bitmaps"])
def test_all_of_ansible_is_bounded(huge: pathlib.Path, image: str) -> None:
    task = ["localhost", "-m", "airlock.images.qcow2_info", "-a", f"path={huge / image}"]
    interpreter = json.dumps({"ansible_python_interpreter": sys.executable})
    ansible = [sys.executable, "-m", "ansible", "adhoc", *task, "-e", interpreter]
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(huge / "tree"), "ANSIBLE_HOME": str(huge)}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", GREATEST, *ansible], cwd=huge, env=environment, capture_output=True, check=True
    )
    memory, code, printed = map(int, done.stdout.split())
    assert code == 0, done.stderr
    assert printed < 4 * RETURNED  # indented, and in UTF-8
    assert memory * 1024 < 300 * MIB


# ---- the room for records ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bounded(collection_tree: None) -> t.Any:
    return importlib.import_module(f"{PLUGINS}.module_utils._module.bounded")


@pytest.fixture(scope="module")
def diffs(collection_tree: None) -> t.Any:
    return importlib.import_module(f"{PLUGINS}.module_utils._module.diffs")


@given(records=st.lists(st.text(max_size=40), max_size=30), limit=st.integers(0, 40), images=st.integers(1, 100))
def test_room(bounded: t.Any, records: list[str], limit: int, images: int) -> None:
    kept = bounded.Room(images, limit).last_of(records, str)
    assert kept == records[len(records) - min(limit, len(records)) :]


def test_room_is_divided(bounded: t.Any) -> None:
    """An image has what its list of images leaves it, and the lists of one image share that."""
    records = ["x" * 1000] * 100_000

    def bytes_of(images: int, **options: t.Any) -> int:
        return len(json.dumps(bounded.Room(images, len(records)).last_of(records, str, **options)))

    assert bounded.RECORD_BYTES * 0.99 < bytes_of(1) * 2 <= bounded.RECORD_BYTES + 2  # once more at the top
    assert bounded.RECORD_BYTES * 0.99 < bytes_of(2) * 2 <= bounded.RECORD_BYTES + 4
    assert bytes_of(1000) <= bounded.LEAST_BYTES
    assert bytes_of(1, share=0.5) * 2 <= bounded.RECORD_BYTES / 2 + 2
    assert bytes_of(1, row=str) * 4 <= bounded.RECORD_BYTES + 4


@given(
    before=st.lists(st.integers(0, 3), max_size=300),
    cut=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    new=st.lists(st.integers(0, 3), max_size=3),
)
def test_a_diff_shows_what_differs(diffs: t.Any, before: list[int], cut: tuple[int, int], new: list[int]) -> None:
    """What the first side has and the second has not can be put together again from the lines."""
    first, last = sorted(cut)
    after = before[:first] + new + before[last:]
    sides = diffs.both_sides(before, after, str, 1)

    def whole(lines: list[str]) -> list[int] | None:
        numbers: list[int] = []
        for at, line in enumerate(lines):
            if "in front" in line:
                numbers += before[: int(line[1:].split()[0])]
            elif "behind" in line:
                numbers += before[len(before) - int(line[1:].split()[0]) :]
            elif "more" in line:
                assert at == diffs.DIFF_LINES + ("in front" in lines[0])
                return None
            else:
                numbers.append(int(line))
        return numbers

    for lines, records in zip(sides, (before, after)):
        assert whole(lines) in (records, None)
        assert len(lines) <= diffs.DIFF_LINES + 3
    if before != after:
        assert sides[0] != sides[1]


def test_an_ordinary_image_has_its_records_where_they_are_documented(
    run_module: t.Callable[..., dict[str, t.Any]], script: Script
) -> None:
    listed = script.listed(*(script.snapshot(number, b"s%d" % number) for number in range(300)))
    script.expect("open", "a", True, False).expect("list_snapshots", "a", gives=listed).expect("close", "a")
    answer = run_module("qcow2_snapshot", path="a", name="s7", diff=True)
    assert answer["snapshots"] == answer["images"][0]["snapshots"]
    assert answer["listing"] == answer["images"][0]["listing"]
    assert (len(answer["snapshots"]), answer["listing"].count("\n")) == (300, 302)
    assert (answer["truncated"], answer["images"][0]["snapshot_count"]) == (False, 300)


@pytest.mark.parametrize("limit", [-1, 65537, 1 << 40])
@pytest.mark.parametrize("module", ["qcow2_info", "qcow2_snapshot", "qcow2_bitmap"])
def test_a_limit_that_is_none(run_module: t.Callable[..., dict[str, t.Any]], module: str, limit: int) -> None:
    options = {} if module == "qcow2_info" else {"name": "n"}
    answer = run_module(module, path="nothing", limit=limit, **options)
    assert (answer["failed"], answer["error_code"]) == (True, "bad_limit")
    assert str(limit) in answer["msg"]
