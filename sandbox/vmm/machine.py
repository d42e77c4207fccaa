# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a guest: fork, let the child (child.py) jail itself and serve the guest, and take its answer.

Usable from a program with threads. Nothing is left behind: no descriptor, no process, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import typing as t
import warnings

from .. import errors
from ..guests._limits import DISKS_MAX
from ..host import ending
from ..host.disks import Disk, beyond_standard
from . import answers, boot, child, kvm, memory
from .answers import Answer, Limits, Loader, Message, Program, Report, Run
from .doorbell_rules import OFFSET_MAX, PAYLOAD_MAX, File

__all__ = ["Answer", "Limits", "Loader", "Program", "Report", "Run", "run"]

# The parent's own deadline, behind the child's timer.
GRACE_SECONDS = 1.0
_POLL_SECONDS = 3600.0  # poll(2) takes no more than 24 days
_READ_SIZE = 1 << 20


def _load(guest: Loader) -> Program:
    """Raises NotBuiltError."""
    try:
        return Program(*guest())
    except ImportError as error:
        from ..words import advice  # words, and it is there as a rule

        raise errors.NotBuiltError(f"A generated file is missing ({error}). {advice.say('build')}") from error


def run(what: Run) -> Answer:
    """Run one guest to its end and return its answer.

    Raises NoKvmError, KvmPermissionError, NoCffiError, NotBuiltError and KvmError before anything is started,
    JailError, GuestCrashError, GuestProtocolError, TimeLimitError, BudgetError, ValueError for a call, disks or a set
    of writable ones that do not fit, OSError when the system is out of processes or descriptors; EndedError when the
    process was told to end.
    """
    ending.check()
    holdings = [memory.held(disk) for disk in what.disks]
    with memory.reserved(what.disks, holdings, what.memory) as size:
        answer = _run(what, sum(holdings), size)
    return answer._replace(report=answer.report._replace(memory=size))


def _run(what: Run, held: int, size: int) -> Answer:
    """held: bytes, by all disks; size: of the guest's memory."""
    started = time.monotonic()
    spent = what.journal.spent if what.journal is not None else 0.0
    seconds = what.limits.time(held, spent)
    limits = what.limits._replace(seconds=seconds)
    program = what.guest if isinstance(what.guest, Program) else _load(what.guest)
    worker = _Worker()
    device = beyond_standard(kvm.open_device())
    try:
        _check(program, what)
        changed = [disk for index, disk in enumerate(what.disks) if index in what.writable]
        blocks = [(disk, os.fstat(disk.descriptor).st_blocks) for disk in changed]
        receiving, sending = map(beyond_standard, os.pipe2(os.O_CLOEXEC))
        try:
            files = [
                File(
                    disk.descriptor,
                    index in what.writable,
                    disk.is_block,
                    min(disk.size + limits.file_growth, OFFSET_MAX),
                )
                for index, disk in enumerate(what.disks)
            ]
            job = child.plan(what._replace(limits=limits), program, files, device, sending, size)
            try:
                worker.start(job)
            finally:
                os.close(sending)
            ending.check()  # who came between the fork and its being known
            outcome = _Pipe(receiving, started + seconds + GRACE_SECONDS).outcome(what.progress)
        finally:
            os.close(receiving)
            worker.end()
            _give_back(blocks)
    finally:
        os.close(device)
        if what.journal is not None:
            what.journal.seconds = max(0.0, started + seconds - time.monotonic())
            what.journal.spent += time.monotonic() - started
    try:
        return _answer(outcome, worker, limits, started)
    except errors.AirlockError as error:
        # A child that could not tell what it did may have done anything that it was allowed to.
        if outcome is None or outcome.message is None:
            error.modified = bool(what.writable)
            ending.check(error.modified)  # it was killed for that
        raise


