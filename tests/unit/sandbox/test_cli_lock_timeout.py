# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""airlock --lock-timeout: every command waits for an image that others hold."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from sandbox.cli import main as cli

from .command_line import Airlock
from .holding import Holder

pytestmark = pytest.mark.kvm

COMMANDS = [
    b"info top",
    b"info --chain top",
    b"snapshot -c new top",
    b"bitmap --add top new",
    b"commit top",
    b"rebase -b  top",
]


@pytest.fixture
def airlock(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Airlock:
    return Airlock(capfdbinary, monkeypatch)


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    """top stands on base."""
    for arguments in (["base", "1M"], ["-b", "base", "-F", "qcow2", "top"]):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *arguments], cwd=tmp_path, check=True)
    return tmp_path


class Clock:
    """Time passes by sleeping alone; at the second look the image is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, holder: Holder | None) -> None:
        self.now = 0.0
        self.holder = holder
        monkeypatch.setattr(cli.time, "sleep", self.sleep)
        monkeypatch.setattr(cli.time, "monotonic", lambda: self.now)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.holder:
            self.holder.__exit__()
            self.holder = None


@pytest.mark.parametrize("command", COMMANDS, ids=bytes.decode)
def test_a_command_waits(
    airlock: Airlock, directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch, command: bytes
) -> None:
    holder = Holder(str(directory / "top"))
    arguments = command.split(b" ")
    with monkeypatch.context() as patch:
        clock = Clock(patch, holder)
        outcome = airlock(b"--lock-timeout", b"5", *arguments, directory=directory)
    assert outcome.code == 0, outcome.stderr
    assert clock.now == pytest.approx(0.2)


def test_it_waits_no_longer(airlock: Airlock, directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Holder(str(directory / "top")), monkeypatch.context() as patch:
        clock = Clock(patch, None)
        at_once = airlock(b"snapshot", b"-c", b"new", b"top", directory=directory)
        assert clock.now == 0
        waited = airlock(b"--lock-timeout", b"2", b"snapshot", b"-c", b"new", b"top", directory=directory)
    assert (waited.code, waited.stderr) == (1, at_once.stderr)
    assert 2 <= clock.now < 2.4


@pytest.mark.parametrize("value", [b"", b"-1", b"1.5", b"1m", b"9" * 30])
def test_a_time_that_is_none(airlock: Airlock, directory: pathlib.Path, value: bytes) -> None:
    outcome = airlock(b"--lock-timeout", value, b"info", b"top", directory=directory)
    assert outcome.code == 1
    assert b"--lock-timeout expects a number of seconds" in outcome.stderr
