# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line beside the real qemu-img: the same arguments, the same output, messages and exit codes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pathlib
import pty
import shutil
import struct
import subprocess
import sys
import typing as t

import pytest

from sandbox import errors, operations
from sandbox.images import snapshots

from .command_line import EVIL, SHOWN, Airlock, Outcome, qemu_img
from .snapshot_tables import make_image, snapshot

pytestmark = pytest.mark.kvm

TOP = pathlib.Path(__file__).parents[3]
LONG = b"n" * 300


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory of files of all kinds."""
    directory = tmp_path_factory.mktemp("template")

    def run(*arguments: str | bytes) -> None:
        subprocess.run(arguments, cwd=directory, check=True, stdout=subprocess.DEVNULL)

    run("qemu-img", "create", "-f", "qcow2", "-o", "cluster_size=4096", "a", "1M")
    run("qemu-img", "create", "-f", "qcow2", "-o", "cluster_size=4096,compat=0.10", "v2", "1M")
    for image in ("a", "v2"):
        for name in (b"s1", b"7", b"", EVIL, b"s1", LONG):
            run("qemu-img", "snapshot", "-c", name, image)
    run("qemu-img", "resize", "-q", "a", "2M")
    run("qemu-img", "create", "-f", "qcow2", "bitmap", "1M")
    run("qemu-img", "snapshot", "-c", "s1", "bitmap")
    run("qemu-img", "bitmap", "--add", "bitmap", "b0")
    run("qemu-img", "create", "-f", "qcow2", "-o", "data_file=raw.data", "data", "1M")
    run("qemu-img", "create", "-f", "raw", "raw", "1M")
    make_image(directory / "evil", [snapshot(EVIL, EVIL, (1, 2), 3, 4, None)])
    (directory / "empty").touch()
    (directory / "folder").mkdir()
    (directory / "link").symlink_to("a")
    (directory / "loop").symlink_to("loop")
    (directory / "dangling").symlink_to("nowhere")
    return directory


@pytest.fixture
def ours(template: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(template, tmp_path / "ours", symlinks=True))


@pytest.fixture
def theirs(template: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(template, tmp_path / "theirs", symlinks=True))


USAGE = """
|snapshot|snapshot a b|snapshot -z a|snapshot -lz a|snapshot -c|snapshot -a|snapshot -d|snapshot -f|snapshot --foo a
snapshot --foo=3 a|snapshot --list=3 a|snapshot --l=3 a|snapshot --f qcow2 a|snapshot --fo a|snapshot --form
snapshot -l -c x a|snapshot -l -l a|snapshot -c x -c y a|snapshot -a x -d y a|snapshot -l -l -z a|snapshot -z -l -l a
snapshot - a|snapshot -- -l a|snapshot -lc x|snapshot -qqc|snapshot -c x -- a b|bogus|--bogus|-z|--version=3|-zh
info|info a b|info -z a|info --output=xml a|info --output xml|info --output|info --out|Snapshot a|-- bogus|- a
snapshot -c x|snapshot -Ulz a|snapshot -U-l a|snapshot -l- a
""".replace("\n", "|").split("|")


@pytest.mark.parametrize("line", USAGE[1:-1])
def test_usage_errors(line: str, airlock: Airlock, template: pathlib.Path) -> None:
    arguments = line.encode().split()
    wanted = qemu_img(*arguments, directory=template)
    assert wanted.code == 1
    assert airlock(*arguments, directory=template) == wanted


ODD = [
    [b"snapshot", b"-\xc3\xa9", b"a"],
    [b"snapshot", b"--\xc3\xa9=\x1b", b"a"],
    [b"sn\xff"],
    [b""],
]


@pytest.mark.parametrize("arguments", ODD)
def test_odd_bytes_in_usage_errors(arguments: list[bytes], airlock: Airlock, template: pathlib.Path) -> None:
    assert airlock(*arguments, directory=template) == qemu_img(*arguments, directory=template)


READS = """
a|-l a|-la|-lU a|a -l|-- a|-l -- a|--list a|--l a|-q a|-f qcow2 a|-fqcow2 a|--format=qcow2 a|--format qcow2 a -U|link -l
-U --force-share a|evil|v2|bitmap|data|-l bitmap -U|-U data
nope|-U nope|a/x|loop|dangling|folder|-f qcow2 raw|-f qcow2 empty|-f bogus a|-f bogus nope|-f bogus -f qcow2 a
""".replace("\n", "|").split("|")


@pytest.mark.parametrize("line", READS[1:-1])
def test_list(line: str, airlock: Airlock, ours: pathlib.Path, theirs: pathlib.Path) -> None:
    arguments = [b"snapshot", *line.encode().split()]
    assert airlock(*arguments, directory=ours) == qemu_img(*arguments, directory=theirs)


CHANGES = [
    [b"-c", b"x", b"a"],
    [b"-cx", b"a"],
    [b"a", b"-c", b"x"],
    [b"-q", b"-c", b"x", b"a"],
    [b"-c", b"", b"a"],
    [b"-c", LONG, b"a"],
    [b"-c", EVIL, b"a"],
    [b"-c", b"-l", b"a"],
    [b"-c", b"x", b"v2"],
    [b"-c", b"x", b"bitmap"],
    [b"-c", b"x", b"data"],
    [b"-d", b"x", b"data"],
    [b"-a", b"x", b"data"],
    [b"-d", b"s1", b"a"],
    [b"-d", b"1", b"a"],
    [b"-d", b"", b"a"],
    [b"-d", b"nope", b"a"],
    [b"-d", EVIL, b"a"],
    [b"-d", b"\xff|{}%s", b"a"],
    [b"-d", LONG, b"a"],
    [b"-d", LONG[:255], b"a"],
    [b"-d", b"s1", b"bitmap"],
    [b"-a", b"s1", b"v2"],
    [b"-a", b"1", b"v2"],
    [b"-a", b"7", b"v2"],
    [b"-a", LONG, b"v2"],
    [b"-a", LONG[:255], b"v2"],
    [b"-a", EVIL, b"v2"],
    [b"-a", b"nope", b"v2"],
    [b"-a", b"s1", b"a"],
    [b"-a", b"s1", b"bitmap"],
    [b"-a", b"nope", b"bitmap"],
    [b"-U", b"-c", b"x", b"a"],
    [b"-U", b"-d", b"x", b"nope"],
    [b"-U", b"-a", b"x", b"raw"],
    [b"-c", b"x", b"nope"],
    [b"-c", b"x", b"folder"],
    [b"-c", b"x", b"a/x"],
    [b"-c", b"x", b""],
    [b""],
    [b"-d", b"x", b"-f", b"qcow2", b"raw"],
    [b"-a", b"x", b"-f", b"qcow2", b"empty"],
    [b"-c", b"x", b"-f", b"bogus", b"-U", b"a"],
]


@pytest.mark.parametrize("arguments", CHANGES)
def test_change(arguments: list[bytes], airlock: Airlock, ours: pathlib.Path, theirs: pathlib.Path) -> None:
    wanted = qemu_img(b"snapshot", *arguments, directory=theirs)
    assert airlock(b"snapshot", *arguments, directory=ours) == wanted
    for image in ("a", "v2", "bitmap"):
        assert names(ours / image) == names(theirs / image)


def names(image: pathlib.Path) -> list[tuple[str, str]]:
    """(id, name) of each snapshot, as qemu-img says."""
    done = subprocess.run(["qemu-img", "info", "--output=json", image], check=True, stdout=subprocess.PIPE)
    return [(entry["id"], entry["name"]) for entry in json.loads(done.stdout.decode("latin-1")).get("snapshots", [])]


def test_a_held_image(airlock: Airlock, ours: pathlib.Path) -> None:
    with operations.Image.open(str(ours / "a"), writable=True):
        for arguments in ([b"-l"], [b"-c", b"x"], [b"-a", b"s1"], [b"-d", b"s1"], [b"-lU"]):
            wanted = qemu_img(b"snapshot", *arguments, b"a", directory=ours)
            assert wanted.code == (0 if arguments == [b"-lU"] else 1)
            assert airlock(b"snapshot", *arguments, b"a", directory=ours) == wanted


def test_posixly_correct(airlock: Airlock, template: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSIXLY_CORRECT", "")
    for arguments in ([b"a", b"-l"], [b"-l", b"a"]):
        wanted = qemu_img(b"snapshot", *arguments, directory=template)
        assert airlock(b"snapshot", *arguments, directory=template) == wanted


@pytest.mark.parametrize(
    "line",
    ["snapshot -h", "snapshot --help", "snapshot -l -h -z", "--help", "-h -z", "info --he", "-V", "--version -z"],
)
def test_help_comes_first_and_goes_to_stdout(line: str, airlock: Airlock, template: pathlib.Path) -> None:
    arguments = line.encode().split()
    done = airlock(*arguments, directory=template)
    assert (done.code, done.stderr) == (0, b"")
    version = next(line.split()[1] for line in (TOP / "galaxy.yml").read_bytes().splitlines() if b"version:" in line)
    assert (b"version %s\n" % version in done.stdout) == (b"snapshot" not in arguments and b"info" not in arguments)
    assert qemu_img(*arguments, directory=template).code == 0


# ---- what differs on purpose: docs/divergences.md --------------------------------------------------------


@pytest.mark.parametrize("option", [b"--create", b"--cr", b"--delete", b"--apply"])
def test_long_operations_take_their_name(option: bytes, airlock: Airlock, ours: pathlib.Path) -> None:
    """Debian's qemu-img declares them without a value, and crashes."""
    assert qemu_img(b"snapshot", option, b"s1", b"v2", directory=ours).code == 1
    assert airlock(b"snapshot", option, b"s1", b"v2", directory=ours) == (0, b"", b"")
    assert airlock(b"snapshot", option + b"=7", b"v2", directory=ours) == (0, b"", b"")


