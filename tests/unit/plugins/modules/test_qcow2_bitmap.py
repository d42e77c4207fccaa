# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qcow2_bitmap: what it asks of the sandbox in each situation, and what it answers."""

from __future__ import annotations

import os
import typing as t

import pytest

from tests.unit.plugins.scripted import Script

Run = t.Callable[..., dict[str, t.Any]]
RECORD = {
    "name": "b",
    "granularity": 65536,
    "recording": True,
    "in_use": False,
    "stale": False,
    "inconsistent": False,
    "dirty_bytes": 0,
    "dirty_count": 0,
}


@pytest.fixture
def run(run_module: Run) -> Run:
    return lambda **arguments: run_module("qcow2_bitmap", **{"name": "b", **arguments})


def changing(script: Script, path: str, before: t.Any, actions: list[t.Any], *after: t.Any) -> None:
    """One image that is read, tried and changed. before: the answer to the list; after: the bitmaps then."""
    script.expect("open", path, True, False).expect("list_bitmaps", path, gives=before)
    script.expect("change_bitmap", path, b"b", actions, True, gives=script.bitmaps_changed(*after))
    script.expect("begin", path).expect("change_bitmap", path, b"b", actions, gives=script.bitmaps_changed(*after))
    script.expect("keep").expect("close", path)


def unchanged(script: Script, before: t.Any) -> None:
    """One image where reading is enough."""
    script.expect("open", "a", True, False).expect("list_bitmaps", "a", gives=before).expect("close", "a")


def test_present_adds_a_missing_bitmap(run: Run, script: Script, bitmaps: t.Any) -> None:
    other, new = script.bitmap(b"other", dirty=3), script.bitmap(b"b")
    changing(script, "a", script.with_bitmaps(other), [bitmaps.Action.add(0)], other, new)
    answer = run(path="a")
    assert (answer["rc"], answer["changed"]) == (0, True)
    assert answer["bitmap"] == RECORD
    assert answer["bitmaps"] == [{**RECORD, "name": "other", "dirty_bytes": 196608, "dirty_count": 3}, RECORD]
    (image,) = answer["images"]
    assert (image["bitmap"], image["bitmaps"], image["bitmap_count"]) == (RECORD, answer["bitmaps"], 2)
    assert (image["virtual_size"], image["leaked_clusters"]) == (1 << 20, 0)
    assert answer["sandbox"] == {"layers": ["kvm", "seccomp"], "exits": 9, "memory": 0, "milliseconds": 7.5}


def test_present_leaves_what_is_there(run: Run, script: Script) -> None:
    unchanged(script, script.with_bitmaps(script.bitmap(b"b", dirty=2, recording=False)))
    answer = run(path="a", diff=True)
    assert (answer["rc"], answer["changed"]) == (0, False)
    assert answer["bitmap"]["dirty_count"] == 2
    assert answer["diff"][0]["before"] == answer["diff"][0]["after"]
    assert answer["images"][0]["leaked_clusters"] is None


ASKED: list[tuple[dict[str, t.Any], str]] = [
    ({"granularity": "64k"}, ""),
    ({"enabled": True}, ""),
    ({"cleared": True}, ""),
    ({"cleared": True, "enabled": True, "granularity": 65536, "recreate": True}, ""),
    ({"merge": ["b"]}, ""),
    ({"merge": [{"name": "gone", "ignore_missing": True}]}, ""),
]


@pytest.mark.parametrize(("options", "_unused"), ASKED)
def test_what_is_so_already_is_only_read(run: Run, script: Script, options: dict[str, t.Any], _unused: str) -> None:
    unchanged(script, script.with_bitmaps(script.bitmap(b"b")))
    assert run(path="a", **options)["changed"] is False


