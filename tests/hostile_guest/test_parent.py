# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The process around a run: threads, signals, deadlines, few privileges, an early death. Each test is also held to
leave no descriptor and no child (conftest.py)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest

from sandbox import errors
from sandbox.host.disks import open_disk
from sandbox.vmm import answers, child, jail, kvm, machine
from sandbox.vmm.machine import Limits
from tests.waiting import PATIENCE, until

TOP = Path(__file__).resolve().parents[2]


class AlarmError(Exception):
    """Raised by a signal handler of the program around a run."""


def in_child(function):
    """Run function in a forked child; fails with its traceback when it raises."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc()[-60000:].encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode()
    _unused, status = os.waitpid(process, 0)
    assert status == 0, text


def test_signal_handler_that_raises(hostile):
    """The program's own alarm stops a run, and nothing of the run remains."""

    def handler(_number, _frame):
        raise AlarmError

    def interrupted():
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        hostile("SPIN", limits=Limits(seconds=PATIENCE))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(AlarmError):
            interrupted()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_blocked_signals_are_as_before(hostile):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        hostile("CPUID")
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {*before, signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_progress_that_raises(hostile):
    def progress(_done, _total):
        raise AlarmError

    with pytest.raises(AlarmError):
        hostile("STORM", progress=progress)


def test_many_threads_at_once(hostile):
    results = []

    def work():
        for _unused in range(5):
            results.append(hostile("TOUCH_ADDRESS", kvm.bindings()[1].HEAP_ADDRESS).payload)

    threads = [threading.Thread(target=work) for _unused in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"survived"] * 20


@pytest.mark.filterwarnings("error")
def test_warnings_that_are_errors(hostile):
    """Python 3.12 warns of a fork beside threads; as an exception that would lose the child."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        assert hostile("CPUID").payload == b"survived"
    finally:
        over.set()
        thread.join()


def test_parents_own_deadline(hostile, monkeypatch):
    """Were the child's timer broken, the parent would still end it."""
    monkeypatch.setattr(jail, "start_timer", lambda _seconds: None)
    monkeypatch.setattr(machine, "GRACE_SECONDS", 0.2)
    with pytest.raises(errors.TimeLimitError):
        hostile("SPIN", limits=Limits(seconds=0.2))


def test_timer_that_fires_around_the_entry(hostile, monkeypatch):
    """Before the guest runs, at its entry, within: the child's own timer is never lost."""
    outcomes = []
    answer = machine._answer

    def note(outcome, *rest):
        outcomes.append(outcome)
        return answer(outcome, *rest)

    monkeypatch.setattr(machine, "_answer", note)
    monkeypatch.setattr(machine, "GRACE_SECONDS", PATIENCE)  # the child's own timer is meant
    for step in range(60):
        with pytest.raises(errors.TimeLimitError):
            hostile("SPIN", limits=Limits(seconds=step * 0.0002))
    assert {outcome.message.kind for outcome in outcomes} == {answers.TIME_OVER}


def test_limit_of_processor_time(hostile, monkeypatch):
    """Were both broken, the kernel's limit of processor time would."""
    monkeypatch.setattr(jail, "start_timer", lambda _seconds: None)
    monkeypatch.setattr(machine, "GRACE_SECONDS", PATIENCE)
    limit = jail.limit_resources
    monkeypatch.setattr(jail, "limit_resources", lambda _seconds, *rest: limit(-1, *rest))
    with pytest.raises((errors.TimeLimitError, errors.JailError)):
        hostile("SPIN", limits=Limits(seconds=0.2))


def test_forbidden_system_call_in_the_child(hostile, monkeypatch):
    monkeypatch.setattr(child._Session, "_serve", lambda _self: os.getuid() and os.open("/", 0))
    with pytest.raises(errors.JailError, match="forbidden system call"):
        hostile("CPUID")


@pytest.mark.parametrize(("opened", "writable"), [(False, ()), (True, (0,)), (True, ())])
def test_child_that_ends_without_a_word(hostile, disk, monkeypatch, opened, writable):
    """What it could have written must count as written."""
    monkeypatch.setattr(child._Session, "_serve", lambda _self: os._exit(0))
    with pytest.raises(errors.JailError, match="without an answer") as caught:
        hostile("CPUID", disks=[disk(b"", opened)], writable=writable)
    assert caught.value.modified == bool(writable)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        ("close_others", errors.KvmError),
        ("start_timer", errors.JailError),
        ("drop_credentials", errors.JailError),
        ("forbid_new_privileges", errors.JailError),
        ("limit_resources", errors.JailError),
    ],
)
def test_layer_that_fails(hostile, monkeypatch, layer, kind):
    """Nothing runs without the layers that must be there, and the message says which one it was."""

    def fail(*_arguments):
        raise OSError(99, "as told")

    monkeypatch.setattr(jail, layer, fail)
    with pytest.raises(kind, match=r"OSError.*99"):
        hostile("CPUID")


