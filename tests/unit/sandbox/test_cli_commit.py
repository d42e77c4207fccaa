# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""airlock commit beside qemu-img commit: the same arguments, messages, exit codes and disks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import shutil
import struct
import subprocess
import termios
import typing as t

import pytest

from sandbox.cli.progress import gauge
from tests.support.qcow2 import Qcow2

from .bitmap_images import run
from .command_line import Airlock, Outcome, qemu_img
from .holding import Holder

pytestmark = pytest.mark.kvm

PROGRESS = re.compile(rb"    \([0-9]+\.[0-9][0-9]/100%\)\r")


def make(directory: pathlib.Path) -> None:
    """raw <- a <- b <- top, and images that cannot be committed."""
    run("qemu-img", "create", "-f", "raw", "raw", "1M", directory=directory)
    for name, below, below_format in (("a", "raw", "raw"), ("b", "a", "qcow2"), ("top", "./b", "qcow2")):
        run("qemu-img", "create", "-f", "qcow2", "-b", below, "-F", below_format, name, "1M", directory=directory)
    run("qemu-io", "-c", "write -P 1 0 64k", "a", directory=directory)
    run("qemu-io", "-c", "write -P 2 64k 64k", "b", directory=directory)
    run("qemu-io", "-c", "write -P 3 128k 64k", "top", directory=directory)
    run("qemu-img", "create", "-f", "qcow2", "-b", "top", "-F", "qcow2", "larger", "3M", directory=directory)
    run("qemu-io", "-c", "write -P 4 2M 64k", "larger", directory=directory)
    run("qemu-img", "create", "-f", "qcow2", "alone", "1M", directory=directory)
    run("qemu-img", "create", "-f", "qcow2", "-o", "compat=0.10", "v2", "1M", directory=directory)
    run("qemu-img", "snapshot", "-c", "s", "v2", directory=directory)
    run("qemu-img", "create", "-f", "qcow2", "-b", "v2", "-F", "qcow2", "on-v2", "2M", directory=directory)
    locked = ("--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
    run("qemu-img", "create", "-f", "qcow2", *locked, "luks", "1M", directory=directory)
    run("qemu-img", "create", "-u", "-f", "qcow2", "-b", "luks", "-F", "qcow2", "on-luks", "1M", directory=directory)
    (directory / "empty").touch()
    (directory / "folder").mkdir()
    (directory / "folder/link").symlink_to("../b")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("template")
    make(directory)
    return directory


@pytest.fixture
def ours(template: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(template, tmp_path / "ours", symlinks=True))


@pytest.fixture
def theirs(template: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(template, tmp_path / "theirs", symlinks=True))


def disks(directory: pathlib.Path) -> dict[str, bytes]:
    """What each layer shows; and the whole file of those that are deterministic with qemu-img."""
    found = {}
    for name in ("raw", "a", "b", "top", "larger"):
        image_format = "raw" if name == "raw" else "qcow2"
        target = directory / "shown"
        run("qemu-img", "convert", "-f", image_format, "-O", "raw", name, "shown", directory=directory)
        found[name] = target.read_bytes()
        if name not in ("raw", "a"):  # into a, two operations of qemu-img can be in flight
            run("qemu-img", "check", "-q", name, directory=directory)
            found[f"file {name}"] = (directory / name).read_bytes()
    return found


COMMITS = """
top|-d top|--drop top|-b b top|-b a top|-b raw top|-b ./raw top|-b folder/../a top|-b folder/link top|-b top top
-d -b b top|-b raw a|a|b|larger|-b a larger|-b raw larger|-d larger|-f qcow2 top|-f qcow2 raw|-f bogus top|-q top
-t none top|-t off top|-t directsync top|-t writethrough top|-t unsafe top|-t writeback top|-t bogus top|-t bogus nope
-r 1G top|-r 0 top|-r 1k nope|-r x top|-r -1 top|-r 1.5 top|-r 99999999999999999999 top|-t x -r x top|alone|v2|on-v2
-d on-v2|nope|folder|-f qcow2 empty|top nope|-z|-b|-f|-t|-r|--base|--cache=none top|--rate=2M top|--format
--base=raw top|--ba a top|--dro top|--q top|-dq top|-qd -b a top|top -d|-- -d|--bogus top|--drop=1 top|--r 1M top
--quiet top|-dbx top|-b x top|a b
""".replace("\n", "|").split("|")


@pytest.mark.parametrize("line", COMMITS)
def test_commit(line: str, airlock: Airlock, ours: pathlib.Path, theirs: pathlib.Path) -> None:
    arguments = line.encode().split()
    wanted = qemu_img(b"commit", *arguments, directory=theirs)
    assert airlock(b"commit", *arguments, directory=ours) == wanted
    assert disks(ours) == disks(theirs)


@pytest.mark.parametrize(
    ("name", "prefix"), [(b"luks", b""), (b"on-luks", b"Could not open backing file: ")], ids=["itself", "below"]
)
def test_no_key_is_asked_for(name: bytes, prefix: bytes, airlock: Airlock, ours: pathlib.Path) -> None:
    """qemu-img names an option for it, which is not here."""
    before = disks(ours)
    done = airlock(b"commit", name, directory=ours)
    assert (done.code, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"airlock: Could not open '%s': %s" % (name, prefix))
    assert b"no keys are taken here. If you trust the image" in done.stderr
    assert b"key-secret" not in done.stderr
    assert disks(ours) == before


def test_help(airlock: Airlock, template: pathlib.Path) -> None:
    done = airlock(b"commit", b"-d", b"--help", b"-z", directory=template)
    assert (done.code, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Commit image to its backing file.  Usage:\n")


@pytest.mark.parametrize(
    "line", ["-p top", "-p -b x top", "-p on-v2", "-p -q top", "-p nope", "-p larger", "-p -t x a"]
)
def test_progress(line: str, airlock: Airlock, ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """qemu-img's lines come as often as it looks; all else is the same, and there is a line for 0 and one for 100."""
    arguments = line.encode().split()
    wanted = qemu_img(b"commit", *arguments, directory=theirs)
    done = airlock(b"commit", *arguments, directory=ours)
    for part in (b"(0.00/100%)", b"(100.00/100%)"):
        assert (part in done.stdout) == (part in wanted.stdout)
    assert done._replace(stdout=PROGRESS.sub(b"", done.stdout)) == wanted._replace(
        stdout=PROGRESS.sub(b"", wanted.stdout)
    )


def test_a_base_that_is_marked_corrupt(airlock: Airlock, ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """qemu-img opens it for reading first, which it may, and then does not look any more."""
    for directory in (ours, theirs):
        with open(directory / "b", "r+b") as file:
            file.seek(79)
            file.write(b"\2")
    before = (ours / "b").read_bytes()
    assert qemu_img(b"commit", b"top", directory=theirs).code == 0
    done = airlock(b"commit", b"top", directory=ours)
    assert (done.code, done.stdout) == (1, b"")
    assert b"Image is corrupt; cannot be opened read/write" in done.stderr
    assert (ours / "b").read_bytes() == before


@pytest.mark.parametrize("options", [(), ("-r",)])
@pytest.mark.parametrize("line", ["top", "b", "-b a top", "-b raw top", "-b raw b", "larger", "a"])
@pytest.mark.parametrize("held", ["top", "a", "b"])
def test_held_images(
    line: str, held: str, options: tuple[str, ...], airlock: Airlock, ours: pathlib.Path, theirs: pathlib.Path
) -> None:
    """Who has a layer open, for writing or for reading, is in the way just where qemu-img says so."""
    arguments = line.encode().split()
    found = []
    for directory, command in ((theirs, qemu_img), (ours, airlock)):
        with Holder(str(directory / held), *options):
            found.append(command(b"commit", *arguments, directory=directory))
    assert found[1] == found[0]


def test_the_base_may_have_to_keep_its_size(airlock: Airlock, ours: pathlib.Path, template: pathlib.Path) -> None:
    done = airlock(b"commit", b"--no-resize", b"larger", directory=ours)
    assert done.code == 1
    assert b"1048576 bytes" in done.stderr
    assert b"--no-resize" in done.stderr
    assert disks(ours) == disks(template)
    assert airlock(b"commit", b"--no-resize", b"top", directory=ours).code == 0


@pytest.mark.parametrize("options", ["cluster_size=64k", "compat=0.10", "extended_l2=on"])
@pytest.mark.parametrize("step", ["write -P 1 0 1M", "write -c -P 1 64k 64k", "snapshot"])
def test_a_base_that_was_larger_once(airlock: Airlock, tmp_path: pathlib.Path, options: str, step: str) -> None:
    """What its last cluster has behind the end stays hidden when it grows. After qemu-img commit it shows."""
    run("qemu-img", "create", "-f", "qcow2", "-o", options, "base", "1M", directory=tmp_path)
    run("qemu-io", "-c", step if step != "snapshot" else "write -P 1 0 1M", "base", directory=tmp_path)
    run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", "base", "100K", directory=tmp_path)
    if step == "snapshot" and "0.10" not in options:
        run("qemu-img", "snapshot", "-c", "s", "base", directory=tmp_path)
    run("qemu-img", "create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top", "1M", directory=tmp_path)
    run("qemu-io", "-c", "write -P 2 512k 64k", "top", directory=tmp_path)
    run("qemu-img", "convert", "-O", "raw", "top", "before", directory=tmp_path)
    for name in ("base", "top"):
        shutil.copy(tmp_path / name, tmp_path / f"{name}.made")
    shows = {}
    for who in ("qemu", "ours"):
        for name in ("base", "top"):
            shutil.copy(tmp_path / f"{name}.made", tmp_path / name)
        commit = qemu_img if who == "qemu" else airlock
        assert commit(b"commit", b"top", directory=tmp_path).code == 0
        run("qemu-img", "check", "-q", "base", directory=tmp_path)
        run("qemu-img", "convert", "-O", "raw", "top", "after", directory=tmp_path)
        shows[who] = (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()
    assert shows == {"qemu": False, "ours": True}


def test_json(airlock: Airlock, ours: pathlib.Path) -> None:
    done = airlock(b"commit", b"--output=json", b"-b", b"a", b"larger", directory=ours)
    assert json.loads(done.stdout) == {
        "overlay": "larger",
        "overlay-format": "qcow2",
        "base": "./a",
        "base-format": "qcow2",
        "chain": "raw <- a <- b <- top <- larger",
        "bytes-committed": 3 << 16,
        "bytes-zeroed": 0x1F0000,
        "clusters-committed": 34,
        "overlay-clusters-cleared": 0,
        "bitmaps": [],
        "resized": True,
        "virtual-size": 3 << 20,
    }


def forget_format(path: pathlib.Path) -> None:
    """The extension becomes one that nobody knows."""
    image = path.read_bytes()
    path.write_bytes(image.replace(b"\xe2\x79\x2a\xca", b"????", 1))


def test_names_are_judged(airlock: Airlock, tmp_path: pathlib.Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run("qemu-img", "create", "-f", "raw", "elsewhere/base", "1M", directory=tmp_path)
    (tmp_path / "here").mkdir()
    run(
        "qemu-img",
        "create",
        "-f",
        "qcow2",
        "-b",
        "../elsewhere/base",
        "-F",
        "raw",
        "top",
        "1M",
        directory=tmp_path / "here",
    )
    forget_format(tmp_path / "here/top")
    run("qemu-io", "-c", "write -P 7 0 64k", "-f", "qcow2", "here/top", directory=tmp_path)
    plain: tuple[bytes, ...] = (b"commit", b"top")
    for more, words in (((), b"--allowed-root"), ((b"--allowed-root", b"../elsewhere"), b"--backing-format")):
        done = airlock(*plain, *more, directory=tmp_path / "here")
        assert done.code == 1
        assert words in done.stderr
    done = airlock(*plain, *more, b"--backing-format=raw", directory=tmp_path / "here")
    assert done == Outcome(0, b"Image committed.\n", b"")
    assert (tmp_path / "elsewhere/base").read_bytes()[:65536] == b"\7" * 65536


@pytest.mark.parametrize("columns", [0, 78, 79])
def test_a_terminal_sees_a_bar(columns: int, ours: pathlib.Path) -> None:
    """Where it has the room for one; 0: it does not say how much."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    code = "import sys; from sandbox.cli.main import main; sys.exit(main())"
    command = ["python3", "-c", code, "commit", "-p", "top"]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[3])}
    done = subprocess.run(command, cwd=ours, stdout=terminal, env=environment, check=False)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # EIO at the end; what comes there is handed over in parts
        while part := os.read(controller, 65536):
            shown += part
    os.close(controller)
    assert done.returncode == 0
    assert (b"[" + b" " * 30 + b"]" in shown) == (columns != 78)
    assert (b"[" + b"=" * 30 + b"]" in shown) == (columns != 78)
    assert columns == 0 or max(map(len, shown.replace(b"\r", b"\n").split(b"\n"))) <= columns
    assert shown.endswith(b"(100.00/100%)\r\r\nImage committed.\r\n")


@pytest.mark.parametrize(
    ("done", "total", "seconds", "wanted"),
    [
        (0, 100, 0.0, "    [                              ]                              "),
        (1 << 20, 4 << 20, 2.0, "    [=======                       ]     512 KiB/s   0:00:06 left "),
        (1 << 30, 1 << 40, 10.0, "    [                              ]     102 MiB/s   2:50:30 left "),
        (4 << 20, 4 << 20, 2.0, "    [==============================]       2 MiB/s   0:00:00 left "),
    ],
)
def test_gauge(done: int, total: int, seconds: float, wanted: str) -> None:
    assert gauge(done, total, seconds) == wanted


def test_the_rate_is_kept_to(airlock: Airlock, ours: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits that the guest runs in have it; pacing itself is tested with a clock of its own."""
    seen: list[t.Any] = []
    from sandbox.images import commits

    real = commits.commit_limits
    monkeypatch.setattr("sandbox.cli.commit.commit_limits", lambda *a, **more: seen.append(more) or real(*a, **more))
    assert airlock(b"commit", b"-r", b"64M", b"-t", b"unsafe", b"top", directory=ours).code == 0
    assert seen == [{"rate": 64 << 20, "flushes": False}]


def test_more_tables_than_the_file_has_room_for(airlock: Airlock, tmp_path: pathlib.Path) -> None:
    """64 GiB of the disk by one L2 table that all of the L1 table names: refused, and nothing of it is copied."""
    run("qemu-img", "create", "-f", "qcow2", "base", "64G", directory=tmp_path)
    run("qemu-img", "create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top", "64G", directory=tmp_path)
    run("qemu-io", "-c", "write -P 1 0 64k", "top", directory=tmp_path)
    with Qcow2(str(tmp_path / "top")) as image:
        l1, size = image.header["l1_table_offset"], image.header["l1_size"]
    with open(tmp_path / "top", "r+b") as file:
        file.seek(l1)
        entry = file.read(8)
        file.seek(l1)
        file.write(entry * size)
    before = {name: (tmp_path / name).read_bytes() for name in ("base", "top")}
    for arguments in ((b"commit", b"top"), (b"rebase", b"-b", b"", b"top")):
        refused = airlock(*arguments, directory=tmp_path)
        assert refused.code == 1, refused
        assert b"active L1 table" in refused.stderr or b"corrupt" in refused.stderr, refused
    assert {name: (tmp_path / name).read_bytes() == content for name, content in before.items()} == dict.fromkeys(
        before, True
    )


@pytest.mark.parametrize("policy", [None, b"leave", b"merge", b"drop", b"refuse"])
def test_bitmaps(airlock: Airlock, ours: pathlib.Path, policy: bytes | None) -> None:
    """As the module's option; what qemu-img does, which leaves them alone, is what happens without it."""
    for name in ("b", "top"):
        run("qemu-img", "bitmap", "--add", "-g", "4k", name, "inc", directory=ours)
    run("qemu-io", "-c", "write -P 7 512k 4k", "top", directory=ours)
    run("qemu-io", "-c", "write -P 7 768k 4k", "b", directory=ours)
    options = [b"--bitmaps", policy] if policy else []
    done = airlock(b"commit", *options, b"--output=json", b"-b", b"a", b"top", directory=ours)
    if policy == b"refuse":
        assert (done.code, done.stdout) == (1, b"")
        assert b"top has persistent bitmaps (1; the first is 'inc')" in done.stderr
        assert b"With --bitmaps merge they are merged" in done.stderr
        return
    assert done.code == 0, done
    assert json.loads(done.stdout)["bitmaps"] == (["inc"] if policy in (b"merge", b"drop") else [])
    found = {}
    for name in ("a", "b", "top"):
        facts = json.loads(qemu_img(b"info", b"--output=json", name.encode(), directory=ours).stdout)
        found[name] = [each["name"] for each in facts["format-specific"]["data"].get("bitmaps", [])]
    left = [] if policy == b"drop" else ["inc"]
    assert found == {"a": ["inc"] if policy == b"merge" else [], "b": left, "top": left}


def test_a_merged_bitmap_and_an_emptied_top(airlock: Airlock, ours: pathlib.Path) -> None:
    run("qemu-img", "bitmap", "--add", "-g", "4k", "top", "inc", directory=ours)
    run("qemu-io", "-c", "write -P 7 512k 4k", "top", directory=ours)
    done = json.loads(airlock(b"commit", b"--bitmaps=merge", b"--output=json", b"top", directory=ours).stdout)
    assert (done["bitmaps"], done["overlay-clusters-cleared"]) == (["inc"], 2)
    facts = airlock(b"bitmap", b"--list", b"--extents", b"inc", b"--output=json", b"b", directory=ours)
    assert [(each["start"], each["length"]) for each in json.loads(facts.stdout)["extents"]] == [(512 << 10, 4096)]


def test_a_policy_that_there_is_not(airlock: Airlock, ours: pathlib.Path) -> None:
    done = airlock(b"commit", b"--bitmaps", b"keep", b"top", directory=ours)
    assert done.code == 1
    assert b"--bitmaps expects leave, refuse, drop or merge, not 'keep'" in done.stderr
