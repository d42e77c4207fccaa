# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qcow2_snapshot: what it asks of the sandbox in each situation, and what it answers."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t

import pytest

from tests.unit.plugins.scripted import Script

DATE = (1_700_000_000, 5)
Run = t.Callable[..., dict[str, t.Any]]


@pytest.fixture
def run(run_module: Run) -> Run:
    return lambda **arguments: run_module("qcow2_snapshot", **arguments)


def test_present_creates_a_missing_snapshot(run: Run, script: Script) -> None:
    old, new = script.snapshot(1, b"old"), script.snapshot(2, b"new")
    script.expect("open", "a", True, False).expect("list_snapshots", "a", gives=script.listed(old))
    script.expect("begin", "a").expect("create_snapshot", "a", b"new", DATE, gives=script.created(2, old, new))
    script.expect("keep").expect("close", "a")
    answer = run(path="a", name="new")
    assert answer["rc"] == 0
    assert answer["changed"]
    assert [snapshot["name"] for snapshot in answer["snapshots"]] == ["old", "new"]
    assert answer["snapshots"][1] == {
        "id": "2",
        "name": "new",
        "date": {"seconds": 1_600_000_002, "nanoseconds": 7, "iso8601": "2020-09-13T12:26:42.000000007Z"},
        "vm_state_size": 0,
        "vm_clock": 0,
        "icount": 0,
        "disk_size": 1 << 20,
    }
    assert answer["listing"].splitlines()[0] == "Snapshot list:"
    assert answer["images"][0]["leaked_clusters"] == 0
    assert answer["sandbox"] == {"layers": ["kvm", "seccomp"], "exits": 6, "memory": 0, "milliseconds": 5.0}


def test_present_leaves_an_existing_snapshot(run: Run, script: Script) -> None:
    script.expect("open", "a", True, False)
    script.expect("list_snapshots", "a", gives=script.listed(script.snapshot(1, b"s"), script.snapshot(2, b"s")))
    script.expect("close", "a")
    answer = run(path="a", name="s", diff=True)
    assert (answer["rc"], answer["changed"]) == (0, False)
    assert answer["diff"][0]["before"] == answer["diff"][0]["after"]
    assert answer["images"][0]["leaked_clusters"] is None


def test_present_in_check_mode_predicts(run: Run, script: Script) -> None:
    script.expect("open", "a", False, False).expect("list_snapshots", "a", gives=script.listed()).expect("close", "a")
    answer = run(path="a", name="new", check=True, diff=True)
    assert answer["changed"]
    (snapshot,) = answer["snapshots"]
    assert (snapshot["id"], snapshot["name"], snapshot["disk_size"]) == (None, "new", 1 << 20)
    assert snapshot["date"] == {"seconds": None, "nanoseconds": None, "iso8601": None}
    assert "new" in answer["listing"]
    assert answer["diff"] == [
        {
            "before_header": "a",
            "after_header": "a",
            "before": "disk size: 1048576 bytes\n",
            "after": "disk size: 1048576 bytes\nsnapshot (new): new, date not known yet, 1048576 bytes\n",
        }
    ]


def test_what_a_diff_is_of_has_no_control_characters(run: Run, script: Script) -> None:
    """Ansible prints it as it is. What the result says of the image is its name, to go on with."""
    path = "x\x1b[31m\nok: [forged]"
    script.expect("open", path, False, False).expect("list_snapshots", path, gives=script.listed())
    script.expect("close", path)
    answer = run(path=path, name="new", check=True, diff=True)
    assert answer["images"][0]["path"] == path
    (diff,) = answer["diff"]
    assert diff["before_header"] == diff["after_header"] == "x\ufffd[31m\ufffdok: [forged]"


def test_what_any_diff_is_of_is_cleaned() -> None:
    source = pathlib.Path(__file__).resolve().parents[4] / "plugins/module_utils/_module"
    lines = [line for path in source.rglob("*.py") for line in path.read_text().splitlines() if '_header": ' in line]
    assert len(lines) >= 10
    assert all("errors.clean(" in line for line in lines)


def test_absent_deletes_exactly_what_was_found(run: Run, script: Script, operations: t.Any) -> None:
    first, second = script.snapshot(1, b"s"), script.snapshot(2, b"s")
    script.expect("open", "a", True, False).expect("list_snapshots", "a", gives=script.listed(first, second))
    script.expect("begin", "a")
    script.expect("delete_snapshot", "a", operations.Selector.by_id(b"2", b"s"), gives=script.deleted(first, leaked=4))
    script.expect("keep").expect("close", "a")
    answer = run(path="a", name="s", snapshot_id="2", state="absent")
    assert answer["changed"]
    assert [snapshot["id"] for snapshot in answer["snapshots"]] == ["1"]
    assert answer["images"][0]["leaked_clusters"] == 4
    (warning,) = answer["warnings"]
    assert "a: 4 clusters are leaked" in str(warning)  # a string or a structure, as the version of ansible-core has it