class _Worker:
    """The forked child. After end() there is none; status and peak_memory (bytes) say what became of it."""

    def __init__(self) -> None:
        self._process = 0
        self.status = -1
        self.peak_memory = 0

    def start(self, job: child.Job) -> None:
        """Raises OSError."""
        # A handler that raises between fork and assignment would lose the child; and none may run in the child.
        # By the C library itself: signal.pthread_sigmask() makes an object for each signal, twice.
        ffi, library = kvm.bindings()
        everything = ffi.new("uint64_t[16]", [(1 << 64) - 1] * 16)
        before = ffi.new("uint64_t[16]")
        library.pthread_sigmask(signal.SIG_BLOCK, everything, before)
        try:
            # Python 3.12 warns of forks in programs with threads; where warnings are errors, that would lose the child.
            # It takes no lock that another thread may hold.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                self._process = os.fork()
            if self._process == 0:
                child.main(job)
            ending.children.add(self._process)
        finally:
            library.pthread_sigmask(signal.SIG_SETMASK, before, ffi.NULL)

    def end(self) -> None:
        """Whatever it is doing, it stops; an answer that has come is complete by then."""
        process, self._process = self._process, 0
        if process <= 0:
            return
        ending.children.discard(process)  # first: behind it the number may be somebody else's
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        try:
            _pid, self.status, usage = os.wait4(process, 0)
            self.peak_memory = usage.ru_maxrss * 1024
        except ChildProcessError:
            pass  # the program around us reaps every child, or lets the kernel


class _DeadlineError(Exception):
    """The parent's deadline has passed."""


class _Pipe:
    """Reads the child's messages. Trusts none of them: a jail that was broken out of ends here."""

    def __init__(self, descriptor: int, deadline: float) -> None:
        self._descriptor = descriptor
        self._deadline = deadline
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def outcome(self, progress: t.Callable[[int, int], None] | None) -> _Outcome | None:
        """The last message and what belongs to it; None when the deadline passed, a message without a body when the
        child ended without one."""
        try:
            while True:
                head = self._read(answers.MESSAGE.size)
                if len(head) < answers.MESSAGE.size:
                    return _Outcome(None, b"", b"")
                message = Message._make(answers.MESSAGE.unpack(head))
                if message.length > answers.RESULT_SIZE + PAYLOAD_MAX:
                    return _Outcome(None, b"", b"")
                body = self._read(min(message.length, answers.RESULT_SIZE))
                rest = self._read(message.length - len(body))
                if message.kind != answers.PROGRESS:
                    whole = len(body) + len(rest) == message.length
                    return _Outcome(message if whole else None, body, rest)
                if progress:
                    progress(message.a, message.b)
        except _DeadlineError:
            return None

    def _read(self, length: int) -> bytes:
        """Fewer bytes when the child is gone. Raises _DeadlineError."""
        data = bytearray()  # grows in its place: a long answer is never there twice
        while length > 0:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise _DeadlineError
            if self._poll.poll(min(left, _POLL_SECONDS) * 1000):
                part = os.read(self._descriptor, min(length, _READ_SIZE))
                if not part:
                    break
                data += part
                length -= len(part)
        return t.cast("bytes", data)  # nobody writes to it any more


class _Outcome(t.NamedTuple):
    """message: the last one, None without a whole one. body: its first RESULT_SIZE bytes; rest: those behind."""

    message: Message | None
    body: bytes
    rest: bytes


def _check(program: Program, what: Run) -> None:
    """Raises ValueError for what no guest could be given."""
    boot.check_sizes(program.text, program.data, what.call)
    if len(what.disks) > DISKS_MAX:
        raise ValueError("too many disks")
    if not all(what.disks[index].writable for index in what.writable):
        raise ValueError("a disk that is to be written to was opened for reading")
    if what.journal is not None:
        if all(what.journal.disk is not disk for disk in what.disks):
            raise ValueError("the journal belongs to none of the disks")
        what.journal.trim()  # behind a run that was killed


def _give_back(blocks: t.Sequence[tuple[Disk, int]]) -> None:
    """Let go of what a guest has reserved behind the end of a file. blocks: what each disk had before the run.

    Nobody sees such blocks, and they are there to stay; an honest guest leaves none. A file gives them back when it
    gets its length anew.
    """
    for disk, before in blocks:
        with contextlib.suppress(OSError):
            status = os.fstat(disk.descriptor)
            if status.st_blocks > before and not disk.is_block:
                os.ftruncate(disk.descriptor, status.st_size)


def _answer(outcome: _Outcome | None, worker: _Worker, limits: Limits, started: float) -> Answer:
    """The answer. Raises the exception that any other outcome means."""
    message = outcome.message if outcome else None
    if not outcome or not message or message.kind != answers.FINISHED or len(outcome.body) < answers.RESULT_SIZE:
        from . import faults  # words, and most runs need none

        if outcome is None:
            raise faults.time_over(limits)
        raise faults.failure(message, outcome.body, limits) if message else faults.vanished(worker.status)
    report = Report(
        answers.layer_names(message),
        message.exits,
        message.bytes_read,
        message.bytes_written,
        (time.monotonic() - started) * 1000,
        worker.peak_memory,
    )
    return Answer(outcome.body, outcome.rest, report)
