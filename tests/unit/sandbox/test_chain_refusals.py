# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of hostile images: each is refused by a rule of its own, and strace sees that nothing was opened for it."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import typing as t

import pytest

from sandbox import errors
from sandbox.images.chain import open_chain
from tests.support.chain_images import overlay, raw
from tests.waiting import PATIENCE

pytestmark = pytest.mark.kvm

TOP = pathlib.Path(__file__).parents[3]
BAIT = "bait-that-is-not-ours"
PROBE = """
import os, sys
from sandbox import errors
from sandbox.images import chain
os.path.exists("/the-chain-begins-here")
try:
    chain.open_chain(sys.argv[1], depth_limit=int(sys.argv[2])).close()
    print("opened")
except errors.AirlockError as error:
    print(error.code)
"""

# Where Python and the C library open files of their own. An environment may be a link to one elsewhere.
THEIRS = (
    sys.prefix,
    os.path.realpath(sys.prefix),
    sys.base_prefix,
    "/usr/lib",
    "/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so",
    "/etc/localtime",
    "/sys/",
)

# Names, {outside} and {home} filled in, with the code of the refusal and the option that its message names.
HOSTILE = {
    "absolute path elsewhere": ("{outside}/{bait}", "backing_absolute", "allowed_roots"),
    "absolute path elsewhere that is not there": ("{outside}/nothing", "backing_absolute", "allowed_roots"),
    "file of the host": ("/etc/shadow", "backing_absolute", "allowed_roots"),
    "absolute path with ..": ("{home}/../outside/{bait}", "backing_absolute", "allowed_roots"),
    "..": ("../outside/{bait}", "backing_outside", "allowed_roots"),
    ".. behind a directory": ("sub/../../outside/{bait}", "backing_outside", "allowed_roots"),
    "many ..": ("../" * 40 + "etc/shadow", "backing_outside", "allowed_roots"),
    "neighbour with a longer name": ("../home2/{bait}", "backing_outside", "allowed_roots"),
    ".. behind a link": ("way-up/../way-out/{bait}", "backing_symlink", "allowed_roots"),
    "link out": ("link-out", "backing_symlink", "allowed_roots"),
    "link to nothing outside": ("link-to-nothing", "backing_symlink", "allowed_roots"),
    "relative link out": ("relative-link-out", "backing_symlink", "allowed_roots"),
    "link to a link out": ("link-to-link", "backing_symlink", "allowed_roots"),
    "directory that is a link out": ("way-out/{bait}", "backing_symlink", "allowed_roots"),
    "link to a device": ("link-to-device", "backing_symlink", "allowed_roots"),
    "link to the descriptors of a process": ("link-to-descriptor", "backing_symlink", "allowed_roots"),
    "link to itself": ("round", "backing_symlink_loop", ""),
    "links in a circle": ("circle-1/x", "backing_symlink_loop", ""),
    "device": ("/dev/zero", "backing_absolute", "allowed_roots"),
    "device that blocks": ("/dev/tty", "backing_absolute", "allowed_roots"),
    "FIFO": ("fifo", "backing_not_regular", ""),
    "socket": ("socket", "backing_not_regular", ""),
    "directory": ("sub", "backing_not_regular", ""),
    "its own directory": (".", "backing_not_regular", ""),
    "file as a directory": ("file/x", "backing_not_found", ""),
    "nothing": ("nothing", "backing_not_found", ""),
    "nbd": ("nbd://127.0.0.1:{port}/disk", "backing_protocol", ""),
    "nbd in the old style": ("nbd:127.0.0.1:{port}", "backing_protocol", ""),
    "nbd by a socket": ("nbd+unix:///?socket={home}/socket", "backing_protocol", ""),
    "json": ('json:{{"driver":"nbd","host":"127.0.0.1","port":"{port}"}}', "backing_protocol", ""),
    "json of a file": ('json:{{"driver":"raw","file.filename":"{outside}/{bait}"}}', "backing_protocol", ""),
    "http": ("http://127.0.0.1:{port}/disk", "backing_protocol", ""),
    "file": ("file:{outside}/{bait}", "backing_protocol", ""),
    "fat": ("fat:{outside}", "backing_protocol", ""),
    "the image itself": ("top.qcow2", "backing_loop", ""),
    "a link to the image itself": ("link-to-top", "backing_loop", ""),
    "another name of the image itself": ("hard-link-to-top", "backing_loop", ""),
    "NUL": ("base\0.qcow2", "backing_name_nul", ""),
    "newline": ("new\nline", "backing_not_found", ""),
    "ESC": ("\x1b[2J\x1b]0;title\x07", "backing_not_found", ""),
    "text that runs backwards": ("\u202egnp.exe", "backing_not_found", ""),
    "no text": ("\udcff\udc80\udcfe", "backing_not_found", ""),
    "part that is too long": ("x" * 256, "backing_name_long", ""),
    "longest name": ("sub/" * 255 + "abc", "backing_not_found", ""),
}
OPENED_NOTHING = {"backing_absolute", "backing_outside", "backing_protocol", "backing_name_nul", "backing_name_long"}


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory full of traps, and what they lead to."""
    for name in ("home", "home/sub", "home2", "outside"):
        (tmp_path / name).mkdir()
    home, outside = tmp_path / "home", tmp_path / "outside"
    for directory in (outside, tmp_path / "home2"):
        overlay(directory / BAIT)
    for name, target in {
        "link-out": f"{outside}/{BAIT}",
        "link-to-nothing": f"{outside}/nothing",
        "relative-link-out": f"../outside/{BAIT}",
        "link-to-link": "sub/../link-out",
        "way-out": "../outside",
        "way-up": "sub",
        "link-to-device": "/dev/zero",
        "link-to-descriptor": "/proc/self/fd/0",
        "round": "round",
        "circle-1": "circle-2",
        "circle-2": "./circle-1",
        "link-to-top": "top.qcow2",
    }.items():
        (home / name).symlink_to(target)
    os.mkfifo(home / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(home / "socket"))
    raw(home / "file")
    overlay(home / "top.qcow2")
    os.link(home / "top.qcow2", home / "hard-link-to-top")
    return home


def name_of(home: pathlib.Path, template: str) -> bytes:
    words = {"home": str(home), "outside": str(home.parent / "outside"), "bait": BAIT, "port": "10809"}
    return template.format(**words).encode("utf-8", "surrogateescape")


def hostile(home: pathlib.Path, template: str, **options: t.Any) -> tuple[pathlib.Path, bytes]:
    name = name_of(home, template)
    return overlay(home / "top.qcow2", name, **options), name


def refusal(path: pathlib.Path, **options: t.Any) -> errors.AirlockError:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(errors.AirlockError) as caught:
        open_chain(str(path), **options)
    assert sorted(os.listdir("/proc/self/fd")) == before
    return caught.value


@pytest.mark.parametrize("case", HOSTILE)
def test_refusal_names_the_rule(home: pathlib.Path, case: str) -> None:
    template, code, option = HOSTILE[case]
    top, name = hostile(home, template, format_name=b"qcow2")
    error = refusal(top)
    assert error.code == code
    assert isinstance(error, errors.ChainError)
    assert error.message.isprintable()
    assert len(error.message.encode()) < 2500
    assert f"{top} names the backing file '{errors.clean(name)}'" in error.message
    assert ("allowed_roots" in error.message) == (option == "allowed_roots")
    # Nothing of what was found: with the name itself taken out, no bait is left.
    rest = error.message.replace(errors.clean(name), "").replace(str(top), "")
    assert BAIT not in rest
    assert "outside/" not in rest
    assert "/dev" not in rest
    assert "/proc" not in rest


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_is_opened_and_nobody_called(home: pathlib.Path, case: str) -> None:
    """strace sees the image alone opened for reading, no name beyond its directory, and no socket."""
    template, code, _option = HOSTILE[case]
    top, _name = hostile(home, template)
    trace = Trace(home, top)
    assert trace.answer == code
    assert trace.read == {str(top)}
    assert not [line for line in trace.lines if re.search(r"\b(socket|connect|sendto|sendmsg)\(", line)]
    foreign = (f"{home.parent}/outside", "home2", BAIT, "etc/shadow", "/dev/zero", "/dev/tty")
    beyond = [line for line in trace.lines if any(path in line for path in foreign)]
    # A link is read, which shows where it leads, and that is all.
    assert all(" readlinkat(" in line for line in beyond)
    if code in OPENED_NOTHING:
        assert trace.handles <= {str(top), *map(str, top.parents)}


class Trace:
    """What a process does that opens a chain. answer: what it printed. lines: of strace, its imports left out.

    read: files opened for I/O, but those of Python and the kernel. handles: of the other kind, which only say that
    there is something (O_PATH).
    """

    def __init__(self, directory: pathlib.Path, top: pathlib.Path, depth_limit: int = 64) -> None:
        log = directory / "strace.log"
        strace = shutil.which("strace")
        assert strace
        command = [strace, "-f", "-y", "-s", "5000", "-o", str(log), "-e", "trace=%file,%network,readlinkat"]
        done = subprocess.run(
            [*command, sys.executable, "-B", "-c", PROBE, str(top), str(depth_limit)],
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, "PYTHONPATH": str(TOP), "LC_ALL": "C"},
        )
        self.answer = done.stdout.strip()
        everything = log.read_text(encoding="utf-8", errors="replace").splitlines()
        begin = next(index for index, line in enumerate(everything) if "/the-chain-begins-here" in line)
        self.lines = everything[begin + 1 :]
        opened = [(line, re.search(r"\) = \d+<([^>]+)>$", line)) for line in self.lines if " openat(" in line]
        found = [(line, match.group(1)) for line, match in opened if match]
        self.handles = {path for line, path in found if "O_PATH" in line}
        ours = [path for line, path in found if "O_PATH" not in line and "O_DIRECTORY" not in line]
        self.read = {path for path in ours if not path.startswith(("/dev/kvm", "/proc/", f"{TOP}/", *THEIRS))}


def test_strace_would_see_it(home: pathlib.Path) -> None:
    """The same trace of an image whose base may be opened."""
    overlay(home / "base.qcow2")
    top = overlay(home / "top.qcow2", b"sub/../base.qcow2")
    trace = Trace(home, top)
    assert trace.answer == "opened"
    assert trace.read == {str(top), str(home / "base.qcow2")}
    assert str(home / "sub") in trace.handles


def test_loop_of_two(home: pathlib.Path) -> None:
    overlay(home / "a.qcow2", b"top.qcow2")
    top = overlay(home / "top.qcow2", b"a.qcow2")
    error = refusal(top)
    assert error.code == "backing_loop"
    assert error.message.startswith(f"{home}/a.qcow2 names the backing file 'top.qcow2'")


def test_raw_base_that_is_the_image_itself(home: pathlib.Path) -> None:
    assert refusal(overlay(home / "top.qcow2", b"top.qcow2", b"raw")).code == "backing_loop"


def test_depth_of_3000(home: pathlib.Path) -> None:
    """Files of 3,000 layers are there; as many are opened as a chain may have."""
    deep(home, 3000)
    error = refusal(home / "layer-0")
    assert error.code == "chain_too_deep"
    assert error.message.startswith(f"{home}/layer-0 has a chain of more than 64 layers.")
    trace = Trace(home, home / "layer-0", depth_limit=5)
    assert trace.answer == "chain_too_deep"
    assert trace.read == {str(home / f"layer-{number}") for number in range(5)}


def test_as_deep_as_may_be(home: pathlib.Path) -> None:
    deep(home, 64)
    with open_chain(str(home / "layer-0")) as chain:
        assert len(chain.layers) == 64
        assert chain.base.path == str(home / "layer-63")
    with open_chain(str(home / "layer-60"), depth_limit=4) as chain:
        assert len(chain.layers) == 4
    assert refusal(home / "layer-59", depth_limit=4).code == "chain_too_deep"


def deep(home: pathlib.Path, layers: int) -> None:
    for number in range(layers):
        name = b"layer-%d" % (number + 1) if number < layers - 1 else b""
        overlay(home / f"layer-{number}", name, cluster_size=512)


def test_name_longer_than_the_format_has(home: pathlib.Path) -> None:
    """The guest refuses the header; no name leaves it."""
    error = refusal(overlay(home / "top.qcow2", b"x" * 1024))
    assert error.code == "backing_name_long"
    assert isinstance(error, errors.HeaderError)


@pytest.mark.parametrize(
    ("format_name", "code"),
    [(b"", "backing_format_missing"), (b"vdi", "backing_format_unknown"), (b"\x1b[2J", "backing_format_unknown")],
)
def test_format(home: pathlib.Path, format_name: bytes, code: str) -> None:
    """It is looked at before any file: none of that name has to be there."""
    error = refusal(overlay(home / "top.qcow2", b"nothing", format_name))
    assert error.code == code
    assert error.message.isprintable()
    assert ("with backing_format" in error.message) == (code == "backing_format_missing")
    assert refusal(overlay(home / "top.qcow2", b"../x", format_name)).code == "backing_outside"


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("{outside}/{bait}", "data_file_absolute"),
        ("../outside/{bait}", "data_file_outside"),
        ("link-out", "data_file_symlink"),
        ("round", "data_file_symlink_loop"),
        ("fifo", "data_file_not_regular"),
        ("top.qcow2", "data_file_loop"),
        ("hard-link-to-top", "data_file_loop"),
        ("nothing", "data_file_not_found"),
        ("json:{{}}", "data_file_protocol"),
        ("nbd://127.0.0.1:{port}", "data_file_protocol"),
        ("a\0b", "data_file_name_nul"),
        ("x/" * 1000 + "y", "data_file_name_long"),
    ],
)
def test_data_file(home: pathlib.Path, template: str, code: str) -> None:
    top = overlay(home / "top.qcow2", data_file=name_of(home, template))
    error = refusal(top)
    assert error.code == code
    assert error.message.startswith(f"{top} names the data file '")
    trace = Trace(home, top)
    assert trace.answer == code
    assert trace.read == {str(top)}


def test_one_file_twice(home: pathlib.Path) -> None:
    """A data file that is another layer's, too."""
    raw(home / "data")
    overlay(home / "a.qcow2", data_file=b"data")
    assert refusal(overlay(home / "top.qcow2", b"a.qcow2", data_file=b"data")).code == "data_file_loop"


