# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The parent's half of a run without a guest: what it makes of any bytes in the pipe, and how it words the end."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox import errors
from sandbox.host import disks
from sandbox.images import snapshots
from sandbox.vmm import answers, machine, memory
from sandbox.vmm.answers import MESSAGE, Limits, Message
from sandbox.vmm.machine import Program, Run

pytestmark = pytest.mark.kvm

LIMITS = Limits(seconds=60.0)


def outcome(data, progress=None):
    """What the parent makes of a child that sent these bytes and ended."""
    reading, writing = os.pipe()
    try:
        os.write(writing, data)
        os.close(writing)
        return machine._Pipe(reading, time.monotonic() + 60).outcome(progress)
    finally:
        os.close(reading)


def message(kind, length=0, layers=0x1FF, a=0, b=0, c=0):
    return MESSAGE.pack(kind, layers, 7, 1, 2, 3, a, b, c, length)


def end(data, status=-1):
    """The exception or the answer of a run whose child sent these bytes."""
    worker = machine._Worker()
    worker.status = status
    return machine._answer(outcome(data), worker, LIMITS, time.monotonic())


def test_answer():
    answer = end(message(answers.FINISHED, answers.RESULT_SIZE + 5) + b"r" * answers.RESULT_SIZE + b"payld")
    assert answer.result == b"r" * answers.RESULT_SIZE
    assert answer.payload == b"payld"
    assert answer.report[1:4] == (1, 2, 3)
    assert answer.report.layers == (
        "user_mode_guest",
        "descriptors",
        "namespaces",
        "credentials",
        "no_new_privs",
        "landlock_abi_7",
        "rlimits",
        "seccomp",
        "timer",
    )


@pytest.mark.parametrize("layers", [0, 1, 0b000100001])
def test_layers_are_those_that_are_up(layers):
    names = answers.layer_names(Message._make(MESSAGE.unpack(message(answers.FINISHED, layers=layers))))
    assert len(names) == bin(layers).count("1")
    assert ("landlock_abi_7" in names) == bool(layers & 0b100000)


def test_progress_comes_before_the_end():
    told = []
    data = message(answers.PROGRESS, a=1, b=9) + message(answers.PROGRESS, a=2, b=9) + message(answers.TIME_OVER)
    found = outcome(data, lambda *numbers: told.append(numbers))
    assert told == [(1, 9), (2, 9)]
    assert found.message.kind == answers.TIME_OVER
    assert outcome(data).message.kind == answers.TIME_OVER


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (message(answers.CRASHED, a=8, b=0x100042), errors.GuestCrashError, "exit reason 8, instruction at 0x100042"),
        (message(answers.CRASHED, a=2), errors.GuestCrashError, "port"),
        (message(answers.CRASHED, a=77), errors.GuestCrashError, "unexpected exit"),
        (
            message(answers.RULE_BROKEN, a=4, b=1, c=0x1000),
            errors.GuestProtocolError,
            r"memory range \(request 1: 0x1000",
        ),
        (message(answers.RULE_BROKEN, a=1 << 40), errors.GuestProtocolError, "unknown"),
        (message(answers.BUDGET_EXITS), errors.BudgetError, "2000000 times"),
        (message(answers.BUDGET_BYTES), errors.BudgetError, "4398046511104 bytes"),
        (message(answers.TIME_OVER), errors.TimeLimitError, "within 60 seconds"),
        (message(answers.IDLE), errors.TimeLimitError, "for 60 seconds without asking"),
        (message(answers.FAILED, 4, layers=0) + b"text", errors.KvmError, "could not be started: text"),
        (message(answers.FAILED, 4) + b"text", errors.JailError, "text"),
        (message(answers.FAILED, 4) + b"\x1b\n\xff\0", errors.JailError, "\ufffd{4}"),
        (message(99), errors.JailError, "put up, or failed"),
    ],
)
def test_words(data, kind, words):
    with pytest.raises(kind, match=words):
        end(data)


