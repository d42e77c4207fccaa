# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qcow2_snapshot's option retention: which snapshots stay, what is asked of the sandbox, and what is answered."""

from __future__ import annotations

import importlib
import subprocess
import sys
import typing as t

import pytest

from tests.unit.plugins.running import PLUGINS
from tests.unit.plugins.scripted import Script

DATE = (1_700_000_000, 5)  # the time of the tasks
DAY = 86400
Run = t.Callable[..., dict[str, t.Any]]


@pytest.fixture
def run(run_module: Run) -> Run:
    return lambda **arguments: run_module("qcow2_snapshot", **arguments)


@pytest.fixture
def retention(collection_tree: None) -> t.Any:
    return importlib.import_module(f"{PLUGINS}.module_utils._module.snapshot.retention")


def aged(script: Script, number: int, name: bytes, age: int, nanoseconds: int = 0) -> t.Any:
    """A snapshot that is `age` seconds and `nanoseconds` old."""
    total = (DATE[0] - age) * 1_000_000_000 + DATE[1] - nanoseconds
    seconds, rest = divmod(total, 1_000_000_000)
    return script.snapshot(number, name)._replace(date_seconds=seconds, date_nanoseconds=rest)


# (keep, max_age, name, creates, [(name, age in seconds)...], what goes, by index)
Table = list[tuple[t.Optional[int], t.Optional[str], bytes, bool, list[tuple[bytes, int]], list[int]]]
CASES: Table = [
    (2, None, b"", False, [(b"n-1", 3), (b"n-2", 2), (b"n-3", 1)], [0]),
    (3, None, b"", False, [(b"n-1", 3), (b"n-2", 2), (b"n-3", 1)], []),
    (9, None, b"", False, [(b"n-1", 3)], []),
    (1, None, b"", False, [], []),
    # Names without the prefix neither go nor count.
    (1, None, b"", False, [(b"n-1", 3), (b"other", 2), (b"N-2", 2), (b" n-3", 2), (b"n-4", 1), (b"m", 0)], [0]),
    # The one that is about to be created counts, if its name has the prefix.
    (2, None, b"n-4", True, [(b"n-1", 3), (b"n-2", 2), (b"n-3", 1)], [0, 1]),
    (1, None, b"n-4", True, [(b"n-1", 3), (b"n-2", 2)], [0, 1]),
    (2, None, b"other", True, [(b"n-1", 3), (b"n-2", 2), (b"n-3", 1)], [0]),
    # One that is there and is named stays, wherever it is, all of that name.
    (1, None, b"n-1", False, [(b"n-1", 3), (b"n-2", 2), (b"n-1", 2), (b"n-3", 1)], [1]),
    # The last ones by the table, whatever their dates.
    (2, None, b"", False, [(b"n-1", -DAY), (b"n-2", 9 * DAY), (b"n-3", DATE[0])], [0]),
    (1, None, b"", False, [(b"n-1", 5), (b"n-2", 5), (b"n-3", 5)], [0, 1]),
    # By age: exactly as old as that is too old, the future is young.
    (None, "10s", b"", False, [(b"n-1", 11), (b"n-2", 10), (b"n-3", 9), (b"n-4", -100)], [0, 1]),
    (None, "2m", b"", False, [(b"n-1", 121), (b"n-2", 119)], [0]),
    (None, "2h", b"", False, [(b"n-1", 7201), (b"n-2", 7199)], [0]),
    (None, "2d", b"", False, [(b"n-1", 2 * DAY + 1), (b"n-2", 2 * DAY - 1)], [0]),
    (None, "2w", b"", False, [(b"n-1", 14 * DAY + 1), (b"n-2", 14 * DAY - 1)], [0]),
    (None, "1s", b"n-9", True, [(b"n-1", 2), (b"other", 99), (b"n-2", 2)], [0, 2]),
    (None, "1s", b"n-1", False, [(b"n-1", 2), (b"n-2", 2)], [1]),
    # What either keeps stays.
    (1, "10s", b"", False, [(b"n-1", 30), (b"n-2", 5), (b"n-3", 20), (b"n-4", 30)], [0, 2]),
    (3, "10s", b"", False, [(b"n-1", 5), (b"n-2", 30), (b"n-3", 20), (b"n-4", 30)], []),
]


@pytest.mark.parametrize(("keep", "max_age", "name", "creates", "there", "goes"), CASES)
def test_what_goes(
    script: Script,
    retention: t.Any,
    keep: int | None,
    max_age: str | None,
    name: bytes,
    creates: bool,
    there: list[tuple[bytes, int]],
    goes: list[int],
) -> None:
    snapshots = tuple(aged(script, number, *snapshot) for number, snapshot in enumerate(there))
    wanted = retention.Retention({"prefix": "n-", "keep": keep, "max_age": max_age}, "present", name, 255)
    assert wanted.outdated(snapshots, creates, DATE) == tuple(snapshots[number] for number in goes)