def test_absent_in_check_mode(run: Run, script: Script) -> None:
    script.expect("open", "a", False, True)
    script.expect("list_snapshots", "a", gives=script.listed(script.snapshot(1, b"s"), script.snapshot(2, b"t")))
    script.expect("close", "a")
    answer = run(path="a", name="s", state="absent", force_share=True, check=True)
    assert answer["changed"]
    assert [snapshot["name"] for snapshot in answer["snapshots"]] == ["t"]


@pytest.mark.parametrize("choice", [{"name": "t"}, {"snapshot_id": "2"}, {"name": "s", "snapshot_id": "2"}])
def test_absent_without_such_a_snapshot(run: Run, script: Script, choice: dict[str, str]) -> None:
    script.expect("open", "a", True, False)
    script.expect("list_snapshots", "a", gives=script.listed(script.snapshot(1, b"s"))).expect("close", "a")
    answer = run(path="a", state="absent", **choice)
    assert (answer["rc"], answer["changed"]) == (0, False)


def test_applied_rolls_back(run: Run, script: Script, operations: t.Any) -> None:
    snapshot = script.snapshot(1, b"s", disk_size=2 << 20)
    selector = operations.Selector.by_id(b"1", b"s")
    script.expect("open", "a", True, False).expect("list_snapshots", "a", gives=script.listed(snapshot))
    script.expect("compare_snapshot", "a", selector, gives=script.compared(17, 2 << 20, same_size=False))
    script.expect("begin", "a")
    script.expect(
        "apply_snapshot", "a", selector, True, gives=script.applied(snapshot, virtual_size=2 << 20, resized=True)
    )
    script.expect("keep").expect("close", "a")
    answer = run(path="a", name="s", state="applied", allow_resize=True, diff=True)
    image = answer["images"][0]
    assert (answer["changed"], image["virtual_size"], image["differing_clusters"]) == (True, 2 << 20, 17)
    before, after = answer["diff"][0]["before"], answer["diff"][0]["after"]
    assert "disk size: 1048576 bytes\nactive state: differs from snapshot 's' in 17 clusters\n" in before
    assert "disk size: 2097152 bytes\nactive state: equals snapshot 's'\n" in after


def test_applied_leaves_an_equal_disk(run: Run, script: Script, operations: t.Any) -> None:
    script.expect("open", "a", True, False)
    script.expect("list_snapshots", "a", gives=script.listed(script.snapshot(1, b"s")))
    selector = operations.Selector.by_id(b"1", b"s")
    script.expect("compare_snapshot", "a", selector, gives=script.compared(0)).expect("close", "a")
    answer = run(path="a", snapshot_id="1", state="applied", diff=True)
    assert (answer["rc"], answer["changed"]) == (0, False)
    assert answer["diff"][0]["before"] == answer["diff"][0]["after"]


REFUSALS_OF_APPLY: list[tuple[dict[str, t.Any], dict[str, t.Any], str]] = [
    ({"bitmap_count": 2}, {}, "has_bitmaps"),
    ({"bitmap_count": None}, {}, "bitmaps_extension"),
    ({}, {"disk_size": 2 << 20, "same_size": False}, "resize_not_allowed"),
    ({"version": 2}, {"disk_size": 2 << 20, "same_size": False, "allow": True}, "resize_v2"),
    ({}, {"disk_size": 2 << 20, "same_size": False, "allow": True}, ""),
    ({}, {}, ""),
]


@pytest.mark.parametrize(("facts", "situation", "code"), REFUSALS_OF_APPLY)
def test_applied_in_check_mode_foresees_refusals(
    run: Run, script: Script, operations: t.Any, facts: dict[str, t.Any], situation: dict[str, t.Any], code: str
) -> None:
    allow = situation.get("allow", False)
    sizes = {key: value for key, value in situation.items() if key != "allow"}
    script.expect("open", "a", False, False)
    script.expect("list_snapshots", "a", gives=script.listed(script.snapshot(1, b"s")))
    selector = operations.Selector.by_id(b"1", b"s")
    script.expect("compare_snapshot", "a", selector, gives=script.compared(1, **sizes))
    script.expect("image_info", "a", gives=script.info(**facts)).expect("close", "a")
    answer = run(path="a", name="s", state="applied", allow_resize=allow, check=True)
    assert answer.get("error_code", "") == code
    if not code:
        assert answer["changed"]
        assert answer["images"][0]["virtual_size"] == sizes.get("disk_size", 1 << 20)