# What is there (None: nothing), what is asked for, and the actions, spelt as (verb, granularity or name).
WAYS: list[tuple[dict[str, t.Any] | None, dict[str, t.Any], list[tuple[t.Any, ...]]]] = [
    (None, {"granularity": "1M"}, [("add", 1 << 20)]),
    (None, {"enabled": True, "cleared": True}, [("add", 0)]),
    (None, {"enabled": False, "merge": ["x"]}, [("add", 0), ("merge", b"x"), ("disable",)]),
    ({"stale": True, "granularity": 4096}, {}, [("add", 0)]),
    ({"recording": False}, {"enabled": True}, [("enable",)]),
    ({}, {"enabled": False}, [("disable",)]),
    ({"dirty": 1}, {"cleared": True}, [("clear",)]),
    ({"dirty": 1}, {"cleared": True, "merge": ["x", "y"], "enabled": False}, "clear x y disable"),
    ({}, {"merge": ["x", "b", "x", {"name": "y"}]}, [("merge", b"x"), ("merge", b"y")]),
    ({"granularity": 4096}, {"granularity": "64k", "recreate": True}, [("remove",), ("add", 65536)]),
    ({"in_use": True, "granularity": 4096}, {"recreate": True}, [("remove",), ("add", 4096)]),
    ({"in_use": True}, {"recreate": True, "enabled": False}, [("remove",), ("add", 65536), ("disable",)]),
    ({"in_use": True}, {"state": "absent"}, [("remove",)]),
    ({"stale": True}, {"state": "absent"}, [("remove",)]),
    ({"dirty": 7}, {"state": "absent", "granularity": "1k", "enabled": True, "recreate": True}, [("remove",)]),
]


def spelt(bitmaps: t.Any, way: t.Any) -> list[t.Any]:
    if isinstance(way, str):
        verbs = {"clear": bitmaps.Action.clear(), "disable": bitmaps.Action.disable()}
        return [verbs.get(word) or bitmaps.Action.merge(word.encode()) for word in way.split()]
    return [getattr(bitmaps.Action, verb)(*rest) for verb, *rest in way]


@pytest.mark.parametrize(("there", "options", "way"), WAYS)
def test_the_way_from_what_is_there_to_what_is_asked(
    run: Run, script: Script, bitmaps: t.Any, there: dict[str, t.Any] | None, options: dict[str, t.Any], way: t.Any
) -> None:
    before = script.with_bitmaps(*([script.bitmap(b"b", **there)] if there is not None else []))
    changing(script, "a", before, spelt(bitmaps, way))
    assert run(path="a", **options)["changed"] is True


def test_the_guest_has_the_last_word(run: Run, script: Script, bitmaps: t.Any) -> None:
    """A merge of what is dirty already: tried without writing, and that is the end of it."""
    there = script.bitmap(b"b", dirty=2)
    script.expect("open", "a", True, False).expect("list_bitmaps", "a", gives=script.with_bitmaps(there))
    actions = [bitmaps.Action.clear(), bitmaps.Action.merge(b"x")]
    script.expect("change_bitmap", "a", b"b", actions, True, gives=script.bitmaps_changed(there, changed=False))
    script.expect("close", "a")
    answer = run(path="a", cleared=True, merge=["x"], diff=True)
    assert (answer["rc"], answer["changed"], answer["images"][0]["changed"]) == (0, False, False)
    assert answer["diff"][0]["before"] == answer["diff"][0]["after"]


def test_check_mode_predicts(run: Run, script: Script, bitmaps: t.Any) -> None:
    before = script.with_bitmaps(script.bitmap(b"x", in_use=True), script.bitmap(b"b", dirty=1, recording=False))
    after = script.bitmap(b"x", in_use=True), script.bitmap(b"b", dirty=5)
    script.expect("open", "a", False, False).expect("list_bitmaps", "a", gives=before)
    actions = [bitmaps.Action.merge(b"y"), bitmaps.Action.enable()]
    script.expect("change_bitmap", "a", b"b", actions, True, gives=script.bitmaps_changed(*after)).expect("close", "a")
    answer = run(path="a", merge=["y"], enabled=True, check=True, diff=True)
    assert answer["changed"]
    assert (answer["bitmap"]["dirty_bytes"], answer["images"][0]["leaked_clusters"]) == (5 * 65536, None)
    lines = "disk size: 1048576 bytes\nbitmap x: granularity 65536, recording, inconsistent (in use)\n"
    assert answer["diff"] == [
        {
            "before_header": "a",
            "after_header": "a",
            "before": lines + "bitmap b: granularity 65536, not recording, 65536 bytes dirty\n",
            "after": lines + "bitmap b: granularity 65536, recording, 327680 bytes dirty\n",
        }
    ]


def test_absent_without_such_a_bitmap(run: Run, script: Script) -> None:
    unchanged(script, script.with_bitmaps(script.bitmap(b"B"), script.bitmap(b"bb")))
    answer = run(path="a", state="absent")
    assert (answer["rc"], answer["changed"], answer["bitmap"]) == (0, False, None)


def test_absent_removes_all_of_one_name(run: Run, script: Script, bitmaps: t.Any) -> None:
    before = script.with_bitmaps(script.bitmap(b"b"), script.bitmap(b"b", in_use=True))
    changing(script, "a", before, [bitmaps.Action.remove()])
    assert run(path="a", state="absent")["changed"]


