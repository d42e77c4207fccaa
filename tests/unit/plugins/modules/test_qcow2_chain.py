# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qcow2_chain: real images and real guests, and qemu-img to say what they show."""

from __future__ import annotations

import json
import os
import pathlib
import pwd
import subprocess
import typing as t

import pytest

from tests.unit.plugins.chains import Task, actions, overlay, run, shown

Run = t.Callable[..., dict[str, t.Any]]


def test_the_way_that_writes_less(task: Task, home: pathlib.Path) -> None:
    """Most of what b has is hidden by the top: it is pulled up. What a has goes down, for it is little."""
    done = task("base", "a", "top")
    assert actions(done) == [("pull", "top", "a")]
    assert done["plan"][0]["gone"] == [str(home / "b")]
    assert done["plan"][0]["bytes"] < 1 << 20
    assert "a commit 1048576" in done["plan"][0]["reason"]
    assert done["diff"]["before"] == "base <- a <- b- <- top*\n"
    assert done["diff"]["after"] == "base <- a <- top*\n"


def test_what_is_little_goes_down(task: Task, home: pathlib.Path) -> None:
    overlay(home, "c", "base", "write -P 6 0 64k")
    overlay(home, "d", "c", "write -z 0 4k")
    run("qemu-io", "-c", "write -P 7 1M 200k", "d", directory=home)
    run("qemu-io", "-c", "discard 0 4k", "d", directory=home)
    overlay(home, "e", "d")
    done = task("base", "d", "e", method="commit")
    assert actions(done) == [("commit", "d", "base")]
    assert done["plan"][0]["bytes"] == 65536
    assert done["diff"]["before"] == "base* <- c- <- d* <- e\n"


@pytest.mark.parametrize("method", ["auto", "commit", "pull"])
@pytest.mark.parametrize("drop", [False, True])
def test_several_layers_go(method: str, drop: bool, task: Task, home: pathlib.Path) -> None:
    base, middle = shown(home / "base"), shown(home / "a")
    done = task("base", "top", method=method, drop=drop)
    steps = actions(done)
    assert steps[0][0] == method or method == "auto"
    assert steps[1:] == ([("remove", "b", ""), ("remove", "a", "")] if drop else [])
    assert (home / "a").exists() is not drop
    if steps[0][0] == "pull":
        assert shown(home / "base") == base
        assert drop or shown(home / "a") == middle


def test_two_joints_at_once(task: Task, home: pathlib.Path) -> None:
    overlay(home, "c", "top", "write -P 9 2M 64k")
    overlay(home, "d", "c")
    done = task("base", "b", "d", method="commit")
    assert actions(done) == [("commit", "b", "base"), ("commit", "d", "b")]


def test_new_layers(task: Task, home: pathlib.Path) -> None:
    done = task("base", "top", "new1", "new2", method="pull")
    assert actions(done) == [("pull", "top", "base"), ("create", "new1", "top"), ("create", "new2", "new1")]
    assert done["diff"]["after"] == "base <- top* <- new1+ <- new2+\n"
    assert done["chain"][0]["virtual_size"] == 4 << 20
    other = home / "other"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "new1", "-F", "qcow2", "other", directory=home)
    assert other.read_bytes() == (home / "new2").read_bytes()


def test_a_new_layer_on_a_raw_base(run_module: Run, home: pathlib.Path) -> None:
    (home / "raw").write_bytes(bytes(1 << 20))
    layers = [str(home / "raw"), str(home / "new")]
    done = run_module("qcow2_chain", layers=layers, backing_format="raw")
    assert done["chain_drawing"] == "raw <- new"
    assert done["chain"][0]["backing_format"] == "raw"
    assert run_module("qcow2_chain", layers=layers)["changed"] is False


