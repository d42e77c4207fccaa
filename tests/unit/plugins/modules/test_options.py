# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A walk over each option of each module: what a person did not mean is refused, and the message names the option."""

from __future__ import annotations

import importlib
import os
import pathlib
import subprocess
import typing as t

import pytest
import yaml

from tests.unit.plugins.running import CHECKOUT, PLUGINS

Run = t.Callable[..., dict[str, t.Any]]
Options = dict[str, t.Any]

MODULES = sorted(path.stem for path in (CHECKOUT / "plugins" / "modules").glob("*.py"))

# What is tried. As YAML, for that is where they come from; a date reaches a module as text.
ODD: dict[str, t.Any] = {
    text: yaml.safe_load(text) if text != "2026-11-30" else text
    for text in ("null", '""', "0", "20261130", "2026-11-30", "yes", "[]", "{}")
}

# A task of each module that could be done, but for the option that is tried. Paths stand for themselves.
PLAIN: dict[str, Options] = {
    "qcow2_bitmap": {"path": ["a"], "name": "b"},
    "qcow2_chain": {"layers": ["a"]},
    "qcow2_commit": {"path": "a"},
    "qcow2_info": {"path": ["a"]},
    "qcow2_snapshot": {"path": ["a"], "name": "s"},
    "trusted_file": {"files": [{"path": "/nonexistent/f"}]},
}
# What else an option needs to be looked at.
WITH: dict[tuple[str, str], Options] = {
    ("qcow2_info", "allowed_roots"): {"chain": True},
    ("qcow2_info", "allowed_roots[]"): {"chain": True},
    ("qcow2_info", "bitmap"): {"dirty_extents": True},
    ("qcow2_info", "extents_start"): {"dirty_extents": True, "bitmap": "b"},
    ("qcow2_info", "extents_limit"): {"dirty_extents": True, "bitmap": "b"},
    ("qcow2_snapshot", "snapshot_id"): {"state": "absent"},
    ("qcow2_snapshot", "retention.prefix"): {"retention": {"keep": 1}},
    ("qcow2_snapshot", "retention.keep"): {"retention": {"prefix": "p"}},
    ("qcow2_snapshot", "retention.max_age"): {"retention": {"prefix": "p"}},
    **{("qcow2_bitmap", f"merge[].{key}"): {"merge": [{"name": "m"}]} for key in ("path", "format", "ignore_missing")},
    ("qcow2_bitmap", "merge[].name"): {"merge": [{}]},
}

TEXT = {"0", "20261130", "2026-11-30"}  # which is taken as it is
FLAGS = {"0", "yes"}
NOTHING = {"[]"}

# What each option takes of them, as its documentation says; all else is refused.
TAKES: dict[str, set[str]] = {
    "allow_resize": FLAGS,
    "allowed_roots": NOTHING,
    "base": set(),  # there is no such layer
    "chain": FLAGS,
    "cleared": FLAGS,
    "compressed": FLAGS,
    "damaged": {"0"},  # yes wants state absent
    "dirty_extents": {"0"},  # yes wants a bitmap
    "drop": FLAGS,
    "enabled": FLAGS,
    "extents_start": {"0"} | {"20261130"},
    "flatten": FLAGS,
    "follow_links": FLAGS,
    "force_share": FLAGS,
    "group": {"0", "20261130"},
    "limit": {"0"},
    "lock_timeout": {"0", "20261130"},
    "memory_limit": set(),  # 128M at least
    "merge": NOTHING,
    "merge[]": TEXT,
    "merge[].ignore_missing": FLAGS,
    "merge[].name": TEXT,
    "mode": {"0"},
    "name": TEXT,
    "owner": {"0", "20261130"},
    "rate_limit": {"20261130"},
    "recreate": FLAGS,
    "retention.keep": {"20261130"},
    "retention.prefix": TEXT,
    "scan": FLAGS,
    "siblings": NOTHING,
    "snapshot_id": TEXT,
    "timeout": {"20261130"},
    "progress_file": TEXT,
}


def options_of(module: str) -> t.Iterator[str]:
    """The names of all options; PARENT.NAME for those of a dictionary, NAME[] for an element, NAME[].KEY in one."""
    spec = importlib.import_module(f"{PLUGINS}.modules.{module}").ARGUMENTS
    for name, option in spec.items():
        yield name
        nested = f"{name}[]" if option["type"] == "list" else name
        yield from (f"{nested}.{key}" for key in option.get("options", {}))
        if option["type"] == "list":
            yield f"{name}[]"
    if "merge" in spec:
        merges = importlib.import_module(f"{PLUGINS}.module_utils._module.bitmap.options").MERGE_ARGUMENTS
        yield from (f"merge[].{key}" for key in merges)


def arguments(module: str, option: str, value: t.Any) -> Options:
    """The plain task of a module with one option set."""
    task = {**PLAIN[module], **WITH.get((module, option), {})}
    name, _dot, key = option.partition(".")
    if name.endswith("[]"):
        plain = task.get(name[:-2], [])
        return {**task, name[:-2]: [{**plain[0], key: value}] if key else [value]}
    if key:
        return {**task, name: {**task[name], key: value}}
    return {**task, name: value}