@pytest.mark.parametrize("operation", [[b"-l"], [b"-c", b"x"], [b"-a", b"x"], [b"-d", b"x"]])
@pytest.mark.parametrize("image", [b"raw", b"empty"])
def test_a_format_is_never_guessed(image: bytes, operation: list[bytes], airlock: Airlock, ours: pathlib.Path) -> None:
    before = (ours / image.decode()).read_bytes()
    wanted = b"airlock: Could not open '%s': Image is not in qcow2 format\n" % image
    assert airlock(b"snapshot", *operation, image, directory=ours) == (1, b"", wanted)
    assert qemu_img(b"snapshot", b"-f", b"qcow2", *operation, image, directory=ours).stderr == wanted
    assert (ours / image.decode()).read_bytes() == before


def test_no_objects(airlock: Airlock, template: pathlib.Path) -> None:
    done = airlock(b"snapshot", b"--object", b"x", b"a", directory=template)
    assert done.code == 1
    assert done.stderr.startswith(b"airlock snapshot: unrecognized option '--object'\n")


@pytest.mark.parametrize("path", [b"nbd://localhost/x", b"json:{}", b"foo:bar"])
def test_a_name_is_always_a_file_of_that_name(path: bytes, airlock: Airlock, template: pathlib.Path) -> None:
    done = airlock(b"snapshot", path, directory=template)
    assert done.stderr == b"airlock: Could not open '%s': Could not open '%s': No such file or directory\n" % (
        path,
        path,
    )


