# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images on a block device, side by side with qemu-img: the device's length is fixed, and it has all its blocks."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import typing as t

import pytest

from .bitmap_images import run
from .command_line import Airlock, qemu_img

pytestmark = pytest.mark.kvm


@pytest.fixture
def device(tmp_path: pathlib.Path) -> t.Iterator[pathlib.Path]:
    """A loop device of 4 MiB, where this machine lets us have one, otherwise the file itself."""
    file = tmp_path / "device"
    file.write_bytes(bytes(4 << 20))
    losetup = shutil.which("losetup") or "/sbin/losetup"
    made = subprocess.run([losetup, "--find", "--show", str(file)], check=False, capture_output=True, text=True)
    yield pathlib.Path(made.stdout.strip() or file)
    if made.returncode == 0:
        subprocess.run([losetup, "--detach", made.stdout.strip()], check=True)


@pytest.mark.parametrize(
    "command",
    [
        (b"commit",),
        (b"snapshot", b"-a", b"old"),
        (b"snapshot", b"-d", b"old"),
        (b"bitmap", b"--add", b"--merge", b"marks"),
        (b"rebase", b"-b", b""),
    ],
)
def test_device(command: tuple[bytes, ...], airlock: Airlock, device: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Twice the same image, and the same bytes afterwards; for bitmaps, what they say is the same."""
    base, top = tmp_path / "base", tmp_path / "top"
    run("qemu-img", "create", "-q", "-f", "qcow2", "base", "2M", directory=tmp_path)
    run("qemu-io", "-c", "write -P 1 0 256k", "base", directory=tmp_path)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", "top", directory=tmp_path)
    run("qemu-io", "-c", "write -P 2 64k 64k", "-c", "write -z 1M 64k", "top", directory=tmp_path)
    if command[0] == b"snapshot":
        run("qemu-img", "snapshot", "-c", "old", "top", directory=tmp_path)
        run("qemu-io", "-c", "write -P 3 128k 64k", "top", directory=tmp_path)
    if command[0] == b"bitmap":
        run("qemu-img", "bitmap", "--add", "top", "marks", directory=tmp_path)
    image, kept = top.read_bytes(), base.read_bytes()
    found = []
    rest = (str(device).encode(), *((b"new",) if command[0] == b"bitmap" else ()))
    for ours in (False, True):
        base.write_bytes(kept)
        device.write_bytes(image + bytes((4 << 20) - len(image)))
        if ours:
            allowed = (b"--allowed-root", bytes(tmp_path)) if command[0] in (b"commit", b"rebase") else ()
            outcome = airlock(*command, *allowed, *rest, directory=tmp_path)
        else:
            outcome = qemu_img(command[0], *command[1:], *rest, directory=tmp_path)
        assert outcome.code == 0, outcome
        run("qemu-img", "check", "-q", str(device), directory=tmp_path)
        found.append((outcome.stdout, base.read_bytes(), device.read_bytes()))
    theirs, own = found
    assert own[:2] == theirs[:2]
    assert own[2] == theirs[2] or command[0] == b"bitmap"