@pytest.fixture
def images(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A directory with the image `a`, which is the current one."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "a", "1M"], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("module", MODULES)
def test_each_option_takes_it_or_says_why_not(run_module: Run, images: pathlib.Path, module: str, odd: str) -> None:
    wrong = []
    for option in options_of(module):
        before = (images / "a").read_bytes()
        answer = run_module(module, check=True, **arguments(module, option, ODD[odd]))
        assert (images / "a").read_bytes() == before
        takes = odd in TAKES.get(option, set())
        # The bitmap, image or layer of that name is not there: that is no fault of the option.
        missing = ("bitmap_not_found", "layer_not_found", "not_found", "base_not_found", "no_backing_file")
        named = option.rpartition(".")[2].rstrip("[]")
        if takes and answer.get("error_code") not in (None, *missing, "force_share"):
            wrong.append((option, "refused", answer["error_code"], answer["msg"]))
        elif not takes and not answer.get("failed"):
            wrong.append((option, "taken"))
        elif answer.get("error_code") not in missing and answer.get("failed") and named not in answer["msg"]:
            wrong.append((option, "not named", answer["msg"]))
    assert not wrong


@pytest.mark.parametrize("module", MODULES)
def test_null_is_never_taken(run_module: Run, images: pathlib.Path, module: str) -> None:
    """With a stable code, and a word on where it may come from."""
    for option in options_of(module):
        answer = run_module(module, **arguments(module, option, None))
        parent = option.partition(".")[0].removesuffix("[]")
        nested = "." in option or option == "merge[]"
        if answer.get("msg", "").startswith("missing required arguments"):
            continue
        assert answer.get("error_code") == (f"bad_{parent}" if nested else "null_option"), (option, answer)
        assert option == "merge[]" or "Look where the value comes from" in answer["msg"]


# ---- paths -----------------------------------------------------------------------------------------------------------


def test_no_option_is_of_the_type_that_expands_names() -> None:
    """Of any module, in its own arguments, those of merge, and the documentation of both."""
    for path in [*(CHECKOUT / "plugins").glob("modules/*.py"), *(CHECKOUT / "plugins").glob("doc_fragments/*.py")]:
        assert "type: path" not in path.read_text()
        assert "elements: path" not in path.read_text()
    for path in [
        *(CHECKOUT / "plugins").glob("module*/*.py"),
        *(CHECKOUT / "plugins").glob("module_utils/_module/**/*.py"),
    ]:
        assert '"path"}' not in path.read_text().replace(" ", "")


PATH_OPTIONS = [
    ("qcow2_bitmap", "path"),
    ("qcow2_bitmap", "path[]"),
    ("qcow2_bitmap", "merge[].path"),
    ("qcow2_bitmap", "progress_file"),
    ("qcow2_chain", "layers[]"),
    ("qcow2_chain", "siblings[]"),
    ("qcow2_chain", "allowed_roots[]"),
    ("qcow2_chain", "progress_file"),
    ("qcow2_commit", "path"),
    ("qcow2_commit", "base"),
    ("qcow2_commit", "allowed_roots[]"),
    ("qcow2_commit", "progress_file"),
    ("qcow2_info", "path[]"),
    ("qcow2_info", "allowed_roots[]"),
    ("qcow2_snapshot", "path[]"),
    ("qcow2_snapshot", "progress_file"),
]


@pytest.mark.parametrize("name", ["$X.qcow2", "${X}.qcow2", "~x.qcow2", "~root", "%X%", "{{ x }}"])
@pytest.mark.parametrize(("module", "option"), PATH_OPTIONS)
def test_a_path_is_taken_as_it_is_written(
    run_module: Run, images: pathlib.Path, monkeypatch: pytest.MonkeyPatch, module: str, option: str, name: str
) -> None:
    """With what it would be expanded to in no message, and the file of that name looked at."""
    monkeypatch.setenv("X", "expanded")
    os.rename("a", name)
    others = {"a": name}
    task = arguments(module, option, name)
    for key in ("path", "layers"):
        if isinstance(task.get(key), list):
            task[key] = [others.get(path, path) for path in task[key]]
        elif key in task:
            task[key] = others.get(task[key], task[key])
    answer = run_module(module, check=True, **task)
    assert "expanded" not in str(answer)
    # The file of that name is there: an image that stands on nothing, and no progress file.
    fine = (None, "no_backing_file", "base_not_found", "bitmap_source_same", "bad_progress_file")
    assert answer.get("error_code") in fine


def test_home_is_the_one_thing_that_is_expanded(
    run_module: Run, images: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pwd

    monkeypatch.setenv("HOME", "/nonexistent")
    entry = pwd.struct_passwd(("u", "x", 0, 0, "", str(images), ""))
    monkeypatch.setattr(pwd, "getpwuid", lambda _user: entry)
    assert run_module("qcow2_info", path=["~/a"])["images"][0]["path"] == str(images / "a")
    assert "/nonexistent" not in str(run_module("qcow2_info", path=["~/b"]))


def test_a_text_is_one_path(run_module: Run, images: pathlib.Path) -> None:
    """Whoever owns the directory of an image chose its name. No part of that is another image."""
    for name in ("b", "c"):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", name, "1M"], check=True)
    answer = run_module("qcow2_info", path="b,c")
    assert answer["error_code"] == "not_a_list"
    assert "no file is called b,c" in answer["msg"]
    assert answer["msg"].endswith("write a list: [b, c].")
    name = f"b,{images}/c"
    os.makedirs(os.path.dirname(name))
    for text in ("Windows 2022, DC.qcow2", name):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", text, "1M"], check=True)
        assert [image["path"] for image in run_module("qcow2_info", path=text)["images"]] == [text]
        assert run_module("qcow2_snapshot", path=text, name="s")["changed"]
        assert run_module("qcow2_chain", layers=text)["chain"][0]["path"] == text
    assert not any(image["snapshot_count"] for image in run_module("qcow2_info", path=["a", "b", "c"])["images"])
