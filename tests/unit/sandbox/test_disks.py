# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Opening disks: what is opened, what is refused and how, and that nothing else is touched on the way."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys

import pytest

from sandbox import errors
from sandbox.host import disks
from sandbox.host.disks import Disk, open_disk


@pytest.fixture(autouse=True)
def _no_descriptor_left():
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize("writable", [False, True])
def test_regular_file(image, writable):
    with open_disk(str(image), writable) as disk:
        status = os.stat(image)
        assert (disk.path, disk.writable, disk.is_block, disk.size) == (str(image), writable, False, 7)
        assert disk.identity == (status.st_dev, status.st_ino)
        assert not os.get_inheritable(disk.descriptor)
        flags = fcntl.fcntl(disk.descriptor, fcntl.F_GETFL)
        assert flags & os.O_ACCMODE == (os.O_RDWR if writable else os.O_RDONLY)
        assert flags & os.O_NONBLOCK


def test_size_is_that_of_now(image):
    with open_disk(str(image), True) as disk:
        os.ftruncate(disk.descriptor, 12345)
        assert disk.size == 12345


def test_close_twice(image):
    disk = open_disk(str(image), False)
    descriptor = disk.descriptor
    disk.close()
    disk.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_symbolic_link_that_the_caller_names(image, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(image)
    with open_disk(str(link), True) as disk:
        assert disk.identity == (os.stat(image).st_dev, os.stat(image).st_ino)


def make(kind, path):
    """Something at path that is no disk."""
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "dangling link":
        path.symlink_to(path.parent / "nothing")
    elif kind == "loop of links":
        path.symlink_to(path)
    elif kind == "character device":
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("nothing", "not_found"),
        ("directory", "is_directory"),
        ("fifo", "not_regular"),
        ("socket", "not_regular"),
        ("character device", "not_regular"),
        ("dangling link", "not_found"),
        ("loop of links", "symlink_loop"),
    ],
)
@pytest.mark.parametrize("writable", [False, True])
def test_what_is_no_disk(tmp_path, kind, code, writable):
    path = tmp_path / "disk"
    make(kind, path)
    with pytest.raises(errors.ImageOpenError) as caught:
        open_disk(str(path), writable)
    assert caught.value.code == code
    assert str(path) in caught.value.message


def test_fifo_is_not_opened(tmp_path):
    """Whoever waits for a reader at the other end does not see one."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(errors.ImageOpenError):
        open_disk(str(path), False)
    with pytest.raises(OSError, match="No such device"):
        os.open(path, os.O_WRONLY | os.O_NONBLOCK)


@pytest.mark.parametrize(("path", "code"), [("", "not_found"), ("a\0b", "not_found"), ("x" * 300, "name_too_long")])
def test_impossible_path(path, code):
    with pytest.raises(errors.ImageOpenError) as caught:
        open_disk(path, False)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EACCES, "permission_denied"), (errno.EROFS, "read_only"), (errno.ETXTBSY, "busy")]
)
def test_open_that_fails(image, monkeypatch, number, code):
    """The second open, for I/O."""
    real = os.open

    def refuse(path, flags, *arguments, **options):
        if flags & os.O_PATH:
            return real(path, flags, *arguments, **options)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disks.os, "open", refuse)
    with pytest.raises(errors.ImageOpenError) as caught:
        open_disk(str(image), True)
    assert caught.value.code == code


def test_a_lease_of_the_files_owner(image):
    """It keeps nobody waiting, and what is said of it is not about the system's limits."""
    code = (
        "import fcntl, signal, sys; signal.signal(signal.SIGIO, signal.SIG_IGN); f = open(sys.argv[1], 'r+b'); "
        "fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK); print(flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"\n"
        for writable in (False, True):
            with pytest.raises(errors.ImageOpenError, match="lease") as caught:
                open_disk(str(image), writable)
            assert caught.value.code == "busy"
        owner.communicate(b"\n")


def without_proc(monkeypatch, meanwhile=lambda: None):
    """os.open() as on a machine without /proc; meanwhile() happens between the two opens."""
    real = os.open

    def open_(path, flags, *arguments, **options):
        if str(path).startswith("/proc/self/fd/"):
            meanwhile()
            raise FileNotFoundError(errno.ENOENT, "no /proc")
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(disks.os, "open", open_)


def test_without_proc(image, monkeypatch):
    without_proc(monkeypatch)
    with open_disk(str(image), True) as disk:
        assert disk.size == 7


def test_file_that_is_replaced_meanwhile(image, monkeypatch, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"other")
    without_proc(monkeypatch, lambda: os.rename(other, image))
    with pytest.raises(errors.ImageOpenError):
        open_disk(str(image), True)


def test_size_that_cannot_be_asked_for(image, monkeypatch):
    def fail(_self):
        raise OSError(errno.EIO, "no size")

    monkeypatch.setattr(Disk, "size", property(fail))
    with pytest.raises(errors.ImageOpenError):
        open_disk(str(image), False)


def test_block_device(tmp_path):
    """A loop device, where this machine lets us have one; otherwise its refusal is what is tested."""
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(1 << 20)
    losetup = shutil.which("losetup") or "/sbin/losetup"
    made = subprocess.run([losetup, "--find", "--show", str(image)], check=False, capture_output=True, text=True)
    if made.returncode:
        with pytest.raises(errors.ImageOpenError):
            open_disk("/dev/there-is-no-such-device", False)
        return
    device = made.stdout.strip()
    try:
        with open_disk(device, True) as disk:
            assert disk.is_block
            assert disk.size == 1 << 20
    finally:
        subprocess.run([losetup, "--detach", device], check=True)