def test_several_of_one_name_are_made_one(run: Run, script: Script, bitmaps: t.Any) -> None:
    before = script.with_bitmaps(script.bitmap(b"b", granularity=512), script.bitmap(b"b"))
    changing(script, "a", before, [bitmaps.Action.remove(), bitmaps.Action.add(512)], script.bitmap(b"b"))
    assert run(path="a", recreate=True)["changed"]


REFUSED: list[tuple[list[dict[str, t.Any]], dict[str, t.Any], str, str]] = [
    ([{"granularity": 4096}], {"granularity": "64k"}, "bitmap_other_granularity", "4096 bytes, not 65536"),
    ([{"in_use": True}], {}, "bitmap_inconsistent", "It can only be removed"),
    ([{"in_use": True}], {"cleared": True, "enabled": True}, "bitmap_inconsistent", "Set recreate to true"),
    ([{}, {}], {"enabled": True}, "bitmap_ambiguous", "2 bitmaps have the name 'b'"),
]


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(("there", "options", "code", "words"), REFUSED)
def test_what_cannot_be_kept_is_refused(
    run: Run,
    script: Script,
    there: list[dict[str, t.Any]],
    options: dict[str, t.Any],
    code: str,
    words: str,
    check: bool,
) -> None:
    before = script.with_bitmaps(*(script.bitmap(b"b", **each) for each in there))
    script.expect("open", "a", not check, False).expect("list_bitmaps", "a", gives=before).expect("close", "a")
    answer = run(path="a", check=check, **options)
    assert (answer["rc"], answer["error_code"]) == (1, code)
    assert words in answer["msg"]
    assert "recreate" in answer["msg"]
    assert answer["outcomes"] == [{"path": "a", "outcome": "untouched"}]


def test_bitmaps_of_other_images_are_merged(run: Run, script: Script, bitmaps: t.Any) -> None:
    """All of them are open and locked before anything is read; each is opened once, for reading."""
    script.expect("open", "a", True, False)
    script.expect("open", "/s", False, False).expect("open", "/t", False, False)
    there = script.with_bitmaps(script.bitmap(b"b"), script.bitmap(b"x"))
    script.expect("list_bitmaps", "a", gives=there)
    image = script.image
    actions = [
        bitmaps.Action.merge(b"x"),
        bitmaps.Action.merge(b"b", image("/s")),
        bitmaps.Action.merge(b"y", image("/t")),
        bitmaps.Action.merge(b"z", image("/s")),
    ]
    after = script.bitmaps_changed(script.bitmap(b"b", dirty=1), script.bitmap(b"x"))
    script.expect("change_bitmap", "a", b"b", actions, True, gives=after).expect("begin", "a")
    script.expect("change_bitmap", "a", b"b", actions, gives=after).expect("keep")
    script.expect("close", "/t").expect("close", "/s").expect("close", "a")
    merge = ["x", {"name": "b", "path": "/s"}, {"name": "y", "path": "/t", "format": "qcow2"}]
    answer = run(path="a", merge=[*merge, {"name": "z", "path": "/s"}])
    assert (answer["rc"], answer["changed"]) == (0, True)


def test_a_source_that_is_in_use(run: Run, script: Script, errors: t.Any) -> None:
    script.expect("open", "a", True, False)
    script.expect("open", "/s", False, False, gives=errors.ImageInUseError("/s is in use.", pids=[7]))
    script.expect("close", "a")
    answer = run(path="a", merge=[{"name": "b", "path": "/s"}])
    assert (answer["error_code"], answer["pids"], answer["msg"]) == ("in_use", [7], "/s is in use.")
    assert answer["outcomes"] == [{"path": "a", "outcome": "untouched"}]


def test_a_bitmap_that_need_not_be_there(run: Run, script: Script, bitmaps: t.Any, errors: t.Any) -> None:
    script.expect("open", "a", True, False).expect("open", "/s", False, False)
    script.expect("list_bitmaps", "/s", False, gives=script.with_bitmaps(script.bitmap(b"x", dirty=None)))
    there = script.bitmap(b"b"), script.bitmap(b"old", stale=True)
    script.expect("list_bitmaps", "a", gives=script.with_bitmaps(*there))
    # One that is stale is there: leaving it out would lose what it says.
    actions = [bitmaps.Action.merge(b"x", script.image("/s")), bitmaps.Action.merge(b"old")]
    failure = errors.BitmapNotFoundError("a: There is no bitmap 'old'.", "bitmap_not_found")
    script.expect("change_bitmap", "a", b"b", actions, True, gives=failure)
    script.expect("close", "/s").expect("close", "a")
    merge = [
        {"name": "x", "path": "/s", "ignore_missing": True},
        {"name": "y", "path": "/s", "ignore_missing": True},
        {"name": "gone", "ignore_missing": True},
        {"name": "old", "ignore_missing": True},
    ]
    assert run(path="a", merge=merge)["error_code"] == "bitmap_not_found"


