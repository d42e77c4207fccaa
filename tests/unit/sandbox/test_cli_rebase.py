# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""airlock rebase, side by side with qemu-img rebase: exit code, words, and every byte of the image."""

from __future__ import annotations

import json
import pathlib
import shutil
import typing as t

import pytest

from .bitmap_images import run
from .command_line import Airlock, qemu_img
from .holding import Holder

pytestmark = pytest.mark.kvm


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    """a <- o <- t; b and r.img beside."""
    home = tmp_path / "ours"
    home.mkdir()
    for name in ("a", "b"):
        run("qemu-img", "create", "-q", "-f", "qcow2", name, "1M", directory=home)
    run("qemu-io", "-c", "write -P 3 64k 128k", "a", directory=home)
    run("qemu-io", "-c", "write -P 4 128k 128k", "b", directory=home)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "a", "-F", "qcow2", "o", directory=home)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "o", "-F", "qcow2", "t", directory=home)
    run("qemu-img", "create", "-q", "-f", "raw", "r.img", "2M", directory=home)
    (home / "d").mkdir()
    return home


def both(airlock: Airlock, directory: pathlib.Path, arguments: t.Sequence[bytes]) -> tuple[t.Any, t.Any]:
    """(qemu-img's outcome, ours); the images are the same afterwards."""
    other = directory.parent / "qemu"
    shutil.copytree(directory, other)
    theirs = qemu_img(b"rebase", *arguments, directory=other)
    ours = airlock(b"rebase", *arguments, directory=directory)
    for path in other.iterdir():
        assert path.is_dir() or path.read_bytes() == (directory / path.name).read_bytes(), path
    return theirs, ours


@pytest.mark.parametrize(
    "line",
    [
        b"-b b -F qcow2 o",
        b"-b|a|-F|qcow2|t",
        b"-p -b b -F qcow2 o",
        b"-p -q -b b -F qcow2 o",
        b"-b r.img -F raw o",
        b"-b ./b -F qcow2 -t none -T directsync o",
        b"-b||o",
        b"-b||-F|qcow2|o",
        b"-u o",
        b"-u -p o",
        b"-u -b||o",
        b"-u -b nowhere/at:all -F vmdk o",
        b"-u -F raw o",
        b"-u -c -b b -F qcow2 o",
        b"-U -b b -F qcow2 o",
        b"--backing b --backing-format qcow2 --format qcow2 o",
        b"--backing-u o",
    ],
)
def test_done(line: bytes, airlock: Airlock, directory: pathlib.Path) -> None:
    arguments = [part for word in line.split(b" ") for part in word.split(b"|")]
    theirs, ours = both(airlock, directory, arguments)
    assert theirs.code == 0
    assert ours == theirs


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"o",
        b"-u o x",
        b"-z",
        b"-b",
        b"--backing-=b -F qcow2 o",
        b"--for qcow2 -u o",
        b"-t foo -b a o",
        b"-T foo -b a o",
        b"-t foo -T bar -b a nope",
        b"-p -t foo -b a o",
        b"-u -p nope",
        b"-b b o",
        b"-u -b b o",
        b"-b nope -F qcow2 o",
        b"-b d/nope -F qcow2 o",
        b"-b d -F raw o",
        b"-b r.img -F qcow2 o",
        b"-F bogus -b nope o",
        b"-F bogus -u o",
        b"-F bogus -u nope",
        b"-f bogus -b a o",
        b"-u -b " + b"x" * 1024 + b" -F raw o",
    ],
)
def test_refused(line: bytes, airlock: Airlock, directory: pathlib.Path) -> None:
    arguments = line.split(b" ") if line else []
    before = (directory / "o").read_bytes()
    ours = airlock(b"rebase", *arguments, directory=directory)
    assert (directory / "o").read_bytes() == before  # qemu-img may have pulled up data when it finds out
    assert ours.code == 1
    assert ours == qemu_img(b"rebase", *arguments, directory=directory)


@pytest.mark.parametrize("arguments", [b"-c", b"--compress", b"-qc"])
def test_compressed(arguments: bytes, airlock: Airlock, directory: pathlib.Path) -> None:
    """With clusters of 2 MiB QEMU compresses one after the other, so that all bytes are the same."""
    options = ("-o", "cluster_size=2M", "-b", "a", "-F", "qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, "w", "3M", directory=directory)
    run("qemu-io", "-f", "raw", "-c", "write -P 5 1M 1M", "r.img", directory=directory)
    theirs, ours = both(airlock, directory, (arguments, b"-b", b"r.img", b"-F", b"raw", b"w"))
    assert theirs.code == 0
    assert ours == theirs
    assert (directory / "w").stat().st_size < 11 << 20, "five clusters, and a few bytes of a sixth"


def test_compressed_with_a_data_file(airlock: Airlock, directory: pathlib.Path) -> None:
    run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=x",
        "-b",
        "a",
        "-F",
        "qcow2",
        "w",
        directory=directory,
    )
    theirs, ours = both(airlock, directory, (b"-c", b"-b", b"b", b"-F", b"qcow2", b"w"))
    assert theirs.code == 1
    assert ours == theirs