def test_ages_are_told_to_the_nanosecond(script: Script, retention: t.Any) -> None:
    snapshots = (aged(script, 1, b"n-1", 9, 1_000_000_000), aged(script, 2, b"n-2", 9, 999_999_999))
    wanted = retention.Retention({"prefix": "n-", "keep": None, "max_age": "10s"}, "present", b"", 255)
    assert wanted.outdated(snapshots, False, DATE) == snapshots[:1]


def test_a_prefix_is_bytes(script: Script, retention: t.Any) -> None:
    snapshots = tuple(
        script.snapshot(number, name) for number, name in enumerate([b"\xc3\xa4\xff", b"\xc3", b"\xc3\xa4"])
    )
    wanted = retention.Retention({"prefix": "ä", "keep": 1, "max_age": None}, "present", b"", 255)
    assert wanted.outdated(snapshots, False, DATE) == snapshots[:1]


BAD: list[tuple[dict[str, t.Any], str]] = [
    ({"prefix": "", "keep": 1}, "bad_retention"),
    ({"prefix": "n-", "keep": 0}, "bad_retention"),
    ({"prefix": "n-", "keep": None}, "bad_retention"),
    ({"prefix": "n-", "keep": None, "max_age": None}, "bad_retention"),
    ({"prefix": "n-", "keep": -1}, "bad_retention"),
    ({"prefix": "n-\n", "keep": 1}, "control_character"),
    ({"prefix": "n" * 256, "keep": 1}, "name_too_long"),
    *(
        ({"prefix": "n-", "max_age": age}, "bad_retention")
        for age in ("", "0", "7", "0d", "-1", "1.5h", "7 d", "1y", "d", "1d12h")
    ),
]


@pytest.mark.parametrize(("option", "code"), BAD)
@pytest.mark.parametrize("name", [{"name": "n-1"}, {}])
def test_a_bad_retention_is_refused_before_any_file_is_opened(
    run: Run, script: Script, option: dict[str, t.Any], code: str, name: dict[str, str]
) -> None:
    answer = run(path="a", retention=option, **name)
    assert (answer["rc"], answer["error_code"]) == (1, code)
    assert answer["msg"].isprintable()


@pytest.mark.parametrize("state", ["absent", "applied"])
@pytest.mark.parametrize("name", [{"name": "n-1"}, {}])
def test_retention_belongs_to_present(run: Run, script: Script, state: str, name: dict[str, str]) -> None:
    answer = run(path="a", state=state, retention={"prefix": "n-", "keep": 1}, **name)
    assert (answer["rc"], answer["error_code"]) == (1, "bad_retention")


@pytest.mark.parametrize("option", [{"prefix": "n-"}, {"keep": 1}, {"max_age": "7d"}])
def test_retention_needs_a_prefix_and_a_measure(run: Run, script: Script, option: dict[str, t.Any]) -> None:
    answer = run(path="a", name="n-1", retention=option)
    assert (answer["rc"], "error_code" in answer) == (1, False)  # Ansible's own words


def by_id(script: Script, number: int, name: bytes) -> t.Any:
    return script.operations.Selector.by_id(b"%d" % number, name)


def test_what_is_new_comes_before_what_goes(run: Run, script: Script) -> None:
    one, two, other, new = (script.snapshot(n, name) for n, name in enumerate([b"n-1", b"n-2", b"x", b"n-3"], 1))
    script.expect("open", "a", True, False).expect("list_snapshots", "a", gives=script.listed(one, two, other))
    script.expect("begin", "a")
    script.expect("create_snapshot", "a", b"n-3", DATE, gives=script.created(4, one, two, other, new))
    script.expect("delete_snapshot", "a", by_id(script, 1, b"n-1"), gives=script.deleted(two, other, new))
    script.expect("delete_snapshot", "a", by_id(script, 2, b"n-2"), gives=script.deleted(other, new, leaked=3))
    script.expect("keep").expect("close", "a")
    answer = run(path="a", name="n-3", retention={"prefix": "n-", "keep": 1}, diff=True)
    (image,) = answer["images"]
    assert answer["changed"]
    assert [snapshot["name"] for snapshot in image["removed"]] == ["n-1", "n-2"]
    assert [snapshot["name"] for snapshot in image["snapshots"]] == ["x", "n-3"]
    assert image["leaked_clusters"] == 3
    assert "snapshot 1: n-1" in answer["diff"][0]["before"]
    assert "n-1" not in answer["diff"][0]["after"]


@pytest.mark.parametrize("name", [{"name": "n-2"}, {}])
def test_it_deletes_when_nothing_is_created(run: Run, script: Script, name: dict[str, str]) -> None:
    one, two = script.snapshot(1, b"n-1"), script.snapshot(2, b"n-2")
    script.expect("open", "a", True, False).expect("list_snapshots", "a", gives=script.listed(one, two))
    script.expect("begin", "a").expect("delete_snapshot", "a", by_id(script, 1, b"n-1"), gives=script.deleted(two))
    script.expect("keep").expect("close", "a")
    answer = run(path="a", retention={"prefix": "n-", "keep": 1}, **name)
    assert answer["changed"]
    assert [snapshot["id"] for snapshot in answer["images"][0]["removed"]] == ["1"]


