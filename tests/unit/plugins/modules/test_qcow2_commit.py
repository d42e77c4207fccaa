# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qcow2_commit: real images and real guests, for a commit is more than one call."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import types
import typing as t

import pytest

from tests.unit.plugins.running import PLUGINS

Run = t.Callable[..., dict[str, t.Any]]
MEGA = 1 << 20


def qemu(*arguments: str, directory: pathlib.Path) -> str:
    done = subprocess.run(arguments, cwd=directory, check=True, capture_output=True, text=True)
    return done.stdout


def shown(directory: pathlib.Path, name: str, image_format: str = "qcow2") -> bytes:
    """The disk as qemu-img reads it."""
    qemu("qemu-img", "convert", "-f", image_format, "-O", "raw", name, "shown", directory=directory)
    return (directory / "shown").read_bytes()


def bitmaps(directory: pathlib.Path, name: str) -> dict[str, int]:
    """Granularity by name."""
    facts = json.loads(qemu("qemu-img", "info", "--output=json", name, directory=directory))
    return {bitmap["name"]: bitmap["granularity"] for bitmap in facts["format-specific"]["data"].get("bitmaps", [])}


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    """raw <- base <- middle <- top"""
    qemu("qemu-img", "create", "-f", "raw", "raw", "1M", directory=tmp_path)
    for name, below, below_format in (("base", "raw", "raw"), ("middle", "base", "qcow2"), ("top", "middle", "qcow2")):
        qemu("qemu-img", "create", "-f", "qcow2", "-b", below, "-F", below_format, name, "1M", directory=tmp_path)
    qemu("qemu-io", "-c", "write -P 1 0 64k", "base", directory=tmp_path)
    qemu("qemu-io", "-c", "write -P 2 64k 64k", "middle", directory=tmp_path)
    qemu("qemu-io", "-c", "write -P 3 128k 128k", "-c", "write -z 512k 64k", "top", directory=tmp_path)
    return tmp_path


@pytest.fixture
def commit(run_module: Run, home: pathlib.Path) -> Run:
    def run(path: str = "top", **arguments: t.Any) -> dict[str, t.Any]:
        return run_module("qcow2_commit", path=str(home / path), **arguments)

    return run


def test_commit(commit: Run, home: pathlib.Path) -> None:
    """Check mode foresees it, it is done, and there is nothing left to do."""
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    disk = shown(home, "top")
    foreseen = commit(check=True, diff=True)
    (home / "shown").unlink()
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before
    done = commit(diff=True)
    assert (done["rc"], done["changed"]) == (0, True)
    assert (done["overlay"], done["base"]) == (str(home / "top"), str(home / "middle"))
    assert (done["overlay_format"], done["base_format"]) == ("qcow2", "qcow2")
    assert (done["bytes_committed"], done["bytes_zeroed"]) == (131072, 65536)
    assert (done["clusters_committed"], done["overlay_clusters_cleared"]) == (3, 3)
    assert (done["base_resized"], done["dropped"], done["bitmaps"]) == (False, False, [])
    assert done["chain_drawing"] == "raw <- base <- middle <- top"
    assert [layer["path"] for layer in done["chain"]] == [str(home / n) for n in ("top", "middle", "base", "raw")]
    for result in (foreseen, done):
        result.pop("sandbox")
        for layer in result["chain"]:
            layer.pop("file_size")
    assert foreseen == done
    assert done["diff"]["before"].endswith("not in the base yet: 196608 bytes\n")
    assert done["diff"]["after"].endswith("not in the base yet: 0 bytes\n")
    assert shown(home, "top") == shown(home, "middle") == disk
    again = commit(diff=True)
    assert (again["changed"], again["bytes_committed"], again["overlay_clusters_cleared"]) == (False, 0, 0)
    assert again["diff"]["before"] == again["diff"]["after"]


@pytest.mark.parametrize(("base", "image_format"), [("base", "qcow2"), ("raw", "raw")])
def test_named_base(base: str, image_format: str, commit: Run, home: pathlib.Path) -> None:
    """What lies between stays as it is, and so does the overlay."""
    disk = shown(home, "top")
    kept = {name: (home / name).read_bytes() for name in ("top", "middle")}
    for name in (str(home / base), base):
        done = commit(base=name)
        assert (done["changed"], done["overlay_clusters_cleared"]) == (True, 0)
        assert done["base_format"] == image_format
    assert shown(home, base, image_format) == disk
    assert {name: (home / name).read_bytes() for name in kept} == kept


