# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""airlock info --chain"""

from __future__ import annotations

import json
import pathlib

import pytest

from tests.support.chain_images import overlay, raw

from .command_line import Airlock
from .holding import Holder

pytestmark = pytest.mark.kvm

TEXT = b"""\
Backing chain: base.raw <- a.qcow2 <- top.qcow2
    [0]:
        image: top.qcow2
        file format: qcow2
        virtual size: 1 MiB (1048576 bytes)
        file length: 192 KiB (196616 bytes)
        backing file: a.qcow2
    [1]:
        image: a.qcow2
        file format: qcow2
        virtual size: 1 MiB (1048576 bytes)
        file length: 192 KiB (196616 bytes)
        backing file: base.raw
        backing file format: raw
        data file: data
    [2]:
        image: base.raw
        file format: raw
        virtual size: 2 MiB (2097152 bytes)
        file length: 2 MiB (2097152 bytes)
"""


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    home = tmp_path / "home"
    home.mkdir()
    raw(home / "base.raw", 2 << 20)
    raw(home / "data")
    overlay(home / "a.qcow2", b"base.raw", b"raw", data_file=b"data")
    overlay(home / "top.qcow2", b"a.qcow2", b"")
    return home


def test_text(airlock: Airlock, directory: pathlib.Path) -> None:
    alone = airlock(b"info", b"top.qcow2", directory=directory)
    found = airlock(b"info", b"--chain", b"--backing-format", b"qcow2", b"top.qcow2", directory=directory)
    assert found == (0, alone.stdout + TEXT, b"")


def test_json(airlock: Airlock, directory: pathlib.Path) -> None:
    options = (b"--chain", b"--backing-format=qcow2", b"--output=json")
    found = airlock(b"info", *options, b"top.qcow2", directory=directory)
    record = json.loads(found.stdout)
    assert record["backing_file"] == "a.qcow2"
    assert record["chain_drawing"] == "base.raw <- a.qcow2 <- top.qcow2"
    assert [layer["path"] for layer in record["chain"]] == ["top.qcow2", "a.qcow2", "base.raw"]
    assert record["chain"][1] == {
        "path": "a.qcow2",
        "format": "qcow2",
        "depth": 1,
        "virtual_size": 1 << 20,
        "file_size": 196616,
        "backing_file": "base.raw",
        "backing_format": "raw",
        "data_file": "data",
    }
    alone = airlock(b"info", b"--output=json", b"top.qcow2", directory=directory)
    assert "chain" not in json.loads(alone.stdout)


def test_allowed_roots(airlock: Airlock, directory: pathlib.Path) -> None:
    for name in ("one", "two"):
        (directory.parent / name).mkdir()
    overlay(directory / "top.qcow2", b"../one/a.qcow2")
    overlay(directory.parent / "one/a.qcow2", b"../two/b.qcow2")
    overlay(directory.parent / "two/b.qcow2")
    refused = airlock(b"info", b"--chain", b"top.qcow2", directory=directory)
    assert refused.code == 1
    assert refused.stdout == b""
    assert b"airlock: top.qcow2 names the backing file '../one/a.qcow2', which is not opened." in refused.stderr
    refused = airlock(b"info", b"--chain", b"--allowed-root", b"../one", b"top.qcow2", directory=directory)
    assert b"airlock: ../one/a.qcow2 names the backing file '../two/b.qcow2'" in refused.stderr
    roots = (b"--allowed-root", b"../one", b"--allowed-root=../two/b.qcow2")
    found = airlock(b"info", b"--chain", *roots, b"top.qcow2", directory=directory)
    assert found.code == 0
    assert b"Backing chain: b.qcow2 <- a.qcow2 <- top.qcow2\n" in found.stdout


def test_two_files_of_one_name(airlock: Airlock, directory: pathlib.Path) -> None:
    (directory / "sub").mkdir()
    overlay(directory / "sub/top.qcow2")
    overlay(directory / "top.qcow2", b"sub/top.qcow2")
    found = airlock(b"info", b"--chain", b"top.qcow2", directory=directory)
    assert b"Backing chain: sub/top.qcow2 <- top.qcow2\n" in found.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((b"--allowed-root", b"."), b"--allowed-root and --backing-format are for --chain"),
        ((b"--backing-format", b"raw"), b"--allowed-root and --backing-format are for --chain"),
        ((b"--chain", b"--backing-format", b"vdi"), b"is stated as 'vdi'. It can be qcow2, raw or vmdk."),
        ((b"--chain", b"--allowed-root", b"nothing"), b"'nothing' in the paths of --allowed-root cannot be opened"),
        ((b"--chain",), b"has no format recorded"),
        ((b"--cha",), b"unrecognized option '--cha'"),
    ],
)
def test_what_is_wrong(airlock: Airlock, directory: pathlib.Path, options: tuple[bytes, ...], message: bytes) -> None:
    found = airlock(b"info", *options, b"top.qcow2", directory=directory)
    assert found.code == 1
    assert found.stdout == b""
    assert message in found.stderr


def test_base_in_use(airlock: Airlock, directory: pathlib.Path) -> None:
    overlay(directory / "base.qcow2")
    overlay(directory / "top.qcow2", b"base.qcow2")
    with Holder(str(directory / "base.qcow2")):
        assert airlock(b"info", b"top.qcow2", directory=directory).code == 0
        found = airlock(b"info", b"--chain", b"top.qcow2", directory=directory)
        assert found.code == 1
        assert b"Could not open 'top.qcow2': Could not open backing file: Failed to get shared" in found.stderr
        assert airlock(b"info", b"-U", b"--chain", b"top.qcow2", directory=directory).code == 0
