# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qcow2_chain: other overlays that stand on the chain, named and found. Real images and real guests."""

from __future__ import annotations

import errno
import importlib
import itertools
import os
import pathlib
import signal
import subprocess
import types
import typing as t

import pytest

from sandbox.host import places, trees
from tests.support.vmdk import Recipe
from tests.unit.plugins.chains import Task, actions, overlay, run, shown
from tests.unit.plugins.running import PLUGINS

Run = t.Callable[..., dict[str, t.Any]]


def test_siblings(task: Task, refused: Task, home: pathlib.Path) -> None:
    overlay(home, "sibling", "base")
    (home / "deep").mkdir()
    overlay(home, "deep/hidden", str(home / "a"))
    found = refused("base", "top", method="commit", scan=True)
    assert found["error_code"] == "has_siblings"
    named = refused("base", "top", method="commit", siblings=[str(home / "sibling")])
    assert f"{home}/sibling stands on {home}/base" in named["msg"]
    dropped = refused("base", "top", method="pull", scan=True, drop=True)
    assert f"{home}/deep/hidden stands on {home}/a" in dropped["msg"]
    content = shown(home / "sibling"), shown(home / "deep/hidden")
    done = task("base", "top", scan=True)
    assert actions(done) == [("pull", "top", "base")]
    assert "a commit cannot be done" in done["plan"][0]["reason"]
    assert (shown(home / "sibling"), shown(home / "deep/hidden")) == content


def test_layers_that_are_named_as_siblings(task: Task, home: pathlib.Path) -> None:
    """As a list of all images in a directory does."""
    (home / "link").symlink_to("top")
    everything = [str(home / name) for name in ("base", "a", "b", "top", "link")]
    assert actions(task("base", "top", method="commit", siblings=everything)) == [("commit", "top", "base")]