def test_vmdk(commit: Run, home: pathlib.Path) -> None:
    """A vmdk overlay keeps what it holds; that its base has it already is known without that, but for drop."""
    qemu("qemu-img", "create", "-f", "vmdk", "base.vmdk", "1M", directory=home)
    qemu("qemu-io", "-f", "vmdk", "-c", "write -P 1 0 64k", "base.vmdk", directory=home)
    qemu("qemu-img", "create", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "top.vmdk", directory=home)
    qemu("qemu-io", "-f", "vmdk", "-c", "write -P 2 64k 64k", "top.vmdk", directory=home)
    disk = shown(home, "top.vmdk", "vmdk")
    for check, changed in ((True, True), (False, True), (True, False), (False, False)):
        done = commit("top.vmdk", format="vmdk", check=check)
        assert (done["rc"], done["changed"], done["bytes_committed"]) == (0, changed, 65536 * changed)
        assert (done["overlay_format"], done["base_format"], done["bitmaps"]) == ("vmdk", "vmdk", [])
        assert done["overlay_clusters_cleared"] == 0
    assert shown(home, "base.vmdk", "vmdk") == shown(home, "top.vmdk", "vmdk") == disk
    qemu("qemu-io", "-f", "vmdk", "-c", "write -P 3 64k 64k", "top.vmdk", directory=home)
    assert commit("top.vmdk", format="vmdk")["changed"]
    done = commit("top.vmdk", format="vmdk", drop=True)
    assert (done["changed"], done["bytes_committed"], done["dropped"]) == (True, 65536, True)
    assert shown(home, "base.vmdk", "vmdk")[65536:131072] == b"\3" * 65536


def test_format_is_never_guessed(commit: Run, home: pathlib.Path) -> None:
    qemu("qemu-img", "create", "-f", "vmdk", "disk.vmdk", "1M", directory=home)
    assert commit("disk.vmdk")["error_code"] == "not_qcow2"
    assert commit("top", format="vmdk")["error_code"] == "not_vmdk"


def test_drop(commit: Run, home: pathlib.Path) -> None:
    disk = shown(home, "top")
    assert commit(drop=True, check=True)["dropped"]
    assert (home / "top").exists()
    done = commit(drop=True, diff=True)
    assert (done["changed"], done["dropped"]) == (True, True)
    assert not (home / "top").exists()
    assert [layer["depth"] for layer in done["chain"]] == [0, 1, 2]
    assert done["chain_drawing"] == "raw <- base <- middle"
    assert "middle <- top\n" in done["diff"]["before"]
    assert "middle\n" in done["diff"]["after"]
    assert shown(home, "middle") == disk
    again = commit(drop=True)
    assert (again["rc"], again["changed"], again["dropped"]) == (0, False, True)
    assert set(again) - {"rc", "warnings", "invocation"} == set(done) - {"rc", "warnings", "invocation", "diff"}


def test_an_overlay_that_holds_nothing_is_dropped_as_well(commit: Run, home: pathlib.Path) -> None:
    commit()
    before = (home / "middle").read_bytes()
    done = commit(drop=True)
    assert (done["changed"], done["bytes_committed"]) == (True, 0)
    assert not (home / "top").exists()
    assert (home / "middle").read_bytes() == before


def test_nothing_there(commit: Run, home: pathlib.Path) -> None:
    assert commit("nothing")["error_code"] == "not_found"
    assert commit("nothing/top", drop=True)["error_code"] == "not_found"


def test_the_link_to_a_dropped_overlay(commit: Run, home: pathlib.Path) -> None:
    (home / "link").symlink_to("top")
    assert commit("link", drop=True)["changed"]
    assert not (home / "top").exists()
    again = commit("link", drop=True)
    assert (again["rc"], again["changed"], again["dropped"]) == (0, False, True)
    (home / "away").symlink_to("nothing/top")
    assert commit("away", drop=True)["error_code"] == "not_found"


def test_snapshots_of_the_overlay_are_not_lost(commit: Run, home: pathlib.Path) -> None:
    """What they hold goes into no base."""
    qemu("qemu-img", "snapshot", "-c", "kept", "top", directory=home)
    before = [(home / name).read_bytes() for name in ("middle", "top")]
    for check in (True, False):
        assert commit(drop=True, check=check)["error_code"] == "drop_loses"
    assert before == [(home / name).read_bytes() for name in ("middle", "top")]
    qemu("qemu-img", "snapshot", "-d", "kept", "top", directory=home)
    assert commit(drop=True)["changed"]


