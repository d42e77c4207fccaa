# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""--image-opts in its plain forms, side by side with qemu-img; what would open something else is refused by name."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from .bitmap_images import run
from .command_line import Airlock, qemu_img

pytestmark = pytest.mark.kvm

NAMES = ("x", "a,b", "c=d")
PLAIN = (
    b"driver=qcow2,file.driver=file,file.filename=x",
    b"file.filename=x,driver=qcow2",
    b"file.filename=x",
    b"file.filename=x,",
    b"driver=raw,file.filename=x,driver=qcow2",
    b"driver=qcow2,file.filename=a,,b",
    b"file.filename=c=d",
)
# What both refuse, in the same words.
REFUSED = (
    b"",
    b"file.driver=file",
    b"driver=qcow2",
    b"driver=qcow2,file.filename=",
    b"driver=qcow2,file.filename=nothing",
    b"driver=nothing,file.filename=x",
    b"driver=qcow2,,file.filename=x",
)
# What qemu-img would open, or look for.
ELSEWHERE = {
    b"driver=qcow2,file.driver=nbd,file.host=127.0.0.1,file.port=1": "file.host",
    b"driver=qcow2,file.driver=host_device,file.filename=x": "host_device",
    b"driver=qcow2,file.filename=x,backing.file.filename=base": "backing.file.filename",
    b"driver=qcow2,file.filename=x,backing=": "backing",
    b"driver=qcow2,file.filename=x,data-file.filename=data": "data-file.filename",
    b"driver=qcow2,file.filename=x,lazy-refcounts=on": "lazy-refcounts",
    b"driver=file,filename=x": "filename",
    b"driver=qcow2,file=x": "file",
    b"x": "x",
}
COMMANDS = {
    "list": (b"snapshot", b"-l"),
    "create": (b"snapshot", b"-c", b"new"),
    "bitmap": (b"bitmap", b"--add"),
    "relink": (b"rebase", b"-u", b"-b", b""),
    "commit": (b"commit",),
}


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    home = tmp_path / "ours"
    home.mkdir()
    run("qemu-img", "create", "-q", "-f", "qcow2", "base", "1M", directory=home)
    for name in NAMES:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", name, directory=home)
    return home


def line(command: str, operand: bytes) -> list[bytes]:
    return [*COMMANDS[command], b"--image-opts", operand, *([b"b"] if command == "bitmap" else [])]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("operand", [*PLAIN, *REFUSED])
def test_as_qemu_img(command: str, operand: bytes, airlock: Airlock, directory: pathlib.Path) -> None:
    other = directory.parent / "qemu"
    shutil.copytree(directory, other)
    theirs = qemu_img(*line(command, operand), directory=other)
    ours = airlock(*line(command, operand), directory=directory)
    assert (ours.code, ours.stderr) == (theirs.code, theirs.stderr)
    if command in ("list", "relink"):  # no time and no place to be chosen
        assert ours.stdout == theirs.stdout
        for name in NAMES:
            assert (other / name).read_bytes() == (directory / name).read_bytes()
    if operand in REFUSED:
        assert ours.code == 1


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("operand", ELSEWHERE)
def test_what_leads_elsewhere_is_refused(
    command: str, operand: bytes, airlock: Airlock, directory: pathlib.Path
) -> None:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    ours = airlock(*line(command, operand), directory=directory)
    assert ours.code == 1
    assert f"'{ELSEWHERE[operand]}'".encode() in ours.stderr
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.parametrize("command", COMMANDS)
def test_not_with_a_format(command: str, airlock: Airlock, directory: pathlib.Path) -> None:
    arguments = [*line(command, b"file.filename=x"), b"-f", b"qcow2"]
    theirs, ours = qemu_img(*arguments, directory=directory), airlock(*arguments, directory=directory)
    assert (ours.code, ours.stderr) == (theirs.code, theirs.stderr)


@pytest.mark.parametrize("name", [b"vdi", b"host_device", b"luks", b"nbd", b"file", b"nothing"])
def test_relink_records_any_format_that_qemu_knows(name: bytes, airlock: Airlock, directory: pathlib.Path) -> None:
    """Nothing is opened for it."""
    other = directory.parent / "qemu"
    shutil.copytree(directory, other)
    arguments = (b"rebase", b"-u", b"-b", b"elsewhere", b"-F", name, b"x")
    theirs, ours = qemu_img(*arguments, directory=other), airlock(*arguments, directory=directory)
    assert (ours.code, ours.stderr, ours.stdout) == (theirs.code, theirs.stderr, theirs.stdout)
    assert (other / "x").read_bytes() == (directory / "x").read_bytes()
