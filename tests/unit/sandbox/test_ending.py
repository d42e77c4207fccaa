# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signals that end a task: when they raise, when they wait, and that handlers are put back. In the middle of a guest's
work: tests/crash/test_tasks_ended.py."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import typing as t

import pytest

from sandbox import operations
from sandbox.cli import main as cli
from sandbox.host import ending
from sandbox.images import snapshots
from sandbox.operations import Image, Transaction
from sandbox.vmm import child, journal, machine

pytestmark = pytest.mark.kvm

NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
EACH = pytest.mark.parametrize("number", NUMBERS)


def tell(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def handlers() -> list[t.Any]:
    return [signal.getsignal(number) for number in NUMBERS]


@EACH
def test_it_is_raised_once_and_handlers_are_put_back(number: int) -> None:
    before = handlers()
    with pytest.raises(ending.EndedError) as caught, ending.by_signals():
        tell(number)
    assert caught.value.number == number
    assert caught.value.code == "terminated"
    assert signal.Signals(number).name in caught.value.message
    assert handlers() == before
    ending.check()  # the next task is not told


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending.by_signals():
            tell(signal.SIGHUP)
            ending.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_the_program_handles_is_left_to_it() -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: told.append(number))
    try:
        with ending.by_signals():
            tell()
            ending.check()
        assert told == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_nothing_is_changed() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with ending.by_signals():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_held_it_waits_for_the_next_guest() -> None:
    with ending.by_signals():
        with ending.held():
            tell()
            tell(signal.SIGHUP)
        with pytest.raises(ending.EndedError) as caught:
            machine.run(machine.Run(snapshots._snapshot_guest, b""))
        assert caught.value.number == signal.SIGTERM


def test_a_guest_that_runs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not when its time is over; the parent is told by the child itself, when it is up."""

    def serve(_self: object) -> t.NoReturn:
        os.kill(os.getppid(), signal.SIGTERM)
        while True:
            pass

    def children() -> str:  # of this process, others of which may be another test's
        return pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text()

    before = children()
    monkeypatch.setattr(child._Session, "prepare", serve)
    with ending.by_signals(), ending.held(), pytest.raises(ending.EndedError):
        machine.run(machine.Run(snapshots._snapshot_guest, b""))
    assert not ending.children
    assert children() == before


@pytest.fixture
def images(tmp_path: pathlib.Path) -> t.Iterator[list[Image]]:
    opened = []
    for name in ("a", "b", "c"):
        path = str(tmp_path / name)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
        opened.append(Image.open(path, writable=True))
    yield opened
    for image in opened:
        image.close()


def contents(images: list[Image]) -> list[bytes]:
    return [pathlib.Path(image.path).read_bytes() for image in images]


def create(images: list[Image]) -> None:
    for image in images:
        operations.create_snapshot(image, b"new", (1_700_000_000, 0))


def telling(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """UndoJournal's method `name` is told to end each time that it is called."""
    real = getattr(journal.UndoJournal, name)

    def told(self: journal.UndoJournal) -> None:
        tell(number)
        real(self)

    monkeypatch.setattr(journal.UndoJournal, name, told)


@EACH
def test_between_two_images(number: int, images: list[Image]) -> None:
    def change(group: Transaction) -> None:
        create(images[:1])
        assert contents(images[:1]) != before[:1]
        tell(number)
        create(images[1:])
        group.keep()

    before = contents(images)
    with pytest.raises(ending.EndedError), ending.by_signals(), Transaction(images) as group:
        change(group)
    assert contents(images) == before


@EACH
def test_undoing_is_not_interrupted(number: int, images: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(images)
    telling(monkeypatch, "undo", number)
    with ending.by_signals(), Transaction(images):
        create(images)
    assert contents(images) == before


@EACH
def test_keeping_is_not_interrupted(number: int, images: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what is told of it afterwards."""
    before = contents(images)
    telling(monkeypatch, "keep", number)
    with ending.by_signals():
        with Transaction(images) as group:
            create(images)
            group.keep()
        tell(number)
    assert all(now != then for now, then in zip(contents(images), before))


def test_what_is_kept_is_never_undone(images: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody holds Ctrl-C back: the bytes of what was given back are gone, and to undo would refer to them."""

    def interrupted(_self: journal.UndoJournal) -> t.NoReturn:
        raise KeyboardInterrupt

    def change(group: Transaction) -> None:
        create(images)
        group.keep()

    before = contents(images)
    monkeypatch.setattr(journal.UndoJournal, "keep", interrupted)
    with pytest.raises(KeyboardInterrupt), Transaction(images) as group:
        change(group)
    assert all(now != then for now, then in zip(contents(images), before))


@EACH
def test_command_line(number: int, tmp_path: pathlib.Path) -> None:
    """A process of its own, that is told when its guest runs."""
    path = str(tmp_path / "image")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    script = f"""if True:
        import os, sys
        sys.path.insert(0, {str(pathlib.Path(cli.__file__).parents[1])!r})
        from sandbox.cli import main as cli
        from sandbox.vmm import child
        def work(_self):
            os.kill(os.getppid(), {int(number)})
            while True:
                pass
        child._Session.prepare = work
        sys.exit(cli.main([b"snapshot", b"-l", {path.encode()!r}]))
    """
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == 128 + number
    assert done.stderr == b"airlock: Ended by %s before all was done.\n" % signal.Signals(number).name.encode()