def test_a_fifo_is_refused_at_once(airlock: Airlock, ours: pathlib.Path) -> None:
    os.mkfifo(ours / "fifo")
    wanted = b"airlock: Could not open 'fifo': 'file' driver requires 'fifo' to be a regular file\n"
    assert airlock(b"snapshot", b"fifo", directory=ours) == (1, b"", wanted)


def test_no_resize_refuses_another_size(airlock: Airlock, ours: pathlib.Path) -> None:
    before = (ours / "a").read_bytes()
    done = airlock(b"snapshot", b"--no-resize", b"-a", b"s1", b"a", directory=ours)
    assert done.code == 1
    assert done.stderr.startswith(
        b"airlock: Could not apply snapshot 's1': The disk has 2097152 bytes, the snapshot 1048576."
    )
    assert (ours / "a").read_bytes() == before
    assert airlock(b"snapshot", b"-a", b"s1", b"a", directory=ours) == (0, b"", b"")


def test_a_listing_in_a_pipe_has_no_control_characters(airlock: Airlock, template: pathlib.Path) -> None:
    done = airlock(b"snapshot", b"-l", b"evil", directory=template)
    assert done.stdout.count(b"\n") == 3, "a newline in a name makes no line"
    assert done.stdout.count(SHOWN) == 2
    done = airlock(b"info", b"evil", directory=template)
    assert done.stdout.count(SHOWN) == 2
    assert done.stdout.replace(b"\n", b"").translate(None, bytes(range(32))) == done.stdout.replace(b"\n", b"")