def test_a_file_that_was_replaced_is_not_removed(
    commit: Run, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ansible_collections.airlock.images.plugins.module_utils._module.commit import flow

    real = flow.commits.commit

    def replace(*arguments: t.Any, **more: t.Any) -> t.Any:
        done = real(*arguments, **more)
        shutil.copy(home / "top", home / "other")
        os.replace(home / "other", home / "top")
        return done

    monkeypatch.setattr(flow.commits, "commit", replace)
    assert commit(drop=True)["error_code"] == "overlay_replaced"
    assert (home / "top").exists()


def test_a_base_that_is_smaller(commit: Run, home: pathlib.Path) -> None:
    qemu("qemu-img", "create", "-f", "qcow2", "-b", "top", "-F", "qcow2", "larger", "2M", directory=home)
    before = (home / "top").read_bytes()
    for check in (True, False):
        refused = commit("larger", check=check)
        assert refused["error_code"] == "base_resize"
        assert "allow_resize" in refused["msg"]
    assert (home / "top").read_bytes() == before
    assert commit("larger", allow_resize=True, check=True)["chain"][1]["virtual_size"] == 2 * MEGA
    done = commit("larger", allow_resize=True, diff=True)
    assert (done["changed"], done["base_resized"], done["bytes_committed"]) == (True, True, 0)
    assert done["chain"][1]["virtual_size"] == 2 * MEGA
    assert f"disk size of the base: {2 * MEGA} bytes" in done["diff"]["after"]
    assert f"disk size of the base: {MEGA} bytes" in done["diff"]["before"]
    assert not commit("larger")["changed"]


# ---- bitmaps -------------------------------------------------------------------------------------------------------


@pytest.fixture
def marked(home: pathlib.Path) -> pathlib.Path:
    """The top has two bitmaps, and the base of a commit has one of them."""
    for name, bitmap, size in (("top", "days", "4k"), ("top", "week", "64k"), ("middle", "week", "32k")):
        qemu("qemu-img", "bitmap", "--add", "-g", size, name, bitmap, directory=home)
    qemu("qemu-img", "bitmap", "--disable", "middle", "week", directory=home)
    qemu("qemu-io", "-c", "write -P 8 768k 4k", "top", directory=home)
    return home


@pytest.mark.parametrize("check", [True, False])
def test_bitmaps_are_refused(check: bool, commit: Run, marked: pathlib.Path) -> None:
    before = (marked / "middle").read_bytes()
    refused = commit(check=check)
    assert refused["error_code"] == "has_bitmaps"
    assert "days" in refused["msg"]
    assert (marked / "middle").read_bytes() == before


def test_bitmaps_are_dropped(commit: Run, marked: pathlib.Path) -> None:
    disk = shown(marked, "top")
    assert commit(bitmaps="drop", check=True)["bitmaps"] == ["days", "week"]
    assert len(bitmaps(marked, "top")) == 2
    done = commit(bitmaps="drop")
    assert (done["bitmaps"], done["overlay_clusters_cleared"]) == (["days", "week"], 4)
    assert bitmaps(marked, "top") == {}
    assert bitmaps(marked, "middle") == {"week": 32768}
    assert shown(marked, "top") == shown(marked, "middle") == disk
    assert not commit()["changed"]


@pytest.mark.parametrize("drop", [False, True])
def test_bitmaps_are_merged(drop: bool, commit: Run, marked: pathlib.Path, run_module: Run) -> None:
    disk = shown(marked, "top")
    done = commit(bitmaps="merge", drop=drop)
    assert (done["rc"], done["bitmaps"]) == (0, ["days", "week"]), done
    assert done["overlay_clusters_cleared"] == (0 if drop else 4)
    assert bitmaps(marked, "middle") == {"week": 32768, "days": 4096}
    assert shown(marked, "middle") == disk
    assert dirty(run_module, marked / "middle") == {"week": 65536, "days": 4096}
    if not drop:
        assert shown(marked, "top") == disk
        assert bitmaps(marked, "top") == {"days": 4096, "week": 65536}
        assert not commit()["changed"]  # what is not to be committed, no bitmap is in the way of


@pytest.mark.parametrize(("policy", "left"), [("merge", ["days", "week"]), ("drop", ["week"])])
def test_bitmaps_without_end(
    policy: str, left: list[str], commit: Run, marked: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overlay can have 65,535, with a guest for each: an hour for all, where nobody gave a time. 40 minutes go by
    with each look at the clock."""
    before = (marked / "middle").read_bytes()
    minutes = itertools.count(step=40)
    ours = importlib.import_module(f"{PLUGINS}.module_utils.sandbox.images.commit_bitmaps")
    with monkeypatch.context() as patched:
        patched.setattr(ours, "time", types.SimpleNamespace(monotonic=lambda: 60 * next(minutes)))
        assert commit(bitmaps=policy)["error_code"] == "time_limit"
    assert sorted(bitmaps(marked, "top")) == left
    assert policy == "drop" or (marked / "middle").read_bytes() == before
    assert commit(bitmaps=policy)["changed"]
    assert not commit(bitmaps=policy)["changed"]


def test_a_bitmap_that_does_not_record_does_not_in_the_base(commit: Run, marked: pathlib.Path, run_module: Run) -> None:
    qemu("qemu-img", "bitmap", "--disable", "top", "days", directory=marked)
    qemu("qemu-img", "bitmap", "--add", "top", "hours", directory=marked)
    assert commit(bitmaps="merge")["changed"]
    found = run_module("qcow2_info", path=str(marked / "middle"))["bitmaps"]
    assert {each["name"]: each["recording"] for each in found} == {"week": False, "days": False, "hours": True}


def dirty(run_module: Run, path: pathlib.Path) -> dict[str, int]:
    """Bytes by name."""
    return {bitmap["name"]: bitmap["dirty_bytes"] for bitmap in run_module("qcow2_info", path=str(path))["bitmaps"]}


@pytest.mark.parametrize("policy", ["merge", "drop"])
def test_bitmaps_of_an_overlay_that_holds_nothing(
    policy: str, commit: Run, marked: pathlib.Path, run_module: Run
) -> None:
    """As qemu-img leaves it, which commits the data alone. They are not lost with the file but by order."""
    qemu("qemu-img", "commit", "-q", "top", directory=marked)
    assert not commit()["changed"]
    before = dirty(run_module, marked / "middle")
    assert commit(drop=True)["error_code"] == "has_bitmaps"
    assert commit(drop=True, bitmaps=policy, check=True)["bitmaps"] == ["days", "week"]
    assert (marked / "top").exists()
    done = commit(drop=True, bitmaps=policy)
    assert (done["changed"], done["bytes_committed"], done["bitmaps"]) == (True, 0, ["days", "week"])
    assert not (marked / "top").exists()
    after = dirty(run_module, marked / "middle")
    assert after == ({"week": 65536, "days": 4096} if policy == "merge" else before)


def test_bitmaps_that_cannot_be_merged(commit: Run, marked: pathlib.Path) -> None:
    """Said before anything is written."""
    kept = {path.name: path.read_bytes() for path in marked.iterdir()}
    assert commit(bitmaps="merge", base="raw")["error_code"] == "base_without_bitmaps"
    qemu("qemu-img", "resize", "-q", "middle", "2M", directory=marked)
    larger = (marked / "middle").read_bytes()
    assert commit(bitmaps="merge")["error_code"] == "bitmap_sizes"
    assert (marked / "middle").read_bytes() == larger
    (marked / "middle").write_bytes(kept["middle"])
    subprocess.run(["qemu-io", "-c", "write -P 5 0 4k", "-c", "abort", "top"], cwd=marked, check=False)
    assert commit(bitmaps="merge", check=True)["error_code"] == "bitmap_inconsistent"
    assert {path.name: path.read_bytes() for path in marked.iterdir() if path.name != "top"} == {
        name: data for name, data in kept.items() if name != "top"
    }
    assert commit(bitmaps="drop")["changed"]


# ---- bitmaps of several layers -------------------------------------------------------------------------------------


@pytest.fixture
def noted(home: pathlib.Path) -> pathlib.Path:
    """One bitmap that begins in base, as libvirt carries it into each new overlay."""
    for name in ("base", "middle", "top"):
        qemu("qemu-img", "bitmap", "--add", "-g", "4k", name, "inc", directory=home)
    for name, at in (("base", "256k"), ("middle", "384k"), ("top", "768k")):
        qemu("qemu-io", "-c", f"write -P 8 {at} 4k", name, directory=home)
    return home


@pytest.fixture
def on_base(commit: Run, noted: pathlib.Path) -> Run:
    """A commit of top and middle into base, of which base has no bitmap."""
    qemu("qemu-img", "bitmap", "--remove", "base", "inc", directory=noted)
    return lambda **arguments: commit(base="base", **arguments)


def extents(run_module: Run, path: pathlib.Path, name: str) -> list[tuple[int, int]]:
    found = run_module("qcow2_info", path=str(path), dirty_extents=True, bitmap=name)["dirty_extents"]
    return [(each["offset"], each["length"]) for each in found]


def test_the_union_over_all_layers(on_base: Run, noted: pathlib.Path, run_module: Run) -> None:
    assert on_base(bitmaps="merge", check=True)["bitmaps"] == ["inc"]
    assert bitmaps(noted, "base") == {}
    done = on_base(bitmaps="merge")
    assert (done["rc"], done["bitmaps"]) == (0, ["inc"]), done
    assert extents(run_module, noted / "base", "inc") == [(384 << 10, 4096), (768 << 10, 4096)]
    assert run_module("qcow2_info", path=str(noted / "base"))["bitmaps"][0]["recording"]


def test_a_bitmap_that_the_base_has_already(commit: Run, noted: pathlib.Path, run_module: Run) -> None:
    """It notes what is committed, which is by whole clusters."""
    assert commit(base="base", bitmaps="merge")["changed"]
    found = extents(run_module, noted / "base", "inc")
    for at in (256 << 10, 384 << 10, 768 << 10):
        assert any(start <= at and at + 4096 <= start + length for start, length in found)


def test_any_layers_bitmaps_are_refused(on_base: Run, noted: pathlib.Path) -> None:
    qemu("qemu-img", "bitmap", "--remove", "top", "inc", directory=noted)
    before = {path.name: path.read_bytes() for path in noted.iterdir()}
    refused = on_base()
    assert refused["error_code"] == "has_bitmaps"
    assert f"{noted}/middle has persistent bitmaps" in refused["msg"]
    assert {path.name: path.read_bytes() for path in noted.iterdir()} == before


@pytest.mark.parametrize("drop", [False, True])
def test_those_of_all_layers_are_dropped(drop: bool, on_base: Run, noted: pathlib.Path) -> None:
    disk = shown(noted, "top")
    assert on_base(bitmaps="drop", drop=drop)["bitmaps"] == ["inc"]
    assert bitmaps(noted, "middle") == bitmaps(noted, "base") == {}
    assert (noted / "top").exists() is not drop
    if not drop:
        assert bitmaps(noted, "top") == {}
        assert shown(noted, "top") == disk
    assert shown(noted, "base") == disk


BROKEN: dict[str, tuple[list[tuple[str, ...]], str, str]] = {
    "the top lacks it": ([("--remove", "top", "inc")], "top", "is not in this layer"),
    "the top's does not record": ([("--disable", "top", "inc")], "top", "does not record here"),
    "the middle's does not record": ([("--disable", "middle", "inc")], "middle", "does not record here"),
    "another granularity": (
        [("--remove", "top", "inc"), ("--add", "-g", "8k", "top", "inc")],
        "top",
        "has a granularity of 8192 here, and of 4096 there",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_chain_of_bitmaps_that_is_broken(name: str, on_base: Run, noted: pathlib.Path) -> None:
    """Said before the first write, with the layer and the way on, which leads on."""
    steps, layer, words = BROKEN[name]
    for step in steps:
        qemu("qemu-img", "bitmap", *step, directory=noted)
    before = {path.name: path.read_bytes() for path in noted.iterdir()}
    refused = on_base(bitmaps="merge")
    assert refused["error_code"] == "bitmap_chain_broken"
    assert f"{noted}/{layer}: the bitmap 'inc' of {noted}/middle {words}" in refused["msg"]
    assert "Set bitmaps to 'drop'" in refused["msg"]
    assert {path.name: path.read_bytes() for path in noted.iterdir()} == before
    assert on_base(bitmaps="drop")["rc"] == 0


def test_an_inconsistent_one_of_a_layer_between(on_base: Run, noted: pathlib.Path) -> None:
    subprocess.run(["qemu-io", "-c", "write -P 5 0 4k", "-c", "abort", "middle"], cwd=noted, check=False)
    refused = on_base(bitmaps="merge")
    assert refused["error_code"] == "bitmap_inconsistent"
    assert f"{noted}/middle: the bitmap 'inc' is inconsistent" in refused["msg"]


def test_a_layer_of_another_size(on_base: Run, noted: pathlib.Path, commit: Run) -> None:
    """The top was enlarged: the bitmap below it is of a smaller disk, and nothing can be merged."""
    qemu("qemu-img", "resize", "-q", "top", "2M", directory=noted)
    before = {path.name: path.read_bytes() for path in noted.iterdir()}
    refused = on_base(bitmaps="merge", allow_resize=True)
    assert refused["error_code"] == "bitmap_sizes"
    assert f"{noted}/middle has a disk of {MEGA} bytes" in refused["msg"]
    assert {path.name: path.read_bytes() for path in noted.iterdir()} == before


# ---- the other options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["top", "middle", "link", "fifo", "folder"])
@pytest.mark.parametrize("check", [True, False])
def test_progress_file_that_is_something_else(name: str, check: bool, commit: Run, home: pathlib.Path) -> None:
    """It would be replaced: a slip of the pen must not cost the disk, or a device."""
    (home / "link").symlink_to("raw")
    os.mkfifo(home / "fifo")
    (home / "folder").mkdir()
    before = (home / name).lstat().st_ino
    assert commit(progress_file=str(home / name), check=check)["error_code"] == "bad_progress_file"
    assert (home / name).lstat().st_ino == before


def test_progress_file(commit: Run, home: pathlib.Path) -> None:
    done = commit(progress_file=str(home / "progress"), rate_limit="8M")
    assert done["rc"] == 0, done
    facts = json.loads((home / "progress").read_text())
    assert facts["finished"] is True
    assert (facts["percent"], facts["seconds_left"]) == (100.0, 0)
    assert facts["bytes_done"] == facts["bytes_total"]
    assert sorted(path.name for path in home.iterdir()) == ["base", "middle", "progress", "raw", "top"]
    (home / "progress").unlink()
    assert not commit(progress_file=str(home / "progress"))["changed"]
    assert not (home / "progress").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"rate_limit": "fast"}, "bad_rate_limit"),
        ({"rate_limit": "0"}, "bad_rate_limit"),
        ({"rate_limit": "1.5M"}, "bad_rate_limit"),
        ({"rate_limit": "9" * 30}, "bad_rate_limit"),
        ({"timeout": 0}, "bad_timeout"),
        ({"progress_file": "/nowhere/at/all"}, "bad_progress_file"),
        ({"progress_file": "/proc/progress"}, "bad_progress_file"),
        ({"base": "other"}, "base_not_found"),
        ({"base": "top"}, "base_not_found"),
        ({"path": "raw"}, "not_qcow2"),
        ({"allowed_roots": ["/nowhere/at/all"]}, "bad_allowed_root"),
    ],
)
def test_refused_options(arguments: dict[str, t.Any], code: str, commit: Run, home: pathlib.Path) -> None:
    kept = {path.name: path.read_bytes() for path in home.iterdir()}
    assert commit(**arguments)["error_code"] == code
    assert {path.name: path.read_bytes() for path in home.iterdir()} == kept


def test_names_are_judged(commit: Run, home: pathlib.Path) -> None:
    (home / "sub").mkdir()
    (home / "top").rename(home / "sub/top")
    qemu("qemu-img", "rebase", "-u", "-b", "../middle", "-F", "qcow2", "sub/top", directory=home)
    assert commit("sub/top")["error_code"] == "backing_outside"
    assert commit("sub/top", allowed_roots=[str(home)])["changed"]


@pytest.mark.parametrize("held", ["top", "middle"])
def test_images_in_use(held: str, commit: Run, home: pathlib.Path) -> None:
    command = ["qemu-io", "-r", held]
    with subprocess.Popen(command, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"length\n")
        holder.stdin.flush()
        os.read(holder.stdout.fileno(), 1)
        answer = commit()
        holder.stdin.close()
    assert (answer["error_code"], answer["pids"]) == ("in_use", [holder.pid])


def test_time_is_over(commit: Run, home: pathlib.Path) -> None:
    disk = shown(home, "top")
    qemu("qemu-img", "convert", "-O", "qcow2", "base", "copy", directory=home)
    answer = commit(timeout=1, rate_limit="4k")
    assert answer["error_code"] == "time_limit"
    assert shown(home, "top") == disk
    assert commit()["changed"]
    assert shown(home, "top") == shown(home, "middle") == disk