@pytest.mark.parametrize("arguments", [b"-u -b b -F qcow2 w", b"-b b -F qcow2 w", b"-b||w"])
def test_a_data_file_that_is_the_whole_disk(arguments: bytes, airlock: Airlock, directory: pathlib.Path) -> None:
    """With a backing file it would not be the disk any more; standing on nothing is fine."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=x,data_file_raw=on", "w", "1M", directory=directory)
    line = [part for word in arguments.split(b" ") for part in word.split(b"|")]
    theirs, ours = both(airlock, directory, line)
    assert theirs.code == (b"b -F" in arguments)
    assert ours == theirs


def test_no_room_in_the_header(airlock: Airlock, directory: pathlib.Path) -> None:
    """The first cluster of 512 bytes has no place for that name."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "s", "1M", directory=directory)
    before = (directory / "s").read_bytes()
    name = b"d/" + b"n" * 250 + b"/../" + b"m" * 250
    arguments = (b"-u", b"-b", name, b"-F", b"qcow2", b"s")
    theirs, ours = both(airlock, directory, arguments)
    assert theirs.code == 1
    assert ours == theirs
    assert b"No space left in the file header" in ours.stderr
    assert (directory / "s").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"-b o -F qcow2 o", b"'o' is o itself"),
        (b"-u -b o -F qcow2 o", b"'o' is o itself"),
        (b"-b t -F qcow2 o", b"t names the backing file 'o', which is not opened"),
        (b"-b nbd:localhost:1 -F raw o", b"is a protocol to QEMU"),
        (b"-b json:{} -F raw o", b"is a protocol to QEMU"),
        (b"-b b -F vdi o", b"It can be qcow2, raw or vmdk"),
    ],
)
def test_refused_here_only(line: bytes, words: bytes, airlock: Airlock, directory: pathlib.Path) -> None:
    before = (directory / "o").read_bytes()
    done = airlock(b"rebase", *line.split(), directory=directory)
    assert done.code == 1
    assert words in done.stderr
    assert (directory / "o").read_bytes() == before


def test_a_format_of_now_that_is_another_than_is_stated(airlock: Airlock, directory: pathlib.Path) -> None:
    """The file that the image stands on already, but as raw: what the image shows stays. qemu-img changes it."""
    run("qemu-img", "convert", "-O", "raw", "o", "before", directory=directory)
    assert airlock(b"rebase", b"-b", b"a", b"-F", b"raw", b"o", directory=directory).code == 0
    run("qemu-img", "convert", "-O", "raw", "o", "after", directory=directory)
    assert (directory / "before").read_bytes() == (directory / "after").read_bytes()


@pytest.mark.parametrize("option", [[], [b"-c"]])
def test_version_2_image_that_stood_on_nothing(airlock: Airlock, directory: pathlib.Path, option: list[bytes]) -> None:
    """Where it holds nothing it goes on to show zeros. After qemu-img the new backing file shows there."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "v2", "1M", directory=directory)
    run("qemu-io", "-c", "write -P 5 0 64k", "v2", directory=directory)
    shutil.copy(directory / "v2", directory / "theirs")
    run("qemu-img", "convert", "-O", "raw", "v2", "before", directory=directory)
    assert qemu_img(b"rebase", b"-b", b"b", b"-F", b"qcow2", b"theirs", directory=directory).code == 0
    assert airlock(b"rebase", *option, b"-b", b"b", b"-F", b"qcow2", b"v2", directory=directory).code == 0
    run("qemu-img", "check", "-q", "v2", directory=directory)
    for name in ("v2", "theirs"):
        run("qemu-img", "convert", "-O", "raw", name, "after", directory=directory)
        assert ((directory / "before").read_bytes() == (directory / "after").read_bytes()) == (name == "v2")


def test_names_in_the_images_are_judged(airlock: Airlock, directory: pathlib.Path) -> None:
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "../b", "-F", "qcow2", "d/n", directory=directory)
    arguments = (b"rebase", b"-b", b"d/n", b"-F", b"qcow2")
    refused = airlock(*arguments, b"o", directory=directory)
    assert refused.code == 1
    assert b"the paths of --allowed-root" in refused.stderr
    assert airlock(*arguments, b"--allowed-root", b".", b"o", directory=directory).code == 0


def test_in_use(airlock: Airlock, directory: pathlib.Path) -> None:
    before = (directory / "o").read_bytes()
    with Holder(str(directory / "b")):
        done = airlock(b"rebase", b"-b", b"b", b"-F", b"qcow2", b"o", directory=directory)
    assert done.code == 1
    assert b"Could not open new backing file 'b': Failed to get shared \"write\" lock" in done.stderr
    assert (directory / "o").read_bytes() == before


def test_json(airlock: Airlock, directory: pathlib.Path) -> None:
    done = airlock(b"rebase", b"--output", b"json", b"-b", b"b", b"-F", b"qcow2", b"o", directory=directory)
    assert json.loads(done.stdout) == {
        "filename": "o",
        "backing-filename": "b",
        "backing-format": "qcow2",
        "unsafe": False,
        "bytes-copied": 3 * 65536,
        "bytes-zeroed": 0,
        "virtual-size": 1 << 20,
        "chain-before": "a <- o",
        "chain": "b <- o",
    }


def test_help(airlock: Airlock, directory: pathlib.Path) -> None:
    assert airlock(b"rebase", b"--help", directory=directory).stdout.startswith(b"Change backing file of the image.")