# ---- hosts as they are --------------------------------------------------------------------------------------


def test_the_unexpected_is_one_line(airlock: Airlock, template: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> t.NoReturn:
        raise RuntimeError("no\x1b such\nluck")

    monkeypatch.setattr(snapshots, "list_snapshots", fail)
    monkeypatch.delenv("AIRLOCK_DEBUG", raising=False)
    done = airlock(b"snapshot", b"a", directory=template)
    assert done.code == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"airlock: A fault of airlock itself: RuntimeError: no")
    assert b"AIRLOCK_DEBUG=1" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert b"\x1b" not in done.stderr
    monkeypatch.setenv("AIRLOCK_DEBUG", "1")
    with pytest.raises(RuntimeError):
        airlock(b"snapshot", b"a", directory=template)


def test_a_character_that_the_locale_does_not_have(
    airlock: Airlock, template: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decoded from the command line can be encoded again; what a message adds to it need not be."""

    def fail(*_arguments: object) -> t.NoReturn:
        raise errors.ArgumentError("caf\xe9 \u65e5 \udcff", "x")

    monkeypatch.setattr(snapshots, "list_snapshots", fail)
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "fsencode", lambda name: name.encode("latin-1", "surrogateescape") if isinstance(name, str) else name
        )
        done = airlock(b"snapshot", b"a", directory=template)
    assert done == (1, b"", b"airlock: caf\xe9 \\u65e5 \xff\n")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_closed_standard_streams(program: str, ours: pathlib.Path, closed: tuple[int, ...]) -> None:
    """None of them becomes an image's, and what is to be done is done."""
    redirections = " ".join(f"{number}>&-" for number in closed)
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "TMPDIR")}
    for arguments, code in (("-c new bitmap", 0), ("-d none bitmap", 1), ("-l bitmap", 1 if 1 in closed else 0)):
        command = f"'{sys.executable}' -I '{program}' snapshot {arguments} {redirections}"
        done = subprocess.run(["sh", "-c", command], cwd=ours, capture_output=True, check=False, env=environment)
        assert done.returncode == code
        assert b"Traceback" not in done.stderr
    listing = subprocess.run(["qemu-img", "snapshot", "-l", ours / "bitmap"], check=True, capture_output=True).stdout
    assert b" new " in listing


# ---- what qemu-img has not ---------------------------------------------------------------------------------


def test_json_list(airlock: Airlock, template: pathlib.Path) -> None:
    done = airlock(b"snapshot", b"--output", b"json", b"evil", directory=template)
    assert done.stdout.isascii()
    assert b"\x1b" not in done.stdout
    assert json.loads(done.stdout) == [
        {
            "id": "\x1b[31m\n\ufffd",
            "name": "\x1b[31m\n\ufffd",
            "vm-state-size": 3,
            "date": {"sec": 1, "nsec": 2},
            "vm-clock": 4,
            "icount": None,
        }
    ]
    assert json.loads(airlock(b"snapshot", b"--output=json", b"data", directory=template).stdout) == []


def test_json_of_changes(airlock: Airlock, ours: pathlib.Path) -> None:
    def run(*arguments: bytes) -> t.Any:
        return json.loads(airlock(b"snapshot", b"--output=json", *arguments, b"v2", directory=ours).stdout)

    assert run(b"-c", b"x") == {"id": "8" if ("7", "s1") in names(ours / "v2") else "7", "leaked-clusters": 0}
    assert run(b"-a", b"x") == {"virtual-size": 1 << 20, "resized": False, "leaked-clusters": 0}
    assert run(b"-d", b"x").keys() == {"freed-clusters", "leaked-clusters"}