BAD_ARGUMENTS: list[tuple[dict[str, t.Any], str]] = [
    ({"name": ""}, "empty_name"),
    ({"name": "é" * 512}, "name_too_long"),
    ({"name": "a\nb"}, "control_character"),
    ({"granularity": "0"}, "bad_granularity"),
    ({"granularity": ""}, "bad_granularity"),
    ({"granularity": "-64k"}, "bad_granularity"),
    ({"granularity": 256}, "bad_granularity"),
    ({"granularity": 65537}, "bad_granularity"),
    ({"granularity": "48k"}, "bad_granularity"),
    ({"granularity": "1.5k"}, "bad_granularity"),
    ({"granularity": "4G"}, "bad_granularity"),
    ({"granularity": "4294967808"}, "bad_granularity"),  # 512 if it was cut to 32 bits
    ({"granularity": "1T"}, "bad_granularity"),
    ({"granularity": "64kB"}, "bad_granularity"),
    ({"granularity": "9" * 5000 + "k"}, "bad_granularity"),
    ({"granularity": "٤k"}, "bad_granularity"),
    ({"merge": [None]}, "bad_merge"),
    ({"merge": [["x"]]}, "bad_merge"),
    ({"merge": [True]}, "bad_merge"),
    ({"merge": [{}]}, "bad_merge"),
    ({"merge": [{"path": "/s"}]}, "bad_merge"),
    ({"merge": [{"name": "x", "path": "/s", "format": "raw"}]}, "bad_merge"),
    ({"merge": [{"name": "x", "file": "/s"}]}, "bad_merge"),
    ({"merge": ["x", ""]}, "empty_name"),
    ({"merge": [{"name": "é" * 512, "path": "/s"}]}, "name_too_long"),
    ({"merge": [{"name": "x", "path": "a"}]}, "bitmap_source_same"),
    ({"state": "absent", "merge": ["x"]}, "only_with_present"),
    ({"state": "absent", "cleared": True}, "only_with_present"),
    ({"force_share": True}, "force_share"),
    ({"path": []}, "no_images"),
    ({"timeout": 0}, "bad_timeout"),
]


