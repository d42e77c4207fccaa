# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A task of qcow2_chain, or of qcow2_commit with bitmaps, whose process is killed at any moment, in a step or between
two, is run again, to the end.

AIRLOCK_LONG=1 kills at every moment, not at some of them.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import shutil
import signal
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from sandbox import errors
from sandbox.images.overlays import create_overlay
from tests.crash import replay
from tests.crash.cut import LONG, record
from tests.crash.killed import Killer, killing
from tests.support import qemu
from tests.support.bitmaps import bitmaps_of
from tests.support.qcow2 import INCOMPATIBLE_DIRTY, Qcow2
from tests.unit.plugins.running import PLUGINS
from tests.waiting import until

MOMENTS = 10_000 if LONG else 6  # at most, of one task
LAYERS = {
    "base": (None, "cluster_size=4096", ("write -P 1 0 300k",)),
    "a": ("base", "cluster_size=65536", ("write -P 2 100k 30k", "write -P 3 900k 4k")),
    "b": ("a", "cluster_size=512", ("write -P 4 120k 30k",)),
    "c": ("b", "cluster_size=4096", ("write -P 5 500k 60k", "write -z 0 64k")),
    "top": ("c", "cluster_size=65536", ("write -P 6 40k 80k",)),
}
STAY = ("base", "b", "top", "new")
NAMES = {"base": None, "b": b"base", "top": b"b", "new": b"top"}


def make(directory: pathlib.Path) -> None:
    directory.mkdir()
    for name, (backing, options, writes) in LAYERS.items():
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options]
        command += ["-b", backing, "-F", "qcow2"] if backing else []
        qemu.must([*command, name, "1M"], cwd=str(directory))
        qemu.io(str(directory / name), *writes)


def shown(path: pathlib.Path) -> bytes:
    target = path.with_suffix(".shown")
    qemu.must(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(path), str(target)])
    content = target.read_bytes()
    target.unlink()
    return content


def run_flow(module: str, flow: Any, **given: Any) -> Any:
    """What the module answers. Raises as its flow does."""
    options = importlib.import_module(f"{PLUGINS}.modules.{module}").ARGUMENTS
    params = {name: option.get("default") for name, option in options.items()}
    return flow(SimpleNamespace(params={**params, **given}, check_mode=False, _diff=False))