def test_info(airlock: Airlock, template: pathlib.Path) -> None:
    """Every line that qemu-img has too says the same."""
    done = airlock(b"info", b"a", directory=template)
    assert (done.code, done.stderr) == (0, b"")
    theirs = qemu_img(b"info", b"a", directory=template).stdout.splitlines()
    keys = {line.split(b":")[0] for line in theirs}
    shared = [line for line in done.stdout.splitlines() if line.split(b":")[0] in keys]
    assert len(shared) > 15
    assert [line for line in shared if line not in theirs] == []


def test_info_json_is_what_the_module_returns(airlock: Airlock, template: pathlib.Path) -> None:
    facts = json.loads(airlock(b"info", b"--output", b"json", b"evil", directory=template).stdout)
    assert facts["path"] == "evil"
    assert facts["virtual_size"] == 1 << 20
    assert facts["snapshots"][0]["name"] == "\ufffd[31m\ufffd\ufffd"
    assert facts["snapshots"][0]["date"]["iso8601"] == "1970-01-01T00:00:01.000000002Z"


def test_source_date_epoch(airlock: Airlock, ours: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert airlock(b"snapshot", b"-c", b"dated", b"v2", directory=ours).code == 0
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1e9")
    done = airlock(b"snapshot", b"-c", b"x", b"v2", directory=ours)
    assert done.stderr.startswith(b"airlock: SOURCE_DATE_EPOCH is not a number of seconds.")
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert airlock(b"snapshot", b"-c", b"now", b"v2", directory=ours).code == 0
    entries = json.loads(airlock(b"snapshot", b"--output=json", b"v2", directory=ours).stdout)
    assert (entries[-2]["name"], entries[-2]["date"]) == ("dated", {"sec": 1700000000, "nsec": 0})
    assert entries[-1]["date"]["sec"] > 1700000000
    assert entries[-1]["date"]["nsec"] % 1000 == 0


def leak(image: pathlib.Path) -> None:
    """Appends a cluster that only its refcount knows."""
    data = bytearray(image.read_bytes())
    data += bytes(-len(data) % 4096)
    (table,) = struct.unpack_from(">Q", data, 48)
    (block,) = struct.unpack_from(">Q", data, table)
    struct.pack_into(">H", data, block + 2 * (len(data) // 4096), 1)
    image.write_bytes(data + bytes(4096))


@pytest.mark.parametrize("operation", [[b"-c", b"x"], [b"-d", b"s1"], [b"-a", b"s1"]])
def test_leaked_clusters_are_a_warning(operation: list[bytes], airlock: Airlock, ours: pathlib.Path) -> None:
    leak(ours / "v2")
    done = airlock(b"snapshot", *operation, b"v2", directory=ours)
    assert (done.code, done.stdout) == (0, b"")
    assert done.stderr.startswith(b"airlock: warning: v2: leaked clusters: 1,")
    assert airlock(b"snapshot", b"-q", b"-c", b"y", b"v2", directory=ours) == (0, b"", b"")


def test_a_file_system_without_locks_is_a_warning(
    airlock: Airlock, ours: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> t.NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    done = airlock(b"snapshot", b"-c", b"x", b"v2", directory=ours)
    wanted = b"airlock: warning: v2 is not locked against other programs: no locks here: No locks available\n"
    assert done == (0, b"", wanted)
    assert airlock(b"snapshot", b"-q", b"-d", b"x", b"v2", directory=ours) == (0, b"", b"")


def test_an_interrupt_is_no_traceback(
    airlock: Airlock, template: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: object) -> t.NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshots, "list_snapshots", interrupt)
    assert airlock(b"snapshot", b"a", directory=template) == (130, b"", b"")


# ---- the program as a process ------------------------------------------------------------------------------


def test_the_archive_is_reproducible(program: str, tmp_path: pathlib.Path) -> None:
    again = tmp_path / "again"
    environment = {**os.environ, "PYTHONHASHSEED": "3", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, TOP / "tools" / "build_cli.py", "--output", again], check=True, env=environment)
    assert again.read_bytes() == pathlib.Path(program).read_bytes()
    assert os.access(again, os.X_OK)
    assert again.read_bytes().startswith(b'#!/bin/sh\nexec python3 -I "$0" "$@"\n')


@pytest.mark.parametrize(
    "name", ["sitecustomize", "json", "os", "struct", "_cffi_backend", "sandbox/__init__", "sandbox/cli"]
)
def test_nothing_of_the_callers_gets_in(
    program: str, template: pathlib.Path, tmp_path: pathlib.Path, name: str
) -> None:
    """Neither by PYTHONPATH, nor from the working directory, nor from beside the file."""
    marker = tmp_path / "marker"
    module = tmp_path / f"{name}.py"
    module.parent.mkdir(exist_ok=True)
    module.write_text(f"open({str(marker)!r}, 'w')\nraise SystemExit(9)\n")
    beside = shutil.copy(program, tmp_path / "airlock")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": str(module), "PYTHONINSPECT": "1"}
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [beside, "snapshot", "-l", template / "a"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        env={**environment, "PATH": path},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Snapshot list:")
    assert not marker.exists()


def test_arguments_reach_the_archive_as_they_are(program: str, template: pathlib.Path) -> None:
    """Through the shell: blanks, quotes, options of Python's, nothing at all."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    for arguments in ([b"snapshot", b"-d", b"$(id) \"'* -c", b"a"], [b"-c", b"print()"], [b""], []):
        done = subprocess.run(
            [program, *arguments], cwd=template, capture_output=True, check=False, env={**os.environ, "PATH": path}
        )
        assert Outcome(done.returncode, done.stdout, done.stderr) == qemu_img(*arguments, directory=template)


@pytest.mark.parametrize("isolation", [["-S", "-E"], ["-I"]])
def test_the_archive_runs_from_anywhere(program: str, template: pathlib.Path, isolation: list[str]) -> None:
    """Nothing but the archive is imported, but for the standard library and cffi's backend."""
    paths = [path for path in sys.path if path.endswith("site-packages")]
    code = f"import sys; sys.path += {paths!r}; sys.argv = ['airlock', 'snapshot', 'a']; " + (
        f"import runpy; runpy.run_path({program!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, *isolation, "-c", code], cwd=template, capture_output=True, check=False)
    assert Outcome(done.returncode, done.stdout, done.stderr) == qemu_img(b"snapshot", b"a", directory=template)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "tr_TR.ISO-8859-9"])
def test_any_locale(program: str, ours: pathlib.Path, locale: str) -> None:
    os.rename(ours / "a", os.fsencode(ours) + b"/\xff\xe4.qcow2")
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for arguments in ([b"\xff\xe4.qcow2"], [b"-d", b"\xff", b"\xff\xe4.qcow2"], [b"\xfe"]):
        done = subprocess.run(
            [sys.executable, program, b"snapshot", *arguments],
            cwd=ours,
            capture_output=True,
            env=environment,
            check=False,
        )
        wanted = qemu_img(b"snapshot", *arguments, directory=ours)
        assert Outcome(done.returncode, done.stdout, done.stderr) == wanted


def test_a_terminal_sees_no_control_characters(program: str, template: pathlib.Path) -> None:
    reader, writer = pty.openpty()
    try:
        for arguments in ([b"evil"], [b"-d", EVIL + b"x", b"bitmap"], [EVIL]):
            subprocess.run(
                [sys.executable, program, b"snapshot", *arguments],
                cwd=template,
                stdout=writer,
                stderr=writer,
                check=False,
            )
        fcntl.fcntl(reader, fcntl.F_SETFL, os.O_NONBLOCK)
        shown = os.read(reader, 65536)
    finally:
        os.close(reader)
        os.close(writer)
    assert b"\x1b" not in shown
    assert b"\xff" not in shown
    assert rb"\x1b[31m" in shown


def test_closed_and_full_outputs_are_failures(program: str, template: pathlib.Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, program, "snapshot", "a"], cwd=template, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, program, "snapshot", "a"], cwd=template, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_every_failure_of_the_sandbox_is_one_line(
    airlock: Airlock, template: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_keywords: object) -> t.NoReturn:
        raise errors.NoKvmError("There is no /dev/kvm. Load the module.")

    monkeypatch.setattr(snapshots, "list_snapshots", fail)
    done = airlock(b"snapshot", b"a", directory=template)
    assert done == (1, b"", b"airlock: There is no /dev/kvm. Load the module.\n")


@pytest.mark.parametrize(
    "command", [b"info", b"info --chain", b"snapshot -l", b"snapshot -c x", b"bitmap --list", b"commit"]
)
def test_names_of_files_in_messages(airlock: Airlock, tmp_path: pathlib.Path, command: bytes) -> None:
    """Neither a file's name nor one out of an image makes a line of its own, or has a terminal act on it."""
    hostile = b"x\x1b[31m\nairlock: ok"
    (tmp_path / os.fsdecode(hostile)).write_bytes(b"no image")
    head = b"airlock: Could not open 'x\\x1b[31m\\nairlock: ok': "
    assert airlock(*command.split(), hostile, directory=tmp_path) == (1, b"", head + b"Image is not in qcow2 format\n")


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (b"commit -b %s top", b"Did not find '%s' in the backing chain of 'top'"),
        (
            b"rebase -b %s -F qcow2 top",
            b"Could not open new backing file '%s': Could not open '%s': No such file or directory",
        ),
        (b"rebase -u -b %s top", b"Could not change the backing file to '%s': backing format must be specified"),
    ],
)
def test_names_of_backing_files_in_messages(
    airlock: Airlock, tmp_path: pathlib.Path, command: bytes, wanted: bytes
) -> None:
    for arguments in (["base", "1M"], ["-F", "qcow2", "-b", "base", "top"]):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *arguments], cwd=tmp_path, check=True)
    arguments = [word.replace(b"%s", b"./x\x1b[31m\nairlock: ok") for word in command.split()]
    shown = wanted.replace(b"%s", b"./x\\x1b[31m\\nairlock: ok")
    assert airlock(*arguments, directory=tmp_path) == (1, b"", b"airlock: " + shown + b"\n")