def test_new_layers_are_no_more_open_than_what_they_stand_on(task: Task, home: pathlib.Path) -> None:
    (home / "top").chmod(0o600)
    mask = os.umask(0)
    try:
        task("base", "a", "b", "top", "new1", "new2")
    finally:
        os.umask(mask)
    assert [(home / name).stat().st_mode & 0o7777 for name in ("new1", "new2")] == [0o600, 0o600]


@pytest.mark.parametrize("mode", ["0640", "640", "0o640", 0o640])
def test_the_mode_that_is_stated(mode: str | int, task: Task, home: pathlib.Path) -> None:
    task("base", "a", "b", "top", "new", mode=mode, owner=str(os.geteuid()), group=str(os.getegid()))
    assert (home / "new").stat().st_mode & 0o7777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users, which needs root")
def test_the_owner_that_is_stated(task: Task, home: pathlib.Path) -> None:
    task("base", "a", "b", "top", "new", owner="daemon", group="12345")
    status = (home / "new").stat()
    assert (pwd.getpwuid(status.st_uid).pw_name, status.st_gid) == ("daemon", 12345)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"mode": 640}, "bad_mode"),
        ({"mode": "u=rw"}, "bad_mode"),
        ({"mode": "04644"}, "bad_mode"),
        ({"mode": True}, "bad_mode"),
        ({"owner": "nobody knows him"}, "bad_owner"),
        ({"group": ""}, "bad_group"),
        ({"owner": "99999999999"}, "bad_owner"),
    ],
)
def test_access_that_cannot_be(options: dict[str, t.Any], code: str, refused: Task, home: pathlib.Path) -> None:
    assert refused("base", "a", "b", "top", "new", **options)["error_code"] == code
    assert not (home / "new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users, which needs root")
