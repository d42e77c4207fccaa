# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of ours: a module fails as it always does, and leaves the images as they were."""

from __future__ import annotations

import errno
import importlib
import os
import pathlib
import signal
import typing as t

import pytest
from ansible.module_utils._internal import _traceback

from tests.unit.plugins.chains import overlay
from tests.unit.plugins.running import PLUGINS

Run = t.Callable[..., dict[str, t.Any]]
FLOW = f"{PLUGINS}.module_utils._module"


class OurFault(Exception):
    pass


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ANSIBLE_DISPLAY_TRACEBACK=error."""
    monkeypatch.setattr(_traceback, "_is_traceback_enabled", lambda *_arguments: True)


@pytest.fixture
def images(tmp_path: pathlib.Path) -> list[str]:
    for name in "abc":
        overlay(tmp_path, name, None, "write -P 1 0 700k")
    return [str(tmp_path / name) for name in "abc"]


def contents(paths: list[str]) -> list[bytes]:
    return [pathlib.Path(path).read_bytes() for path in paths]


def broken(function: t.Callable[..., t.Any], path: str, seen: list[bytes] | None = None) -> t.Callable[..., t.Any]:
    """The function, which fails when it has done what it is for, with the image of that path. seen: gets what the image
    is then."""

    def wrapper(subject: t.Any, *arguments: t.Any, **options: t.Any) -> t.Any:
        answer = function(subject, *arguments, **options)
        if subject.path == path:
            if seen is not None:
                seen.extend(contents([path]))
            raise OurFault("no\x1b luck")
        return answer

    return wrapper


def is_told(answer: dict[str, t.Any]) -> bool:
    assert (answer["rc"], answer["error_code"]) == (1, "internal_error"), answer
    assert answer["msg"].startswith("A fault of airlock.images itself: OurFault: no")
    assert "-vvv" in answer["msg"]
    assert "\x1b" not in answer["msg"]
    return "in wrapper" in answer["exception"] and "OurFault" in answer["exception"]


@pytest.mark.parametrize("module", ["qcow2_snapshot", "qcow2_bitmap"])
def test_a_group_is_undone(run_module: Run, monkeypatch: pytest.MonkeyPatch, images: list[str], module: str) -> None:
    before = contents(images)
    written: list[bytes] = []
    if module == "qcow2_snapshot":
        change = importlib.import_module(f"{FLOW}.snapshot.carry_out")
        monkeypatch.setattr(change, "carry_out", broken(change.carry_out, images[2], written))
    else:
        plan = importlib.import_module(f"{FLOW}.bitmap.flow").BitmapPlan
        monkeypatch.setattr(plan, "carry_out", broken(plan.carry_out, images[2], written))
    answer = run_module(module, path=images, name="new")
    assert is_told(answer)
    assert {each["path"]: each["outcome"] for each in answer["outcomes"]}[images[2]] == "undone"
    assert {each["outcome"] for each in answer["outcomes"]} <= {"undone", "untouched"}
    assert "What was done has been undone" in answer["msg"]
    assert contents(images) == before
    assert len(written) == 1
    assert written[0] != before[2], "it had been written to"


def test_before_anything_is_written(run_module: Run, monkeypatch: pytest.MonkeyPatch, images: list[str]) -> None:
    before = contents(images)
    snapshot = importlib.import_module(f"{FLOW}.snapshot.flow")
    plan = snapshot.SnapshotPlan
    monkeypatch.setattr(plan, "read", broken(plan.read, images[1]))
    answer = run_module("qcow2_snapshot", path=images, name="new")
    assert is_told(answer)
    assert [each["outcome"] for each in answer["outcomes"]] == ["untouched"] * 3
    assert "No image was changed" in answer["msg"]
    assert contents(images) == before


def test_when_all_is_done(run_module: Run, monkeypatch: pytest.MonkeyPatch, images: list[str]) -> None:
    """What is kept is not said to be as it was."""
    snapshot = importlib.import_module(f"{FLOW}.snapshot.flow")

    def wrapper(*_arguments: object) -> t.NoReturn:
        raise OurFault("no\x1b luck")

    monkeypatch.setattr(snapshot, "_image_record", wrapper)
    answer = run_module("qcow2_snapshot", path=images, name="new")
    assert is_told(answer)
    assert "All images were changed as the task says" in answer["msg"]
    assert "outcomes" not in answer
    monkeypatch.undo()
    assert run_module("qcow2_snapshot", path=images, name="new")["changed"] is False
    # And of one that found nothing to do it is not said.
    monkeypatch.setattr(snapshot, "_image_record", wrapper)
    assert "were changed" not in run_module("qcow2_snapshot", path=images, name="new")["msg"]


def test_what_cannot_be_undone(run_module: Run, monkeypatch: pytest.MonkeyPatch, images: list[str]) -> None:
    change = importlib.import_module(f"{FLOW}.snapshot.carry_out")
    journal = importlib.import_module(f"{PLUGINS}.module_utils.sandbox.vmm.journal")
    monkeypatch.setattr(change, "carry_out", broken(change.carry_out, images[0]))

    def fail(_journal: object) -> t.NoReturn:
        raise OSError(errno.EIO, "no disk")

    monkeypatch.setattr(journal.UndoJournal, "undo", fail)
    answer = run_module("qcow2_snapshot", path=images[0], name="new")
    assert (answer["rc"], answer["error_code"]) == (1, "transaction")
    assert answer["outcomes"] == [{"path": images[0], "outcome": "unknown"}]
    assert answer["msg"].startswith("A fault of airlock.images itself: OurFault: no")


def test_a_list_is_read_all_the_same(run_module: Run, monkeypatch: pytest.MonkeyPatch, images: list[str]) -> None:
    info = importlib.import_module(f"{FLOW}.info")
    monkeypatch.setattr(info, "_image_record", broken(info._image_record, images[1]))
    assert is_told(run_module("qcow2_info", path=images))
    answer = run_module("qcow2_info", path=images, fail_on="none")
    assert [each.get("error_code") for each in answer["images"]] == [None, "internal_error", None]


@pytest.mark.parametrize("fail_on", ["any", "none"])
def test_a_list_that_is_told_to_end(
    run_module: Run, monkeypatch: pytest.MonkeyPatch, images: list[str], fail_on: str
) -> None:
    """It is no fault of an image, which fail_on could have the task pass over."""
    info = importlib.import_module(f"{FLOW}.info")

    def told(*_arguments: object) -> t.NoReturn:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it was told before")

    monkeypatch.setattr(info, "_image_record", told)
    answer = run_module("qcow2_info", path=images[:1], fail_on=fail_on)
    assert (answer["rc"], answer["error_code"]) == (1, "terminated")


@pytest.mark.parametrize(
    ("module", "arguments", "place", "name"),
    [
        ("qcow2_commit", {"path": "top"}, "commit.flow", "CommitTask"),
        ("qcow2_chain", {"layers": ["base", "top"]}, "chain.flow", "ChainTask"),
        ("trusted_file", {"files": [{"path": "x", "content": "y"}]}, "trusted_file", "os"),
    ],
)
def test_each_module_tells(
    run_module: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    module: str,
    arguments: dict[str, t.Any],
    place: str,
    name: str,
) -> None:
    overlay(tmp_path, "base", None)
    overlay(tmp_path, "top", "base", "write -P 4 1M 900k")
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(importlib.import_module(f"{FLOW}.{place}"), name, None)
    answer = run_module(module, **arguments)
    assert (answer["rc"], answer["error_code"]) == (1, "internal_error"), answer
    assert "Traceback" in answer["exception"]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "too many"), "LimitNOFILE"),
        (OSError(errno.ENOSPC, "full"), "Free some space"),
        (MemoryError(), "out of memory"),
    ],
)
def test_what_the_system_refuses_is_no_fault_of_ours(
    run_module: Run, monkeypatch: pytest.MonkeyPatch, images: list[str], error: Exception, words: str
) -> None:
    def fail(*_arguments: object) -> t.NoReturn:
        raise error

    monkeypatch.setattr(importlib.import_module(f"{FLOW}.snapshot.flow").SnapshotPlan, "read", fail)
    answer = run_module("qcow2_snapshot", path=images[0], name="new")
    assert (answer["error_code"], words in answer["msg"]) == ("host", True), answer
    assert "fault" not in answer["msg"]


@pytest.mark.parametrize("code", ["internal_error", "terminated"])
def test_files_are_written_all_or_none(
    run_module: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, code: str
) -> None:
    """A signal, which is no OSError either, comes between two files."""
    flow = importlib.import_module(f"{FLOW}.trusted_file")
    ending = importlib.import_module(f"{PLUGINS}.module_utils.sandbox.host.ending")
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    replace = flow.TrustedPath.replace
    seen: list[str] = []

    def wrapper(place: t.Any, content: bytes) -> None:
        replace(place, content)
        if place.path.endswith("b") and not seen:
            seen.append((tmp_path / "a").read_text())
            raise OurFault if code == "internal_error" else ending.EndedError(15)

    monkeypatch.setattr(flow.TrustedPath, "replace", wrapper)
    paths = [str(tmp_path / name) for name in ("new/a", "a", "b")]
    answer = run_module("trusted_file", state="present", files=[{"path": path, "content": "new"} for path in paths])
    assert (answer["rc"], answer["error_code"]) == (1, code), answer
    assert seen == ["new"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "old"}
