# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu's locks, with a real qemu-io on the other side."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import subprocess
import typing as t

import pytest

from sandbox import errors
from sandbox.host import holders, locks

from .holding import Holder
from .saying import said

READ_ONLY = (100, 201, 203)
READ_WRITE = (100, 101, 103, 201, 203)


@pytest.fixture
def image(tmp_path: pathlib.Path) -> str:
    path = str(tmp_path / "disk.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    return path


@pytest.fixture
def descriptor(image: str) -> t.Iterator[t.Callable[[bool], int]]:
    """Opens the image; all are closed at the end."""
    opened: list[int] = []

    def open_image(writable: bool) -> int:
        opened.append(os.open(image, os.O_RDWR if writable else os.O_RDONLY))
        return opened[-1]

    yield open_image
    for number in opened:
        os.close(number)


def qemu_img(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("writable", "force_share", "held"),
    [(False, False, READ_ONLY), (True, False, READ_WRITE), (False, True, (100,))],
)
def test_holds_the_bytes_that_qemu_holds(
    image: str, descriptor: t.Callable[[bool], int], writable: bool, force_share: bool, held: tuple[int, ...]
) -> None:
    number = descriptor(writable)
    assert locks.lock_image(number, image, writable, force_share) == locks.Lock(held)
    with open(f"/proc/self/fdinfo/{number}", encoding="ascii") as file:
        ranges = [line.split()[-2:] for line in file if line.startswith("lock:")]
    assert [(int(first), int(last)) for first, last in ranges] == _joined(held)


def _joined(held: tuple[int, ...]) -> list[tuple[int, int]]:
    """The kernel shows neighbouring bytes as one range."""
    ranges: list[tuple[int, int]] = []
    for byte in held:
        if ranges and ranges[-1][1] == byte - 1:
            ranges[-1] = (ranges[-1][0], byte)
        else:
            ranges.append((byte, byte))
    return ranges


@pytest.mark.parametrize(("writable", "operation", "lock"), [(False, "-l", 'shared "write"'), (True, "-cx", '"write"')])
def test_a_writer_keeps_us_out_with_qemus_words(
    image: str, descriptor: t.Callable[[bool], int], writable: bool, operation: str, lock: str
) -> None:
    number = descriptor(writable)
    with Holder(image) as pid:
        with pytest.raises(errors.ImageInUseError) as caught:
            locks.lock_image(number, image, writable)
        theirs = qemu_img("snapshot", operation, image)
    assert caught.value.code == "in_use"
    assert caught.value.pids == (pid,)
    assert f"by process {pid} (qemu-io)" in caught.value.message
    assert f"Failed to get {lock} lock" in said(caught.value)
    assert theirs.stderr == f"qemu-img: {said(caught.value)}\n"
    # Nothing was left behind, and nothing is in the way any more.
    assert locks.lock_image(number, image, writable).active


def test_a_writer_does_not_hinder_force_share(image: str, descriptor: t.Callable[[bool], int]) -> None:
    with Holder(image):
        assert locks.lock_image(descriptor(False), image, False, force_share=True).held == (100,)


def test_a_reader_keeps_writers_out_only(image: str, descriptor: t.Callable[[bool], int]) -> None:
    with Holder(image, "-r") as pid:
        assert locks.lock_image(descriptor(False), image, False).held == READ_ONLY
        with pytest.raises(errors.ImageInUseError, match="forbids others to write to it") as caught:
            locks.lock_image(descriptor(True), image, True)
    assert set(caught.value.pids) == {pid, os.getpid()}


@pytest.mark.parametrize(
    ("writable", "force_share", "listing", "creating"), [(True, False, 1, 1), (False, False, 0, 1), (False, True, 0, 0)]
)
def test_we_keep_qemu_out(
    image: str, descriptor: t.Callable[[bool], int], writable: bool, force_share: bool, listing: int, creating: int
) -> None:
    number = descriptor(writable)
    locks.lock_image(number, image, writable, force_share)
    assert qemu_img("snapshot", "-l", image).returncode == listing
    assert qemu_img("snapshot", "-c", "x", image).returncode == creating
    assert qemu_img("snapshot", "-l", "-U", image).returncode == 0
    locks.unlock_image(number)
    assert qemu_img("snapshot", "-c", "y", image).returncode == 0


@pytest.mark.parametrize(("byte", "kind"), [(b, "read") for b in (101, 103, 200, 201, 203)] + [(100, "write")])
@pytest.mark.parametrize("writable", [False, True])
def test_foreign_locks_mean_to_us_what_they_mean_to_qemu(
    image: str, descriptor: t.Callable[[bool], int], byte: int, kind: str, writable: bool
) -> None:
    foreign = descriptor(True)
    lock = locks._FLOCK.pack(fcntl.F_WRLCK if kind == "write" else fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
    fcntl.fcntl(foreign, locks._SETLK, lock)
    theirs = qemu_img("snapshot", "-cx" if writable else "-l", image)
    if theirs.returncode == 0:
        locks.lock_image(descriptor(writable), image, writable)
        return
    with pytest.raises(errors.ImageInUseError) as caught:
        locks.lock_image(descriptor(writable), image, writable)
    assert caught.value.pids == (os.getpid(),)
    assert theirs.stderr == f"qemu-img: {said(caught.value)}\n"


def test_a_posix_lock_has_an_owner(image: str, descriptor: t.Callable[[bool], int]) -> None:
    child = subprocess.Popen(
        [
            "python3",
            "-c",
            "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True);input()",
            image,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    with pytest.raises(errors.ImageInUseError, match="exclusive lock on byte 100") as caught:
        locks.lock_image(descriptor(False), image, False)
    child.communicate(b"\n")
    assert caught.value.pids == (child.pid,)


def test_a_search_for_holders_has_an_end(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Whoever may read the image can have it open any number of times, and each look takes long: 15 ms, say."""
    now, looks = [0.0], []

    def look(_process: str, number: str, byte: int) -> bool:
        now[0] += 0.015
        looks.append((number, byte))
        return False

    monkeypatch.setattr(holders.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(holders, "_entries", lambda path: ["1"] if path == "/proc" else list(map(str, range(99999))))
    monkeypatch.setattr(holders, "_is_same_file", lambda *_where: True)
    monkeypatch.setattr(holders, "_has_lock", look)
    (tmp_path / "image").touch()
    with open(tmp_path / "image", "rb") as image:
        assert holders.find(image.fileno(), 100) == ()
    assert 0 < len(looks) < 1000


def test_force_share_never_writes(image: str, descriptor: t.Callable[[bool], int]) -> None:
    with pytest.raises(errors.ForceShareError):
        locks.lock_image(descriptor(True), image, True, force_share=True)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_such_locks_it_goes_on_and_says_so(
    image: str, descriptor: t.Callable[[bool], int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_arguments: object) -> t.NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    lock = locks.lock_image(descriptor(True), image, True)
    assert not lock.active
    assert lock.held == ()
    assert os.strerror(number) in lock.reason


def test_any_other_failure_is_told(
    image: str, descriptor: t.Callable[[bool], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> t.NoReturn:
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(errors.ImageOpenError):
        locks.lock_image(descriptor(True), image, True)