def test_names_out_of_images_in_messages(airlock: Airlock, tmp_path: pathlib.Path) -> None:
    missing = "gone\x1b[31m\nairlock ok"
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", missing, "top", "1M"],
        cwd=tmp_path,
        check=True,
    )
    message = (
        b"airlock: Could not open 'top': Could not open backing file: Could not open 'gone\\x1b[31m\\nairlock ok': "
        b"No such file or directory\n"
    )
    for command in (b"info --chain", b"commit", b"rebase -b top -F qcow2"):
        assert airlock(*command.split(), b"top", directory=tmp_path) == (1, b"", message)


@pytest.mark.parametrize("option", [b"-p", b"--progress"])
def test_progress(option: bytes, airlock: Airlock, tmp_path: pathlib.Path) -> None:
    """A line from 0 to 100 for what changes an image; none with -q, and none for what reads."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "a", "1M"], cwd=tmp_path, check=True)
    for arguments in ([b"-c", b"s"], [b"-a", b"s"], [b"-d", b"s"]):
        done = airlock(b"snapshot", option, *arguments, b"a", directory=tmp_path)
        assert (done.code, done.stderr) == (0, b"")
        lines = done.stdout.removesuffix(b"\r\n").split(b"\r")
        assert (lines[0], lines[-1]) == (b"    (0.00/100%)", b"    (100.00/100%)")
    assert airlock(b"snapshot", option, b"-q", b"-c", b"s", b"a", directory=tmp_path).stdout == b""
    listed = airlock(b"snapshot", b"a", directory=tmp_path)
    assert airlock(b"snapshot", option, b"-l", b"a", directory=tmp_path) == listed


def test_a_change_that_fails_has_no_hundred(airlock: Airlock, tmp_path: pathlib.Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "a", "1M"], cwd=tmp_path, check=True)
    done = airlock(b"snapshot", b"-p", b"-d", b"s", b"a", directory=tmp_path)
    assert (done.code, done.stdout) == (1, b"    (0.00/100%)\r\n")