@pytest.mark.parametrize("what", ["layer", "new layer", "progress file", "root"])
def test_links_of_strangers(what: str, run_module: Run, home: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Each path that the task names goes by the same rule, and follow_links is for all of them."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "way").symlink_to(home)
    os.chown(theirs, 12345, 12345)
    names = ["base", "a", "b", "top"]
    arguments: dict[str, t.Any] = {"layers": [str(home / name) for name in names]}
    if what == "layer":
        arguments["layers"][-1] = str(theirs / "way/top")
    elif what == "new layer":
        arguments["layers"].append(str(theirs / "way/new"))
    elif what == "progress file":
        arguments["progress_file"] = str(theirs / "way/progress")
    else:
        arguments["allowed_roots"] = [str(theirs / "way")]
    found = run_module("qcow2_chain", **arguments)
    code = {"progress file": "bad_progress_file", "root": "bad_allowed_root"}.get(what, "unsafe_link")
    assert (found["rc"], found["error_code"]) == (1, code)
    assert "follow_links" in found["msg"]
    assert run_module("qcow2_chain", follow_links=True, **arguments)["rc"] == 0


def test_flatten(task: Task, refused: Task) -> None:
    assert refused("top")["error_code"] == "base_has_backing"
    done = task("top", flatten=True)
    assert actions(done) == [("detach", "top", "")]
    assert done["chain"][0]["backing_file"] is None


def test_compressed(task: Task, home: pathlib.Path) -> None:
    before = (home / "top").stat().st_size
    done = task("top", flatten=True, compressed=True)
    assert actions(done) == [("detach", "top", "")]
    assert (home / "top").stat().st_size <= before + 65536, "a cluster has all that was pulled up"


def test_compressed_with_a_data_file(refused: Task, home: pathlib.Path) -> None:
    options = ("-o", "data_file=raw.data", "-b", "top", "-F", "qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, "new", "4M", directory=home)
    found = refused("new", flatten=True, compressed=True)
    assert found["error_code"] == "compress_data_file"


def test_compressed_where_a_commit_is_all_that_can_be_done(task: Task, refused: Task, home: pathlib.Path) -> None:
    """A layer with a data file gets nothing by a commit: auto finds that, whatever a pull would have cost."""
    options = ("-o", "data_file=raw.data", "-b", "b", "-F", "qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, "new", "4M", directory=home)
    layers = ("base", "a", "new")
    assert refused(*layers, compressed=True, method="pull")["error_code"] == "compress_data_file"
    overlay(home, "sibling", "a")
    siblings = [str(home / "sibling")]
    assert refused(*layers, compressed=True, siblings=siblings)["error_code"] == "compress_data_file"
    done = task(*layers, compressed=True)
    assert actions(done) == [("commit", "new", "a")]
    assert done["plan"][0]["reason"].startswith("pulling up cannot be done: ")


def test_flatten_in_the_middle(task: Task, home: pathlib.Path) -> None:
    done = task("a", "top", flatten=True, method="pull")
    assert actions(done) == [("detach", "a", ""), ("pull", "top", "a")]
    assert [step["gone"] for step in done["plan"]] == [[str(home / "base")], [str(home / "b")]]


def test_paths_are_foreseen_as_the_names_will_lead_to_them(task: Task, home: pathlib.Path) -> None:
    """The fixture compares what check mode says with what is there afterwards."""
    (home / "d").mkdir()
    overlay(home, "d/upper", "../top")
    overlay(home, "last", "d/upper")
    task("base", "a", "b", "top", "last", "new", method="pull", allowed_roots=[str(home)])


def test_another_base(task: Task, refused: Task, home: pathlib.Path) -> None:
    overlay(home, "release", None, "write -P 1 0 600k", "write -P 8 2M 64k")
    assert refused("release", "a", "b", "top")["error_code"] == "backing_format_missing"
    done = task("release", "a", "b", "top", backing_format="qcow2")
    assert actions(done) == [("rebase", "a", "release")]
    assert done["plan"][0]["gone"] == [str(home / "base")]
    assert done["diff"]["before"] == "base- <- a* <- b <- top\n"


def test_a_base_that_would_grow(task: Task, refused: Task, home: pathlib.Path) -> None:
    overlay(home, "large", "base", "write -P 1 5M 64k", size="6M")
    overlay(home, "higher", "large", size="6M")
    assert refused("base", "higher", method="commit")["error_code"] == "base_resize"
    done = task("base", "higher", method="auto")
    assert actions(done) == [("pull", "higher", "base")]


@pytest.mark.parametrize("method", ["commit", "pull"])
def test_a_short_layer_hides_what_is_below_its_end(method: str, task: Task, home: pathlib.Path) -> None:
    """When it goes, that must not come to light."""
    overlay(home, "large", None, "write -P 1 2M 4M", size="8M")
    overlay(home, "short", "large", "write -P 2 1M 64k", size="3M")
    overlay(home, "wide", "short", size="8M")
    done = task("large", "wide", method=method)
    assert actions(done) == [(method, "wide", "large")]


def test_a_base_grows_when_it_may(task: Task, home: pathlib.Path) -> None:
    overlay(home, "large", "base", "write -P 1 5M 64k", size="6M")
    overlay(home, "higher", "large", size="6M")
    done = task("base", "higher", method="commit", allow_resize=True)
    assert [layer["virtual_size"] for layer in done["foreseen"]["chain"]] == [6 << 20, 6 << 20]


def test_drop_loses_nothing(refused: Task, home: pathlib.Path) -> None:
    run("qemu-img", "snapshot", "-c", "s", "a", directory=home)
    assert refused("base", "top", drop=True)["error_code"] == "drop_loses"


def test_where_names_may_lead(task: Task, refused: Task, home: pathlib.Path) -> None:
    """A name that the next run could not open is not written."""
    (home / "roots").mkdir()
    os.rename(home / "base", home / "roots" / "base")
    run("qemu-img", "rebase", "-u", "-b", "roots/base", "-F", "qcow2", "a", directory=home)
    (home / "vm").mkdir()
    layers = ("roots/base", "vm/new")
    assert refused(*layers)["error_code"] == "backing_absolute"
    assert not (home / "vm" / "new").exists()
    done = task("a", "new", flatten=True)
    assert done["chain"][0]["backing_file"] == "a"


@pytest.mark.parametrize(
    ("layers", "arguments", "code"),
    [
        ((), {}, "no_layers"),
        (("base", "top"), {"timeout": 0}, "bad_timeout"),
        (("base", "gone", "top"), {}, "layer_not_found"),
        (("gone", "new"), {}, "layer_not_found"),
        (("base", "./base", "top"), {}, "duplicate_path"),
        (("base", "b", "a"), {}, "backing_loop"),
        (("top", "base"), {"flatten": True, "backing_format": "qcow2"}, "backing_loop"),
        (("base", "top"), {"siblings": ["/nowhere/x"]}, "not_found"),
        (("base", "top"), {"allowed_roots": ["/nowhere/x"]}, "bad_allowed_root"),
    ],
)
def test_refused(layers: tuple[str, ...], arguments: dict[str, t.Any], code: str, refused: Task) -> None:
    assert refused(*layers, **arguments)["error_code"] == code


def test_an_order_that_the_layers_cannot_have(refused: Task) -> None:
    """What is wrong is in the task, not in the image."""
    message = refused("base", "b", "a", "top")["msg"]
    assert "order" in message
    assert "rebase -u" not in message


def test_progress_of_all_steps(task: Task, run_module: Run, home: pathlib.Path) -> None:
    """One disk for the commit, one for the image that is taken off its base."""
    overlay(home, "middle", "b", "write -P 8 2M 64k")
    overlay(home, "last", "middle")
    (home / "progress").mkdir()
    where = home / "progress/file"
    done = task("b", "last", method="commit", flatten=True, progress_file=str(where), rate_limit="64M")
    assert actions(done) == [("detach", "b", ""), ("commit", "last", "b")]
    facts = json.loads(where.read_text())
    assert facts["bytes_done"] == facts["bytes_total"] == 8 << 20
    assert (facts["finished"], facts["percent"], facts["seconds_left"]) == (True, 100.0, 0)
    where.unlink()
    run_module("qcow2_chain", layers=[str(home / name) for name in ("b", "last", "new")], progress_file=str(where))
    assert (home / "new").exists()
    assert not where.exists()


def test_in_use(refused: Task, home: pathlib.Path) -> None:
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(home / "top")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdin.write(b"length\n")
        holder.stdin.flush()
        holder.stdout.readline()
        answer = refused("base", "top")
        holder.stdin.close()
    assert answer["error_code"] == "in_use"


def test_vmdk_base(run_module: Run, home: pathlib.Path) -> None:
    """A new overlay on a vmdk image, then the chain of another image moved onto it, and then flattened."""
    run("qemu-img", "create", "-q", "-f", "vmdk", "disk.vmdk", "4M", directory=home)
    run("qemu-io", "-f", "vmdk", "-c", "write -P 7 1M 1M", "disk.vmdk", directory=home)
    layers = [str(home / "disk.vmdk"), str(home / "new.qcow2")]
    for changed in (True, False):
        done = run_module("qcow2_chain", layers=layers, backing_format="vmdk")
        assert (done["rc"], done["changed"]) == (0, changed), done
        assert done["chain_drawing"] == "disk.vmdk <- new.qcow2"
        assert done["chain"][0]["backing_format"] == "vmdk"
    assert shown(home / "new.qcow2")[1 << 20 : 2 << 20] == b"\7" * (1 << 20)
    content = shown(home / "a")
    done = run_module("qcow2_chain", layers=[layers[0], str(home / "a")], backing_format="vmdk", method="pull")
    assert (done["rc"], done["changed"], done["chain_drawing"]) == (0, True, "disk.vmdk <- a"), done
    assert shown(home / "a") == content