@pytest.mark.parametrize(("arguments", "code"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused_before_any_file_is_opened(
    run: Run,
    script: Script,
    tmp_path: t.Any,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, t.Any],
    code: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").touch()
    answer = run(**{"path": "a", **arguments})
    assert (answer["rc"], answer["error_code"]) == (1, code)
    assert answer["msg"].isprintable()
    assert len(answer["msg"]) < 1000


SIZES = {"512": 512, "65536": 65536, "64k": 65536, "64K": 65536, "64 KiB": 65536, "1M": 1 << 20, "2MiB": 2 << 20}


@pytest.mark.parametrize(
    ("text", "size"), [*SIZES.items(), ("2G", 1 << 31), ("1GiB", 1 << 30), (4096, 4096), ("512B", 512)]
)
def test_sizes(run: Run, script: Script, bitmaps: t.Any, text: t.Any, size: int) -> None:
    changing(script, "a", script.with_bitmaps(), [bitmaps.Action.add(size)], script.bitmap(b"b", granularity=size))
    assert run(path="a", granularity=text)["bitmap"]["granularity"] == size


def test_a_strange_name_can_be_removed(run: Run, script: Script, bitmaps: t.Any) -> None:
    name = b"\x1b[2J\n"
    script.expect("open", "a", True, False)
    script.expect("list_bitmaps", "a", gives=script.with_bitmaps(script.bitmap(name)))
    gone = script.bitmaps_changed()
    script.expect("change_bitmap", "a", name, [bitmaps.Action.remove()], True, gives=gone).expect("begin", "a")
    script.expect("change_bitmap", "a", name, [bitmaps.Action.remove()], gives=gone).expect("keep").expect("close", "a")
    answer = run(path="a", name=name.decode(), state="absent", diff=True)
    assert answer["changed"]
    assert "bitmap \ufffd[2J\ufffd: " in answer["diff"][0]["before"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_source_that_is_an_image_of_the_task_is_refused(
    run: Run, script: Script, tmp_path: t.Any, link: t.Callable[[t.Any, t.Any], None]
) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "c").touch()
    link(tmp_path / "a", tmp_path / "b")
    merge = [{"name": "b", "path": f"{tmp_path}/b"}]
    answer = run(path=f"{tmp_path}/a", merge=merge)
    assert answer["error_code"] == "bitmap_source_same"
    assert "without path" in answer["msg"]
    answer = run(path=[f"{tmp_path}/c", f"{tmp_path}/a"], merge=merge)
    assert "a task of its own" in answer["msg"]


def test_a_group_is_decided_before_it_is_changed(run: Run, script: Script, bitmaps: t.Any) -> None:
    new, add = script.bitmap(b"b"), [bitmaps.Action.add(0)]
    for path in "abc":
        script.expect("open", path, True, False)
    for path in "abc":
        script.expect("list_bitmaps", path, gives=script.with_bitmaps(*[new] * (path == "b")))
        if path != "b":
            script.expect("change_bitmap", path, b"b", add, True, gives=script.bitmaps_changed(new))
    script.expect("begin", "a", "c")
    for path in "ac":
        script.expect("change_bitmap", path, b"b", add, gives=script.bitmaps_changed(new, leaked=path == "c"))
    script.expect("keep").expect("close", "c").expect("close", "b").expect("close", "a")
    answer = run(path=["a", "b", "c"])
    assert [(image["path"], image["changed"]) for image in answer["images"]] == [("a", True), ("b", False), ("c", True)]
    assert "bitmaps" not in answer
    assert "bitmap" not in answer
    (warning,) = answer["warnings"]
    assert "c: 1 cluster is leaked" in str(warning)  # a string or a structure, as the version of ansible-core has it


def test_a_refusal_in_a_group_comes_before_any_change(run: Run, script: Script, bitmaps: t.Any, errors: t.Any) -> None:
    script.expect("open", "a", True, False).expect("open", "b", True, False)
    script.expect("list_bitmaps", "a", gives=script.with_bitmaps())
    add = [bitmaps.Action.add(0)]
    script.expect("change_bitmap", "a", b"b", add, True, gives=script.bitmaps_changed(script.bitmap(b"b")))
    script.expect("list_bitmaps", "b", gives=script.with_bitmaps(script.bitmap(b"b", in_use=True)))
    script.expect("close", "b").expect("close", "a")
    answer = run(path=["a", "b"])
    assert answer["error_code"] == "bitmap_inconsistent"
    assert answer["msg"].endswith("No image was changed: a, b.")


FAILURES: list[tuple[str, bool, list[str]]] = [
    ("NoSpaceError", False, ["undone", "untouched", "untouched"]),
    ("ImageWriteError", True, ["undone", "undone", "untouched"]),
    ("TimeLimitError", False, ["undone", "undone", "untouched"]),
]


@pytest.mark.parametrize(("kind", "modified", "outcomes"), FAILURES)
def test_a_failure_in_a_group_undoes_what_was_done(
    run: Run, script: Script, bitmaps: t.Any, errors: t.Any, kind: str, modified: bool, outcomes: list[str]
) -> None:
    failure = getattr(errors, kind)("b: it failed.", "some_code")
    failure.modified = modified
    new, add = script.bitmaps_changed(script.bitmap(b"b")), [bitmaps.Action.add(0)]
    for path in "abc":
        script.expect("open", path, True, False)
    for path in "abc":
        script.expect("list_bitmaps", path, gives=script.with_bitmaps())
        script.expect("change_bitmap", path, b"b", add, True, gives=new)
    script.expect("begin", "a", "b", "c").expect("change_bitmap", "a", b"b", add, gives=new)
    script.expect("change_bitmap", "b", b"b", add, gives=failure)
    script.expect("undo").expect("close", "c").expect("close", "b").expect("close", "a")
    answer = run(path=["a", "b", "c"])
    assert (answer["rc"], answer["error_code"]) == (1, "some_code")
    assert [entry["outcome"] for entry in answer["outcomes"]] == outcomes
    assert "What was done has been undone" in answer["msg"]


def test_each_image_has_its_own_time(run: Run, script: Script, bitmaps: t.Any) -> None:
    script.expect("open", "a", False, True).expect("list_bitmaps", "a", gives=script.with_bitmaps())
    actions = [bitmaps.Action.add(0)]
    script.expect("change_bitmap", "a", b"b", actions, True, gives=script.bitmaps_changed()).expect("close", "a")
    run(path="a", timeout=10, check=True, force_share=True)
    assert script.seconds == [10, 10 - 0.0025]