def test_applied_needs_the_snapshot(run: Run, script: Script) -> None:
    script.expect("open", "a", True, False)
    script.expect("list_snapshots", "a", gives=script.listed(script.snapshot(1, b"other"))).expect("close", "a")
    answer = run(path="a", name="s", state="applied")
    assert (answer["rc"], answer["error_code"]) == (1, "snapshot_not_found")
    assert answer["msg"] == "a: there is no snapshot 's'. There are: 1 'other'."
    assert answer["outcomes"] == [{"path": "a", "outcome": "untouched"}]


@pytest.mark.parametrize("state", ["absent", "applied"])
def test_an_ambiguous_name_is_refused(run: Run, script: Script, state: str) -> None:
    script.expect("open", "a", True, False)
    script.expect("list_snapshots", "a", gives=script.listed(script.snapshot(1, b"s"), script.snapshot(4, b"s")))
    script.expect("close", "a")
    answer = run(path="a", name="s", state=state)
    assert (answer["rc"], answer["error_code"]) == (1, "ambiguous_name")
    assert "with the ids 1, 4" in answer["msg"]


BAD_ARGUMENTS: list[tuple[dict[str, t.Any], str]] = [
    ({"name": ""}, "empty_name"),
    ({"name": "é" * 128}, "name_too_long"),
    ({"snapshot_id": "1" * 128, "state": "absent"}, "name_too_long"),
    ({"name": "a\nb"}, "control_character"),
    ({"name": "a\x1b[2J"}, "control_character"),
    ({"name": "a\x85b"}, "control_character"),
    ({"name": "s", "snapshot_id": "1"}, "snapshot_id_with_present"),
    ({"name": "s", "force_share": True}, "force_share"),
    ({"name": "s", "path": []}, "no_images"),
    ({"name": "s", "timeout": 0}, "bad_timeout"),
]