@pytest.mark.parametrize("layer", ["leave_namespaces", "restrict_with_landlock"])
def test_layer_that_is_missing(hostile, monkeypatch, layer):
    """What a kernel does not have is not reported."""
    names = {"leave_namespaces": "namespaces", "restrict_with_landlock": "landlock"}
    monkeypatch.setattr(jail, layer, lambda: 0)
    layers = hostile("CPUID").report.layers
    assert not [layer_name for layer_name in layers if layer_name.startswith(names[layer])]
    assert "seccomp" in layers


def test_without_privileges(hostile, monkeypatch):
    """An ordinary user who may open /dev/kvm: the same guest, without the layers that take root."""
    device = os.open(kvm.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    monkeypatch.setattr(kvm, "open_device", lambda: os.dup(device))

    def work():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(12345, 12345, 12345)
            os.setresuid(12345, 12345, 12345)
        answer = hostile("CPUID")
        assert answer.payload == b"survived"
        assert "credentials" not in answer.report.layers
        assert {"user_mode_guest", "descriptors", "no_new_privs", "rlimits", "seccomp", "timer"} <= set(
            answer.report.layers
        )

    try:
        in_child(work)
    finally:
        os.close(device)


def test_without_standard_streams(worker, tmp_path):
    """A daemon has none: what is opened then must not become one."""

    def work():
        for descriptor in (0, 1, 2):
            os.close(descriptor)
        path = tmp_path / "disk"
        path.write_bytes(b"content")
        with open_disk(str(path), True) as disk:
            assert disk.descriptor > 2
            library = kvm.bindings()[1]
            statuses, payload, _unused = worker(
                [(library.DOORBELL_READ, 0, 0, 7, library.HEAP_ADDRESS, 0, 0, 0, 0, 0)], [disk], payload=7
            )
        assert statuses == (7,)
        assert payload == b"content"

    in_child(work)


def test_program_that_reaps_every_child(hostile):
    """With SIGCHLD ignored there is nothing to wait for; the answer is whole nevertheless."""

    def work():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        assert hostile("CPUID").payload == b"survived"

    in_child(work)


ORPHAN = """
import struct, sys
sys.path[:0] = [{top!r}, {here!r}]
from guests import modes, program
from sandbox.vmm.machine import Limits, Run, run
print("ready", flush=True)
run(Run(program("hostile"), struct.pack("<Q", modes()["SPIN"]), limits=Limits(seconds=600)))
"""


def children(process):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return []


def has_filter(process):
    with contextlib.suppress(OSError):  # a process of the compiler that has ended
        return "Seccomp:\t2" in Path(f"/proc/{process}/status").read_text()
    return False


def gone(process):
    """True for a zombie too: its new parent need not be in a hurry."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_child_dies_with_its_parent():
    script = ORPHAN.format(top=str(TOP), here=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        # Behind the compiler's processes comes the one that has switched its core dumps off and changed its user.
        jailed = until(lambda: [pid for pid in children(process.pid) if has_filter(pid)])
        process.kill()
    until(lambda: gone(jailed[0]))