@pytest.mark.parametrize("name", [{"name": "n-2"}, {}])
def test_nothing_to_do(run: Run, script: Script, name: dict[str, str]) -> None:
    one, two = script.snapshot(1, b"n-1"), script.snapshot(2, b"n-2")
    script.expect("open", "a", True, False).expect("list_snapshots", "a", gives=script.listed(one, two))
    script.expect("close", "a")
    answer = run(path="a", retention={"prefix": "n-", "keep": 2}, diff=True, **name)
    assert (answer["changed"], answer["images"][0]["removed"]) == (False, [])
    assert answer["diff"][0]["before"] == answer["diff"][0]["after"]


def test_check_mode_predicts(run: Run, script: Script) -> None:
    one, two = script.snapshot(1, b"n-1"), script.snapshot(2, b"n-2")
    script.expect("open", "a", False, False).expect("list_snapshots", "a", gives=script.listed(one, two))
    script.expect("close", "a")
    answer = run(path="a", name="n-3", retention={"prefix": "n-", "keep": 2}, check=True, diff=True)
    (image,) = answer["images"]
    assert answer["changed"]
    assert [(snapshot["id"], snapshot["name"]) for snapshot in answer["snapshots"]] == [("2", "n-2"), (None, "n-3")]
    assert [snapshot["name"] for snapshot in image["removed"]] == ["n-1"]
    assert "n-1" not in answer["diff"][0]["after"]
    assert "snapshot (new): n-3" in answer["diff"][0]["after"]


def test_check_mode_predicts_without_a_name(run: Run, script: Script) -> None:
    one, two = script.snapshot(1, b"n-1"), script.snapshot(2, b"n-2")
    script.expect("open", "a", False, True).expect("list_snapshots", "a", gives=script.listed(one, two))
    script.expect("close", "a")
    answer = run(path="a", retention={"prefix": "n-", "keep": 1}, check=True, force_share=True)
    assert [snapshot["id"] for snapshot in answer["snapshots"]] == ["2"]


def test_a_task_without_retention_does_not_speak_of_it(run: Run, script: Script) -> None:
    script.expect("open", "a", True, False).expect("list_snapshots", "a", gives=script.listed(script.snapshot(1, b"s")))
    script.expect("close", "a")
    assert "removed" not in run(path="a", name="s")["images"][0]


def test_a_task_without_retention_does_not_load_it(collection_tree: None) -> None:
    code = f"import sys, {PLUGINS}.modules.qcow2_snapshot; print([name for name in sys.modules if 'retention' in name])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={"PYTHONPATH": sys.path[0]}, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


# Whether the deletion that fails says that it wrote: image b was written to before it in any case.
@pytest.mark.parametrize("modified", [False, True])
def test_a_deletion_that_fails_undoes_the_group(run: Run, script: Script, errors: t.Any, modified: bool) -> None:
    failure = errors.NoSpaceError("b: it failed.", "some_code")
    failure.modified = modified
    old, new = script.snapshot(1, b"n-1"), script.snapshot(2, b"n-2")
    for path in "ab":
        script.expect("open", path, True, False)
    for path in "ab":
        script.expect("list_snapshots", path, gives=script.listed(old))
    script.expect("begin", "a", "b")
    script.expect("create_snapshot", "a", b"n-2", DATE, gives=script.created(2, old, new))
    script.expect("delete_snapshot", "a", by_id(script, 1, b"n-1"), gives=script.deleted(new))
    script.expect("create_snapshot", "b", b"n-2", DATE, gives=script.created(2, old, new))
    script.expect("delete_snapshot", "b", by_id(script, 1, b"n-1"), gives=failure)
    script.expect("undo").expect("close", "b").expect("close", "a")
    answer = run(path=["a", "b"], name="n-2", retention={"prefix": "n-", "keep": 1})
    assert answer["error_code"] == "some_code"
    assert [entry["outcome"] for entry in answer["outcomes"]] == ["undone", "undone"]


def test_the_time_is_one_for_all_operations(run: Run, script: Script) -> None:
    one, two, three = (script.snapshot(n, b"n-%d" % n) for n in (1, 2, 3))
    script.expect("open", "a", True, False).expect("list_snapshots", "a", gives=script.listed(one, two, three))
    script.expect("begin", "a")
    script.expect("delete_snapshot", "a", by_id(script, 1, b"n-1"), gives=script.deleted(two, three))
    script.expect("delete_snapshot", "a", by_id(script, 2, b"n-2"), gives=script.deleted(three))
    script.expect("keep").expect("close", "a")
    run(path="a", retention={"prefix": "n-", "keep": 1}, timeout=10)
    assert script.seconds == pytest.approx([10, 10 - 0.0025, 10 - 0.005])
