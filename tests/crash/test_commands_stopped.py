# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A command whose time is over at any moment of its writes: it says so, and the image is what it was, to the byte.

AIRLOCK_LONG=1 stops at every moment, not at some of them.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import shutil

import pytest

from sandbox.cli import main as cli
from sandbox.vmm.doorbell import UndoTimeError
from sandbox.vmm.doorbell_writes import ChangingServer
from tests.crash.cut import LONG
from tests.support import qemu

COMMANDS = (
    (b"snapshot", b"-c", b"new", b"disk"),
    (b"snapshot", b"-a", b"old", b"disk"),
    (b"snapshot", b"-d", b"old", b"disk"),
    (b"bitmap", b"--add", b"disk", b"b1"),
    (b"bitmap", b"--merge", b"b0", b"disk", b"b2"),
    (b"bitmap", b"--clear", b"disk", b"b0"),
    (b"bitmap", b"--remove", b"disk", b"b0"),
)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("image") / "disk"
    qemu.create(str(path), "4M", "cluster_size=4096")
    qemu.io(str(path), "write -P 1 0 1M")
    qemu.must(["qemu-img", "snapshot", "-c", "old", str(path)])
    qemu.must(["qemu-img", "bitmap", "--add", str(path), "b0"])
    qemu.io(str(path), "write -P 2 512k 1M")
    qemu.must(["qemu-img", "bitmap", "--add", str(path), "b2"])
    return path


def stop_at(moment: int, patch: pytest.MonkeyPatch) -> None:
    """Time is over at that write or flush of a guest, counted from 0 in each."""
    seen = itertools.count()

    def counted(real: object) -> object:
        def do(server: ChangingServer, *request: int) -> int:
            if next(seen) == moment:
                raise UndoTimeError
            return int(real(server, *request))  # type: ignore[operator]

        return do

    for name in ("_write", "_flush"):
        patch.setattr(ChangingServer, name, counted(getattr(ChangingServer, name)))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: b" ".join(command[:2]).decode())
def test_stopped_in_the_middle(
    command: tuple[bytes, ...],
    image: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(image, tmp_path / "disk")
    if b"-a" in command:  # to an image with bitmaps, qemu-img applies no snapshot, and so do we
        for name in ("b0", "b2"):
            qemu.must(["qemu-img", "bitmap", "--remove", str(tmp_path / "disk"), name])
    before = (tmp_path / "disk").read_bytes()
    monkeypatch.chdir(tmp_path)
    for moment in itertools.count(0, 1 if LONG else 3):
        with monkeypatch.context() as patch:
            stop_at(moment, patch)
            code = cli.main(command)
        if code == 0:
            break
        assert code == 1
        said = capfd.readouterr().err
        assert "seconds and was stopped" in said
        assert ("has been undone" in said) == ("written to before" in said)
        undone = (tmp_path / "disk").read_bytes() == before
        assert undone
        assert os.listdir(tmp_path) == ["disk"]
    assert moment > 2  # it was stopped, and more than once
    assert qemu.check(str(tmp_path / "disk")).clean