def in_process(task: Callable[[], Any], killer: Killer) -> int:
    """The task in a process of its own, in which removing a file and giving one its name are moments as well; how it
    ended, as of os.waitpid()."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        for name in ("link", "unlink"):
            setattr(os, name, _mortal(getattr(os, name), killer))
        task()
        code = 0
    except Exception:  # who is not killed has to succeed
        traceback.print_exc()
    finally:
        os._exit(code)


def _mortal(call: Any, killer: Killer) -> Any:
    def then(*arguments: Any, **more: Any) -> Any:
        killer.moment()
        call(*arguments, **more)
        killer.moment()

    return then


def again(module: Any, task: Callable[[], Any]) -> Any:
    """The second run. The guest of the first one dies with it, but not in the same instant."""

    def attempt() -> Any:
        try:
            return task()
        except module("sandbox.errors").ImageInUseError:
            return None

    return until(attempt)


def moments(killer: Killer) -> list[int]:
    """At which to kill. The last ones are those between removing one file and the next."""
    step = max(1, killer.moments // MOMENTS)
    return sorted({*range(0, killer.moments, step), *range(killer.moments - 6, killer.moments)})


@pytest.mark.parametrize("method", ["commit", "pull"])
def test_chain_killed(method: str, module: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """base <- b <- top <- new, whatever there is now; the files of what goes are removed."""
    made, work = tmp_path / "made", tmp_path / "work"
    make(made)
    # A commit goes into b, which shows something else then.
    wanted = {name: shown(made / name) for name in (("top",) if method == "commit" else ("b", "top"))}

    def task() -> Any:
        flow, layers = module("_module.chain.flow").chain_flow, [str(work / name) for name in STAY]
        return run_flow("qcow2_chain", flow, layers=layers, method=method, drop=True, scan=True)

    with killing(-1, monkeypatch, module) as nobody:
        shutil.copytree(made, work)
        assert in_process(task, nobody) == 0
    assert sorted(path.name for path in work.iterdir()) == sorted(STAY)
    assert nobody.moments > 40
    for moment in moments(nobody):
        shutil.rmtree(work)
        shutil.copytree(made, work)
        with killing(moment, monkeypatch, module) as killer:
            assert in_process(task, killer) == signal.SIGKILL, moment
        assert {name: shown(work / name) for name in wanted} == wanted, moment
        again(module, task)
        for name in STAY:
            assert qemu.check(str(work / name)).code in (0, 3), moment  # leaks are harmless
            assert backing(work / name) == NAMES[name]
        assert {name: shown(work / name) for name in wanted} == wanted, moment
        assert shown(work / "new") == wanted["top"], moment
        assert {path.name for path in work.iterdir()} <= {*LAYERS, "new"}, moment
        assert again(module, task)["changed"] is False


def make_marked(directory: pathlib.Path) -> None:
    """base <- top, with bitmaps in both, of which one is in both."""
    directory.mkdir()
    base, top = str(directory / "base"), str(directory / "top")
    qemu.create(base, "1M", "cluster_size=4096")
    qemu.io(base, "write -P 1 0 100k")
    qemu.must(["qemu-img", "bitmap", "--add", "-g", "4k", base, "week"])
    qemu.io(base, "write -P 2 500k 4k")
    qemu.must(["qemu-img", "bitmap", "--disable", base, "week"])
    qemu.create(top, "1M", backing="base")
    for name in ("days", "week"):
        qemu.must(["qemu-img", "bitmap", "--add", "-g", "4k", top, name])
    qemu.io(top, "write -P 3 60k 80k", "write -P 4 800k 4k")


@pytest.mark.parametrize(("policy", "drop"), [("merge", False), ("merge", True), ("drop", False)])
def test_commit_killed(
    policy: str, drop: bool, module: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bitmaps know of all that they knew of, wherever they are."""
    made, work = tmp_path / "made", tmp_path / "work"
    make_marked(made)
    wanted = shown(made / "top")

    def task() -> Any:
        flow = module("_module.commit.flow").commit_flow
        return run_flow("qcow2_commit", flow, path=str(work / "top"), drop=drop, bitmaps=policy)

    with killing(-1, monkeypatch, module) as nobody:
        shutil.copytree(made, work)
        assert in_process(task, nobody) == 0
    due = known(work / "base")
    assert due["week"] >= known(made / "base")["week"]
    assert ("days" in due) == (policy == "merge")
    assert shown(work / "base") == wanted
    for moment in moments(nobody):
        shutil.rmtree(work)
        shutil.copytree(made, work)
        with killing(moment, monkeypatch, module) as killer:
            assert in_process(task, killer) == signal.SIGKILL, moment
        if (work / "top").exists():
            assert shown(work / "top") == wanted, moment
        repair(work / "top")
        again(module, task)
        assert shown(work / "base") == wanted, moment
        assert (work / "top").exists() != drop
        found = known(work / "base")
        assert set(found) == set(due), moment
        assert all(found[name] >= due[name] for name in due), moment
        for path in work.iterdir():
            assert qemu.check(str(path)).code in (0, 3), moment
        assert again(module, task)["changed"] is False


def repair(path: pathlib.Path) -> None:
    """What the docs say of an overlay that is marked dirty."""
    if path.exists():
        with Qcow2(str(path)) as image:
            dirty = image.header["incompatible_features"] & INCOMPATIBLE_DIRTY
        if dirty:
            qemu.must(["qemu-img", "check", "-q", "-r", "all", str(path)])


def known(path: pathlib.Path) -> dict[str, set[int]]:
    """The dirty bits of each bitmap; all of them can be relied upon."""
    found = {}
    for bitmap in bitmaps_of(str(path)):
        assert not bitmap.in_use
        runs = (range(first, first + count) for first, count in bitmap.dirty or ())
        found[bitmap.name.decode()] = {bit for run in runs for bit in run}
    return found


def backing(path: pathlib.Path) -> bytes | None:
    """The name that is recorded."""
    with Qcow2(str(path)) as image:
        offset = image.header["backing_file_offset"]
        return image.read(offset, image.header["backing_file_size"]) if offset else None


def test_a_new_overlay_has_no_name_before_it_is_whole(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that was written is on the disk when the file gets its name, and there is nothing to be found before."""
    path = str(tmp_path / "new")
    seen: list[bool] = []

    def link(_name: str, target: bytes, **_more: Any) -> None:
        seen.append(os.listdir(tmp_path) == [] and target == b"new")
        raise OSError(5, "pulled out")

    def create() -> None:
        with pytest.raises(errors.ImageOpenError):
            create_overlay(path, 1 << 20, b"base", "raw")

    monkeypatch.setattr(os, "link", link)
    log = record(create, monkeypatch)
    assert seen == [True]
    assert len(log) > 4
    assert log[-1].kind == replay.FLUSH
    assert os.listdir(tmp_path) == []