@pytest.mark.parametrize("moment", [b"sub", b"base", b"/proc/self/fd"])
def test_what_is_swapped_meanwhile(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch, moment: bytes) -> None:
    """A directory and a file that become links out after a part of the way has been opened: what is open counts."""
    inside = overlay(home / "sub/base").stat()
    overlay(home.parent / "outside/base")
    top = overlay(home / "top.qcow2", b"sub/base")
    real = os.open
    swapped: list[bytes] = []

    def swap(path: t.Any, flags: int, *arguments: t.Any, **options: t.Any) -> int:
        name = os.fsencode(path)
        if name.startswith(moment) and (moment != b"/proc/self/fd" or len(seen) > 0) and not swapped:
            answer = real(path, flags, *arguments, **options)
            swapped.append(name)
            (home / "sub").rename(home / "was-sub")
            (home / "sub").symlink_to("../outside")
            (home / "was-sub/base").rename(home / "was-sub/was-base")
            (home / "was-sub/base").symlink_to("../../outside/base")
            return answer
        seen.extend([name] if name == b"base" else [])
        return real(path, flags, *arguments, **options)

    seen: list[bytes] = []
    monkeypatch.setattr(os, "open", swap)
    if moment == b"sub":  # the file has become a link since
        assert refusal(top).code == "backing_symlink"
    else:
        with open_chain(str(top)) as chain:
            assert chain.base.identity == (inside.st_dev, inside.st_ino)
    assert swapped


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, "backing_permission"), (errno.EIO, "backing_open_failed")])
def test_what_the_kernel_refuses(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str) -> None:
    """Its answer is made up: to root, nothing is forbidden."""
    top = overlay(home / "top.qcow2", b"sub/base")
    real = os.open

    def forbid(path: t.Any, flags: int, *arguments: t.Any, **options: t.Any) -> int:
        if path == b"sub":
            raise OSError(number, os.strerror(number))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", forbid)
    error = refusal(top)
    assert error.code == code
    assert (os.strerror(number) in error.message) == (number == errno.EIO)


