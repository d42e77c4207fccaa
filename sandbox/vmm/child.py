# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens between fork and _exit: boot, give everything up, serve the guest, send the answer.

The order of the layers is not free; each place has its reason in prepare(). Signals are blocked from before the fork,
so no handler of the parent's program ever runs here, and os._exit() ends it without the parent's exit handlers.
"""

from __future__ import annotations

import errno
import functools
import gc
import itertools
import os
import signal
import time
import typing as t

from . import answers, boot, jail, kvm, seccomp
from .answers import Limits, Program, Run
from .doorbell import BytesError, Finish, ForecastError, Server, UndoError, UndoTimeError
from .doorbell_rules import DoorbellRuleError, File

# A signal that is really pending interrupts every time; the machine's own suspend does it once.
_INTERRUPTIONS = 3


class Job(t.NamedTuple):
    """What the child needs, all made by the parent: what the child computes itself costs it copies of pages.

    device: of /dev/kvm; answer: the pipe's writing end; parent: process id. server: makes what serves the doorbell, of
    Server's arguments. vcpu: the number that the processor's descriptor is to have. appended: descriptors for write(2).
    memory: of the guest, bytes. address_space: bytes. filter: packed seccomp program.
    """

    text: bytes
    data: bytes
    call: bytes
    files: t.Sequence[File]
    limits: Limits
    device: int
    answer: int
    parent: int
    wants_progress: bool
    server: t.Callable[..., Server]
    vcpu: int
    appended: t.Sequence[int]
    memory: int
    address_space: int
    filter: bytes


def plan(what: Run, program: Program, files: t.Sequence[File], device: int, answer: int, memory: int) -> Job:
    """The job, with what can be known before the fork. program, files: what.guest loaded, and what.disks as the child
    gets them. Raises OSError."""
    journal = what.journal
    appended = [journal.descriptor, answer] if journal else [answer]
    taken = {device, *appended, *(file.descriptor for file in files)}
    # 0, 1 and 2 are not taken: the machine and the processor are born there.
    vcpu = next(number for number in itertools.count(3) if number not in taken)
    limits = what.limits
    allowed = jail.rules(
        vcpu,
        files,
        appended,
        journal.disk.descriptor if journal else -1,
        copies=program.server is not None,
        sleeps=limits.rate > 0,
        rewinds=limits.seconds is None or limits.idle < limits.seconds,
    )
    boot.prepare(memory)
    return Job(
        program.text,
        program.data,
        what.call,
        files,
        limits,
        device,
        answer,
        os.getpid(),
        what.progress is not None,
        _server(what, program),
        vcpu,
        appended,
        memory,
        jail.mapped_memory() + memory + boot.ADDRESS_SPACE + jail.SPARE_MEMORY,
        seccomp.packed(seccomp.program(allowed)),
    )


def _server(what: Run, program: Program) -> t.Callable[..., Server]:
    """What makes the server, loaded while files can still be opened."""
    if not what.writable:
        return Server
    limits = what.limits
    more: dict[str, t.Any] = {"journal": what.journal, "seconds": limits.seconds, "foresees": limits.foresees}
    if program.server:
        return functools.partial(program.server, rate=limits.rate, flushes=limits.flushes, **more)
    from .doorbell_writes import ChangingServer  # most runs read, and need not load it

    return functools.partial(ChangingServer, **more)


class _StopError(Exception):
    """The guest is to be stopped. args: kind of message, a, b, c."""


def main(job: Job) -> t.NoReturn:
    """Do the job, send what came of it, end the process."""
    try:
        gc.disable()  # nobody's finalizers, and no copies of the parent's pages
        session = _Session(job)
        try:
            session.prepare()
            session.work()
        except BaseException as error:
            session.send_failure(error)
    finally:
        os._exit(0)


class _Session:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._seconds = t.cast(float, job.limits.seconds)  # the parent has seen to it
        self._deadline = 0.0
        self._library = kvm.bindings()[1]
        self._layers = 0
        self._landlock = 0
        self._exits = 0
        self._step = "start"
        self._thousandths = -1
        self._memory: t.Any = None
        self._server: Server | None = None

    def prepare(self) -> None:
        """From a copy of the parent to a process that can do next to nothing. Raises OSError, JailError."""
        job = self._job
        self._step = "descriptors"
        jail.close_others([*(file.descriptor for file in job.files), *job.appended, job.device])
        self._up("descriptors")
        jail.be_the_first_to_go()
        # Before the first KVM_RUN: KVM may start a thread of its own, and unshare wants to be alone.
        if jail.leave_namespaces():
            self._up("namespaces")
        self._step = "virtual machine"
        self._boot()
        self._up("user_mode_guest")
        self._step = "timer"
        # Before the filter, so that it need not allow it. SIGALRM is blocked but inside KVM_RUN: it cannot be lost.
        self._deadline = time.monotonic() + self._seconds
        jail.start_timer(min(self._seconds, job.limits.idle))
        self._up("timer")
        self._step = "credentials"
        if jail.drop_credentials():
            self._up("credentials")
        jail.die_with_parent(job.parent)
        self._step = "no_new_privs"
        jail.forbid_new_privileges()
        self._up("no_new_privs")
        self._landlock = jail.restrict_with_landlock()
        if self._landlock:
            self._up("landlock")
        self._step = "rlimits"
        jail.limit_resources(self._seconds, max([1 << 20, *(file.limit for file in job.files)]), job.address_space)
        self._up("rlimits")
        self._step = "seccomp"
        # From here on: no import, no open, no traceback.
        seccomp.install(job.filter)
        self._up("seccomp")
        self._step = "guest"

    def _up(self, layer: str) -> None:
        self._layers |= 1 << answers.LAYERS.index(layer)

    def _boot(self) -> None:
        """In the child, because KVM ties a machine to the address space that created it. Raises OSError."""
        job = self._job
        memory = boot.map_guest_memory(job.memory)
        boot.load_guest(memory, job.memory, job.text, job.data, job.call)
        machine = kvm.create_machine(job.device, memory, job.memory)
        vcpu = kvm.Vcpu(job.device, machine, job.vcpu)
        boot.set_processor(vcpu, job.memory)
        vcpu.set_open_signals((signal.SIGALRM, signal.SIGXCPU))
        # Without a first KVM_RUN now, a limit of no processes makes it fail later: KVM may start a worker thread.
        vcpu.run.immediate_exit = 1
        vcpu.enter()
        vcpu.run.immediate_exit = 0
        os.close(machine)
        os.close(job.device)
        self._vcpu = vcpu
        self._memory = memory
        progress = self._send_progress if job.wants_progress else None
        self._server = job.server(memory, job.files, job.limits.bytes, progress, memory_size=job.memory)

    def work(self) -> None:
        """Run the guest and send what came of it. Raises OSError."""
        try:
            finish = self._serve()
        except _StopError as stop:
            self.send(*stop.args)
        else:
            self.send_answer(finish.memory, finish.length)

    def _serve(self) -> Finish:
        """Run the guest until it finishes. Raises _StopError when it does not."""
        serve = t.cast(Server, self._server).serve
        enter = self._vcpu.enter
        run = self._vcpu.run
        io = run.io
        port = self._library.DOORBELL_PORT
        interruptions = 0
        entered = time.monotonic()
        while True:
            failure = enter()
            if failure:
                if failure != errno.EINTR:
                    raise OSError(failure, "KVM_RUN")
                interruptions += 1
                if interruptions == _INTERRUPTIONS:
                    self._look_at_clock(entered)
                    interruptions = 0
                continue
            interruptions = 0
            if (
                run.exit_reason != kvm.EXIT_IO
                or io.direction != kvm.EXIT_IO_OUT
                or io.port != port
                or io.size != 1
                or io.count != 1
            ):
                self._crashed(run.exit_reason)
            self._exits += 1
            if self._exits > self._job.limits.exits:
                raise _StopError(answers.BUDGET_EXITS)
            try:
                finish = serve()
            except DoorbellRuleError as broken:
                raise _StopError(answers.RULE_BROKEN, *broken.args) from None
            except BytesError:
                raise _StopError(answers.BUDGET_BYTES) from None
            except UndoError:
                raise _StopError(answers.BUDGET_UNDO) from None
            except UndoTimeError:
                raise _StopError(answers.TIME_OVER) from None
            except ForecastError as forecast:
                raise _StopError(answers.TOO_LONG, *forecast.args) from None
            if finish:
                return finish
            entered = time.monotonic()

    def _look_at_clock(self, entered: float) -> None:
        """A signal is waiting. Raises _StopError, unless it is the timer's and it was the host that took the time."""
        now = time.monotonic()
        left = min(self._deadline, entered + self._job.limits.idle) - now
        if now >= self._deadline or not jail.forget_alarm():
            raise _StopError(answers.TIME_OVER)
        if left <= 0:
            raise _StopError(answers.IDLE)
        jail.start_timer(left)

    def _crashed(self, exit_reason: int) -> t.NoReturn:
        raise _StopError(answers.CRASHED, exit_reason, self._vcpu.address())

    def send_answer(self, memory: int, length: int) -> None:
        """FINISHED: the result area, then the payload, straight from guest memory."""
        self.send(answers.FINISHED, length=answers.RESULT_SIZE + length)
        self._write(self._memory + self._library.RESULT_ADDRESS, answers.RESULT_SIZE)
        if length:
            self._write(self._memory + memory, length)

    def send_failure(self, error: BaseException) -> None:
        """FAILED: a is the errno, the text says at which step. Nothing here may open a file."""
        number = error.errno if isinstance(error, OSError) and error.errno else 0
        text = f"{self._step}: {type(error).__name__} {error.args}".encode("ascii", "replace")[: answers.TEXT_LIMIT]
        self.send(answers.FAILED, number, length=len(text))
        self._write(kvm.bindings()[0].from_buffer(text), len(text))

    def send(self, kind: int, a: int = 0, b: int = 0, c: int = 0, length: int = 0) -> None:
        """A message's fixed part; length bytes are to follow."""
        server = self._server
        head = answers.MESSAGE.pack(
            kind,
            self._layers,
            self._landlock,
            self._exits,
            server.bytes_read if server else 0,
            server.bytes_written if server else 0,
            a,
            b,
            c,
            length,
        )
        self._write(kvm.bindings()[0].from_buffer(head), len(head))

    def _send_progress(self, done: int, total: int) -> None:
        """Tell the parent, but not more often than it can matter to a person."""
        thousandths = min(1000, done * 1000 // total) if total else 0
        if thousandths != self._thousandths:
            self._thousandths = thousandths
            self.send(answers.PROGRESS, done, total)

    def _write(self, address: t.Any, length: int) -> None:
        """To the parent. When it is gone, so are we."""
        while length > 0:
            done = self._library.write(self._job.answer, address, length)
            if done <= 0:
                os._exit(1)
            address += done
            length -= done