def test_what_was_written_is_said():
    """message() tells of 3 bytes."""
    with pytest.raises(errors.BudgetError, match="written to before this") as caught:
        end(message(answers.BUDGET_EXITS))
    assert caught.value.modified
    nothing = MESSAGE.pack(answers.BUDGET_EXITS, 0x1FF, 7, 1, 2, 0, 0, 0, 0, 0)
    with pytest.raises(errors.BudgetError, match=r"was stopped\.") as caught:
        end(nothing)
    assert not caught.value.modified
    assert "written to" not in caught.value.message


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (signal.SIGSYS, "forbidden system call"),
        (signal.SIGKILL, "signal 9"),
        (signal.SIGSEGV, "signal 11"),
        (0, "without an answer"),
        (-1, "without an answer"),
    ],
)
def test_child_that_is_gone(status, words):
    for data in (b"", message(answers.FINISHED, 100)[:-1], message(answers.FINISHED, 100) + b"x" * 99):
        with pytest.raises(errors.JailError, match=words):
            end(data, status)


def test_length_that_no_guest_can_have():
    """Nothing is allocated for it."""
    with pytest.raises(errors.JailError):
        end(message(answers.FINISHED, 1 << 40))


def test_answer_that_is_too_short():
    """FINISHED with less than a result is no answer."""
    with pytest.raises(errors.GuestProtocolError):
        end(message(answers.FINISHED, 3) + b"abc")


@given(st.binary(max_size=3 * MESSAGE.size))
@example(message(answers.FINISHED, answers.RESULT_SIZE) + bytes(answers.RESULT_SIZE))
@example(message(answers.PROGRESS) * 3)
@example(message(answers.PROGRESS, 1 << 63))
def test_any_bytes(data):
    """Whatever a child that broke out sends: an answer or one of our exceptions."""
    said = None
    try:
        answer = end(data)
    except errors.AirlockError as error:
        said = error.message
    if said is None:
        assert len(answer.result) == answers.RESULT_SIZE
    else:
        assert said.isprintable()


def test_deadline():
    reading, writing = os.pipe()
    try:
        os.write(writing, message(answers.FINISHED, 100))
        assert machine._Pipe(reading, time.monotonic() + 0.05).outcome(None) is None
        assert machine._Pipe(reading, time.monotonic() - 1).outcome(None) is None
    finally:
        os.close(reading)
        os.close(writing)
    with pytest.raises(errors.TimeLimitError):
        machine._answer(None, machine._Worker(), LIMITS, 0.0)


def test_worker_that_never_started():
    machine._Worker().end()


def test_time_grows_with_what_the_disks_hold():
    assert Limits().time(0) == answers.WHOLE_SECONDS
    assert Limits().time(1 << 30) == answers.WHOLE_SECONDS + 256
    assert Limits(seconds=5).time(1 << 30) == 5
    assert Limits(bytes=1 << 22).time(1 << 60) == answers.WHOLE_SECONDS + 1
    together = answers.TOGETHER_SECONDS
    assert Limits().time(0, together - answers.WHOLE_SECONDS) == answers.WHOLE_SECONDS
    assert Limits().time(0, together - 7) == 7
    assert 0 < Limits().time(0, 2 * together) < 1
    assert Limits().time(1 << 40, together) > together  # a single one may take longer
    assert Limits(seconds=5).time(0, 2 * together) == 5


def test_no_disk_holds_more_than_its_file_system(tmp_path, monkeypatch):
    """As a file seems to, where blocks are shared (XFS, Btrfs)."""
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(1 << 20))
    with disks.open_disk(str(path), writable=False) as disk:
        found = os.stat(path).st_blocks * 512
        for blocks, held in ((4, 4 * 4096), (1 << 30, found), (0, found)):  # 0: it does not tell
            system = SimpleNamespace(f_blocks=blocks, f_frsize=4096)
            monkeypatch.setattr(os, "fstatvfs", lambda _descriptor, system=system: system)
            assert memory.held(disk) == held
    assert Limits.within(None) == Limits()
    assert Limits.within(7)[:2] == (7, 7)


def test_family_that_is_not_built(monkeypatch):
    monkeypatch.setitem(sys.modules, "sandbox.guests._guest_snapshot", None)
    monkeypatch.delattr("sandbox.guests._guest_snapshot", raising=False)
    with pytest.raises(errors.NotBuiltError, match=r"is missing .*_guest_snapshot"):
        machine.run(machine.Run(snapshots._snapshot_guest, b""))


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="call is larger"):
        machine.run(Run(Program(b"", b""), bytes(0x10001)))