def test_image_with_an_empty_data_file_name(home: pathlib.Path) -> None:
    path = overlay(home / "top.qcow2")
    with open(path, "r+b") as file:
        file.seek(79)
        file.write(b"\x04")
    assert refusal(path).code == "data_file_missing"


def test_existing_and_missing_files_beyond_are_not_told_apart(home: pathlib.Path) -> None:
    messages = set()
    for name in (BAIT, "n" * len(BAIT)):
        for template in (f"{home.parent}/outside/{name}", f"../outside/{name}"):
            top = overlay(home / "top.qcow2", template.encode())
            messages.add(refusal(top).message.replace(name, "NAME"))
    assert len(messages) == 2


def test_allowed_roots_do_not_widen_the_rest(home: pathlib.Path) -> None:
    """With everything allowed, devices, FIFOs, protocols and loops are still refused."""
    cases = {
        "/dev/zero": "backing_not_regular",
        "link-to-device": "backing_not_regular",
        "fifo": "backing_not_regular",
        "nbd://127.0.0.1:1": "backing_protocol",
        "{home}/top.qcow2": "backing_loop",
        "../home/../home/way-up/../round": "backing_symlink_loop",
    }
    for template, code in cases.items():
        top, _name = hostile(home, template)
        assert refusal(top, allowed_roots=["/"]).code == code, template


def test_link_of_a_process_is_text_and_no_door(home: pathlib.Path) -> None:
    """Links in /proc/PID/fd lead to open files whatever their text says, for those who follow them."""
    with open(home.parent / "outside" / BAIT, "rb") as file:
        (home.parent / "outside" / BAIT).unlink()
        top, _name = hostile(home, f"/proc/self/fd/{file.fileno()}")
        assert refusal(top, allowed_roots=["/"]).code == "backing_not_found"