@pytest.mark.parametrize(("arguments", "code"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused_before_any_file_is_opened(
    run: Run, script: Script, arguments: dict[str, t.Any], code: str
) -> None:
    answer = run(**{"path": "a", **arguments})
    assert (answer["rc"], answer["error_code"]) == (1, code)
    assert answer["msg"].isprintable()


@pytest.mark.parametrize("arguments", [{}, {"state": "absent"}, {"snapshot_id": "1"}])
def test_a_snapshot_must_be_named(run: Run, script: Script, arguments: dict[str, str]) -> None:
    answer = run(path="a", **arguments)
    assert answer["rc"] == 1
    assert "name" in answer["msg"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_one_file_named_twice_is_refused(
    run: Run, script: Script, tmp_path: t.Any, link: t.Callable[[t.Any, t.Any], None]
) -> None:
    (tmp_path / "a").touch()
    link(tmp_path / "a", tmp_path / "b")
    answer = run(path=[f"{tmp_path}/a", f"{tmp_path}/b"], name="s")
    assert answer["error_code"] == "duplicate_path"


def test_a_group_is_decided_before_it_is_changed(run: Run, script: Script) -> None:
    there, new = script.snapshot(1, b"s"), script.snapshot(1, b"s")
    for path in "abc":
        script.expect("open", path, True, False)
    script.expect("list_snapshots", "a", gives=script.listed())
    script.expect("list_snapshots", "b", gives=script.listed(there))
    script.expect("list_snapshots", "c", gives=script.listed())
    script.expect("begin", "a", "c")
    for path in "ac":
        script.expect("create_snapshot", path, b"s", DATE, gives=script.created(1, new))
    script.expect("keep").expect("close", "c").expect("close", "b").expect("close", "a")
    answer = run(path=["a", "b", "c"], name="s")
    assert answer["changed"]
    assert [(image["path"], image["changed"]) for image in answer["images"]] == [("a", True), ("b", False), ("c", True)]
    assert "snapshots" not in answer


def test_a_lock_conflict_in_a_group_comes_before_any_read(run: Run, script: Script, errors: t.Any) -> None:
    script.expect("open", "a", True, False)
    script.expect("open", "b", True, False, gives=errors.ImageInUseError("b is in use.", pids=[7]))
    script.expect("close", "a")
    answer = run(path=["a", "b"], name="s")
    assert (answer["error_code"], answer["pids"]) == ("in_use", [7])
    assert answer["msg"] == "b is in use. No image was changed: a, b."
    assert [entry["outcome"] for entry in answer["outcomes"]] == ["untouched", "untouched"]


def failing_group(script: Script, failure: Exception) -> None:
    """Three images; the second change fails."""
    for path in "abc":
        script.expect("open", path, True, False)
    for path in "abc":
        script.expect("list_snapshots", path, gives=script.listed())
    script.expect("begin", "a", "b", "c")
    script.expect("create_snapshot", "a", b"s", DATE, gives=script.created(1, script.snapshot(1, b"s")))
    script.expect("create_snapshot", "b", b"s", DATE, gives=failure)


FAILURES: list[tuple[str, bool, dict[str, str]]] = [
    ("NoSpaceError", False, {"a": "undone", "b": "untouched", "c": "untouched"}),
    ("ImageWriteError", True, {"a": "undone", "b": "undone", "c": "untouched"}),
    ("TimeLimitError", False, {"a": "undone", "b": "undone", "c": "untouched"}),
]


@pytest.mark.parametrize(("kind", "modified", "outcomes"), FAILURES)
def test_a_failure_in_a_group_undoes_what_was_done(
    run: Run, script: Script, errors: t.Any, kind: str, modified: bool, outcomes: dict[str, str]
) -> None:
    failure = getattr(errors, kind)("b: it failed.", "some_code")
    failure.modified = modified
    failing_group(script, failure)
    script.expect("undo").expect("close", "c").expect("close", "b").expect("close", "a")
    answer = run(path=["a", "b", "c"], name="s")
    assert answer["error_code"] == "some_code"
    assert {entry["path"]: entry["outcome"] for entry in answer["outcomes"]} == outcomes
    restored, untouched = (
        ", ".join(path for path, outcome in outcomes.items() if outcome == wanted) for wanted in ("undone", "untouched")
    )
    assert answer["msg"] == (
        "b: it failed. What was done has been undone, each image is as it was before. "
        f"Restored: {restored}. Not touched: {untouched}."
    )


def test_a_failing_undo_is_told(run: Run, script: Script, errors: t.Any) -> None:
    failing_group(script, errors.TimeLimitError("b: took too long."))
    script.expect("undo", gives=errors.TransactionError("a could not be restored."))
    script.expect("close", "c").expect("close", "b").expect("close", "a")
    answer = run(path=["a", "b", "c"], name="s")
    assert answer["error_code"] == "transaction"
    assert answer["msg"] == "b: took too long. a could not be restored."
    assert [entry["outcome"] for entry in answer["outcomes"]] == ["unknown", "unknown", "untouched"]


def test_each_image_has_its_own_time(run: Run, script: Script) -> None:
    script.expect("open", "a", False, False).expect("open", "b", False, False)
    for path in "ab":
        script.expect("list_snapshots", path, gives=script.listed(script.snapshot(1, b"s")))
        selector = script.operations.Selector.by_id(b"1", b"s")
        script.expect("compare_snapshot", path, selector, gives=script.compared(0))
    script.expect("close", "b").expect("close", "a")
    run(path=["a", "b"], name="s", state="applied", timeout=10, check=True)
    assert script.seconds == [10, 10 - 0.0025, 10, 10 - 0.0025]


def test_text_out_of_an_image_is_made_printable(run: Run, script: Script) -> None:
    script.expect("open", "a", False, False)
    script.expect("list_snapshots", "a", gives=script.listed(script.snapshot(1, b"\x1b[2J\xff\n")))
    script.expect("close", "a")
    answer = run(path="a", name="s", check=True, diff=True)
    assert answer["snapshots"][0]["name"] == "\ufffd[2J\ufffd\ufffd"
    texts = [answer["listing"], answer["diff"][0]["before"], answer["diff"][0]["after"]]
    assert all(line.isprintable() for text in texts for line in text.splitlines())


def test_a_missing_backend_is_told(
    run: Run, script: Script, image_module: t.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_module, "BACKEND", "no_such_backend")
    monkeypatch.setattr(image_module, "INTERPRETERS", ("/nonexistent/python3",))
    answer = run(path="a", name="s")
    assert answer["error_code"] == "no_cffi"
    assert "python3-cffi-backend" in answer["msg"]


def test_a_missing_backend_is_looked_for_elsewhere(
    run_module: Run, script: Script, image_module: t.Any, monkeypatch: pytest.MonkeyPatch, capsys: t.Any
) -> None:
    def respawn(interpreter: str) -> t.NoReturn:
        print(json.dumps({"respawned": interpreter}))
        raise SystemExit(0)

    monkeypatch.setattr(image_module, "BACKEND", "no_such_backend")
    monkeypatch.setattr(
        "ansible.module_utils.common.respawn.probe_interpreters_for_module", lambda paths, _name: paths[0]
    )
    monkeypatch.setattr("ansible.module_utils.common.respawn.respawn_module", respawn)
    assert run_module("qcow2_snapshot", path="a", name="s")["respawned"] == "/usr/bin/python3"