def test_a_root_that_is_a_sibling(refused: Task, home: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    overlay(elsewhere, "sibling", str(home / "base"))
    found = refused("base", "top", method="commit", scan=True, allowed_roots=[str(elsewhere / "sibling")])
    assert found["error_code"] == "has_siblings"


def test_images_on_something_unknown(
    run_module: Run, home: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """They are told of, and are no obstacle. One that stands on nothing at all is none."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "images").symlink_to(home)
    overlay(home, "first", str(elsewhere / "images/base"))
    overlay(home, "second", "first")
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "gone", "-F", "qcow2", "second", directory=home)
    layers = [str(home / "base"), str(home / "top")]
    foreseen = run_module("qcow2_chain", layers=layers, method="commit", scan=True, check=True)
    (warning,) = foreseen["warnings"]
    assert f"stand on files of this chain: {home}/first. Their backing files are in places" in str(warning)
    assert run_module("qcow2_chain", layers=layers, method="commit", scan=True)["changed"]
    assert not run_module("qcow2_chain", layers=layers, method="commit", scan=True)["changed"]


def test_images_that_cannot_be_read(run_module: Run, home: pathlib.Path) -> None:
    """They are told of: they may stand on the chain. What is no qcow2 image, or cannot be opened, is not."""
    for name, below in (("feature", "base"), ("short", "base"), ("second", "feature")):
        overlay(home, name, below)
    with (home / "feature").open("r+b") as image:
        image.seek(72)
        image.write(b"\x40")
    os.truncate(home / "short", 80)
    for name, content in (("empty", b""), ("text", b"text"), ("raw", bytes(1 << 20))):
        (home / name).write_bytes(content)
    os.mkfifo(home / "fifo")
    layers = [str(home / "base"), str(home / "top")]
    done = run_module("qcow2_chain", layers=layers, method="commit", scan=True)
    assert done["changed"], done
    (warning,) = done["warnings"]
    assert f"stand on files of this chain: {home}/feature, {home}/short. Their backing" in str(warning)


# The failure, what the task ends with, and whether it warns.
SCAN_FAILURES = {
    "not_qcow2": ("NotQcow2Error", None, False),
    "guest_crash": ("GuestCrashError", None, True),
    "guest_protocol": ("GuestProtocolError", None, True),
    "budget": ("BudgetError", None, True),
    "no_memory": ("GuestMemoryError", None, True),
    "read_failed": ("ImageReadError", None, True),
    "in_use": ("ImageInUseError", None, True),
    "host": ("HostError", "host", False),
    "jail": ("JailError", "jail", False),
    "time_limit": ("TimeLimitError", "time_limit", False),
}


@pytest.fixture
def failing(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> t.Callable[[str, Exception], None]:
    """Has a function of the scan fail for an overlay of the base, `sibling`."""
    overlay(home, "sibling", "base")
    siblings = importlib.import_module(f"{PLUGINS}.module_utils._module.chain.siblings")

    def fails(function: str, error: Exception) -> None:
        holder, _dot, name = function.rpartition(".")
        place = os if holder == "os" else getattr(siblings, holder)
        original = getattr(place, name)

        def fail(what: t.Any, *arguments: t.Any, **options: t.Any) -> t.Any:
            if os.path.basename(os.fsdecode(getattr(what, "path", what))) == "sibling":
                raise error
            return original(what, *arguments, **options)

        monkeypatch.setattr(place, name, fail)

    return fails


@pytest.mark.parametrize("code", SCAN_FAILURES)
def test_a_scan_that_fails(
    code: str, run_module: Run, home: pathlib.Path, errors: t.Any, failing: t.Callable[[str, Exception], None]
) -> None:
    """No failure but one says that an image is no sibling. The task goes on where only the image can be to blame."""
    kind, ends, warns = SCAN_FAILURES[code]
    error = getattr(errors, kind)("It failed.")
    error.code = code
    failing("info.image_info", error)
    layers = [str(home / "base"), str(home / "top")]
    done = run_module("qcow2_chain", layers=layers, method="commit", scan=True, check=True)
    assert (done["rc"], done.get("error_code")) == (int(ends is not None), ends), done
    told = [str(warning) for warning in done["warnings"] if f": {home}/sibling. " in str(warning)]
    assert len(told) == warns


@pytest.mark.parametrize("function", ["Image.open", "os.open"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ENOENT])
def test_files_that_cannot_be_opened(
    number: int,
    function: str,
    run_module: Run,
    home: pathlib.Path,
    collection_tree: None,
    failing: t.Callable[[str, Exception], None],
) -> None:
    """They may stand on the base: it stays as it is, unless they have vanished. What changes no base is done."""
    path, reason = str(home / "sibling"), OSError(number, "It failed")
    reason.filename = path
    opening = importlib.import_module(f"{PLUGINS}.module_utils.sandbox.words.opening")
    failing(function, reason if function == "os.open" else opening.open_error(path, reason, writable=False))
    layers = [str(home / "base"), str(home / "top")]
    found = run_module("qcow2_chain", layers=layers, method="commit", scan=True, check=True)
    gone = number == errno.ENOENT
    assert (found["rc"], found.get("error_code")) == ((0, None) if gone else (1, "siblings_unknown")), found
    assert gone or f"{path} cannot be opened for reading: {os.strerror(number)}. " in found["msg"]
    assert gone or f"whether it stands on {home}/base" in found["msg"]
    found = run_module("qcow2_chain", layers=layers, method="pull", drop=True, scan=True, check=True)
    assert found["rc"] == int(not gone)
    done = run_module("qcow2_chain", layers=layers, scan=True)
    assert done["changed"], done
    assert gone or actions(done) == [("pull", "top", "base")]
    assert not run_module("qcow2_chain", layers=layers, scan=True)["changed"]


def test_directories_that_cannot_be_listed(
    run_module: Run, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "deep").mkdir()
    scandir = os.scandir

    def fail(where: t.Any) -> t.Any:
        if isinstance(where, int) and os.readlink(f"/proc/self/fd/{where}") == str(home / "deep"):
            raise PermissionError(errno.EACCES, "It failed")
        return scandir(where)

    monkeypatch.setattr(os, "scandir", fail)
    layers = [str(home / "base"), str(home / "top")]
    found = run_module("qcow2_chain", layers=layers, method="commit", scan=True)
    assert (found["rc"], found["error_code"]) == (1, "siblings_unknown")
    assert f"{home}/deep cannot be opened for reading: Permission denied" in found["msg"]


def test_an_overlay_of_what_stays_is_no_obstacle(task: Task, home: pathlib.Path) -> None:
    """What stands on the upper layer of the joint goes on showing the same."""
    overlay(home, "above", "top")
    content = shown(home / "above")
    task("base", "top", method="commit", scan=True, drop=True)
    assert shown(home / "above") == content


@pytest.fixture
def on_vmdk(home: pathlib.Path) -> tuple[str, str]:
    """disk.vmdk <- middle <- upper, and a vmdk overlay of disk.vmdk in a directory of its own. The layers that shall
    be."""
    Recipe(4 << 20, cid=7).make(home / "disk.vmdk")
    (home / "deep").mkdir()
    Recipe(4 << 20, parent=b"../disk.vmdk", parent_cid=7).make(home / "deep/beside.vmdk")
    for name, below, below_format in (("middle", "disk.vmdk", "vmdk"), ("upper", "middle", "qcow2")):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", below_format, name, directory=home)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", "middle", directory=home)
    return "disk.vmdk", "upper"


@pytest.mark.parametrize("arguments", [{"scan": True}, {"siblings": ["deep/beside.vmdk"]}])
def test_vmdk_siblings(
    arguments: dict[str, t.Any],
    refused: Task,
    run_module: Run,
    home: pathlib.Path,
    on_vmdk: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A vmdk overlay is one, named or found: what it stands on is not committed to."""
    monkeypatch.chdir(home)
    found = refused(*on_vmdk, method="commit", **arguments)
    assert found["error_code"] == "has_siblings"
    assert f"deep/beside.vmdk stands on {home}/disk.vmdk" in found["msg"]
    done = run_module("qcow2_chain", layers=[str(home / name) for name in on_vmdk], **arguments)
    assert actions(done) == [("pull", "upper", "disk.vmdk")]


# What takes the place of the overlay, and the code of the refusal when the task names it.
CHANGED = {
    "another subformat": (b"monolithicSparse", b"monolithicFlat  ", "vmdk_subformat"),
    "another version": (b"KDMV\1\0\0\0", b"KDMV\4\0\0\0", "vmdk_version"),
    "a parent elsewhere": (b'"../disk.vmdk"', b'"/outside/disk"', "backing_absolute"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_vmdk_images_that_cannot_be_judged(
    case: str, refused: Task, run_module: Run, home: pathlib.Path, on_vmdk: tuple[str, str]
) -> None:
    """Named, they are refused. Found, they are told of, in whatever way their content is stored."""
    old, new, code = CHANGED[case]
    path = home / "deep/beside.vmdk"
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    (home / "split.vmdk").write_bytes(Recipe(4 << 20).descriptor().replace(b"monolithicSparse", b"twoGbMaxExtentFlat"))
    assert refused(*on_vmdk, method="commit", siblings=[str(path)])["error_code"] == code
    layers = [str(home / name) for name in on_vmdk]
    done = run_module("qcow2_chain", layers=layers, method="commit", scan=True)
    assert done["changed"], done
    (warning,) = done["warnings"]
    assert f"stand on files of this chain: {home}/split.vmdk, {path}. Their backing" in str(warning)


def test_named_siblings_on_other_formats(refused: Task, home: pathlib.Path, on_vmdk: tuple[str, str]) -> None:
    """The refusal is about the file that is not what it should be. The parent of a vmdk image is vmdk, or nothing."""
    Recipe(4 << 20, parent=b"base", parent_cid=7).make(home / "wrong.vmdk")
    found = refused(*on_vmdk, method="commit", siblings=[str(home / "wrong.vmdk")])
    assert (found["error_code"], found["msg"].partition(":")[0]) == ("not_vmdk", f"{home}/base")
    (home / "raw").write_bytes(bytes(1 << 20))
    found = refused(*on_vmdk, method="commit", siblings=[str(home / "raw")])
    assert (found["error_code"], found["msg"].partition(":")[0]) == ("not_qcow2", f"{home}/raw")


def test_directories_that_are_nested_too_deeply(run_module: Run, home: pathlib.Path) -> None:
    """Who makes them decides how deep they are: no traceback, and no base is changed that may be used in there."""
    deep = home
    for _level in range(1500):
        os.chdir(deep)
        os.mkdir("d")
        deep = pathlib.Path("d")
    os.chdir("/")
    layers = [str(home / "base"), str(home / "top")]
    found = run_module("qcow2_chain", layers=layers, method="commit", scan=True)
    assert (found["rc"], found["error_code"]) == (1, "siblings_unknown")
    assert "in one another" in found["msg"]
    done = run_module("qcow2_chain", layers=layers, method="pull", scan=True)
    assert done["rc"] == 0, done
    subprocess.run(["rm", "-r", str(home / "d")], check=True)


def test_more_names_than_are_held_in_memory(
    run_module: Run, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes them decides how many there are, and links cost next to nothing. No base is changed then."""
    trees = importlib.import_module(f"{PLUGINS}.module_utils.sandbox.host.trees")
    layers = [str(home / "base"), str(home / "top")]
    arguments: dict[str, t.Any] = {"layers": layers, "scan": True, "check": True}
    names = sum(len(below) + len(files) for _path, below, files in os.walk(home))
    monkeypatch.setattr(trees, "NAMES_MAX", names)
    assert run_module("qcow2_chain", method="commit", **arguments)["rc"] == 0
    monkeypatch.setattr(trees, "NAMES_MAX", names - 1)
    found = run_module("qcow2_chain", method="commit", **arguments)
    assert (found["rc"], found["error_code"]) == (1, "siblings_unknown")
    assert "for there are more than" in found["msg"]
    assert run_module("qcow2_chain", method="pull", **arguments)["rc"] == 0


def test_told_to_end_while_it_scans(run_module: Run, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on to no other file, and does not say that all is well."""
    siblings = importlib.import_module(f"{PLUGINS}.module_utils._module.chain.siblings")
    overlay(home, "one", "base")
    overlay(home, "other", "base")
    seen = []

    def told(image: t.Any, _clock: object) -> t.NoReturn:
        seen.append(image.path)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it was told before")

    monkeypatch.setattr(siblings, "_header", told)
    layers = [str(home / "base"), str(home / "top")]
    found = run_module("qcow2_chain", layers=layers, method="commit", scan=True, check=True)
    assert (found["rc"], found["error_code"]) == (1, "terminated")
    assert len(seen) == 1


def test_a_list_of_names_is_not_made_ahead_of_the_clock(home: pathlib.Path) -> None:
    """To make it takes long where there are many."""

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise RuntimeError

    looks = 0
    many = home / "many"
    many.mkdir()
    for number in range(100):
        (many / str(number)).touch()
    with places.find_place(str(many)) as place, pytest.raises(RuntimeError):
        next(trees.Tree(print, check).files([places.directory_at(place)]))
    assert looks == 4


def test_a_root_that_goes_before_it_is_scanned(
    run_module: Run, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write above it takes it away: no traceback, and no base is changed that may be used in there."""
    siblings = importlib.import_module(f"{PLUGINS}.module_utils._module.chain.siblings")
    root = home / "root"
    root.mkdir()
    real = siblings.find_place

    def find_place(*arguments: t.Any) -> t.Any:
        if root.exists():
            root.rmdir()
        return real(*arguments)

    monkeypatch.setattr(siblings, "find_place", find_place)
    layers = [str(home / "base"), str(home / "top")]
    found = run_module("qcow2_chain", layers=layers, method="commit", scan=True, allowed_roots=[str(root)])
    assert (found["rc"], found["error_code"]) == (1, "siblings_unknown")


def test_a_scan_ends_with_the_time(
    task: Task, refused: Task, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there is nothing to run a guest for. A second goes by with each look at the clock."""
    for number in range(150):
        (home / "deep" / str(number)).mkdir(parents=True)
    clock = importlib.import_module(f"{PLUGINS}.module_utils._module.clock")
    seconds = itertools.count()
    monkeypatch.setattr(clock, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    assert refused("base", "top", scan=True, timeout=200)["error_code"] == "time_limit"
    assert actions(task("base", "top", scan=True, timeout=2000))
