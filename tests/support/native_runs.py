# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs of the sandbox with the native guest in the place of the one in KVM: the same calls, the same files, and lines
that are counted, see tests/coverage.py. Nothing holds such a guest in.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from sandbox.vmm import answers, kvm, machine
from sandbox.vmm.answers import Answer, Report, Run
from sandbox.vmm.doorbell import Server
from sandbox.vmm.doorbell_copies import MovingServer
from sandbox.vmm.doorbell_rules import File

from . import native

_FIELDS = ("disk", "offset", "length", "memory", "source_disk", "source_offset")


class Machine:
    """run() stands in for sandbox.vmm.machine.run(). guests: how many there were."""

    def __init__(self) -> None:
        self._guest = native.Guest(native.compiled())
        self.guests = 0

    def run(self, what: Run) -> Answer:
        """The answer of the operation. Whatever went wrong in a request goes on as it is."""
        started = time.monotonic()
        self.guests += 1
        ffi, lib, host = self._guest.ffi, self._guest.lib, self._guest.host
        files = [
            File(disk.descriptor, index in what.writable, disk.is_block, disk.size + what.limits.file_growth)
            for index, disk in enumerate(what.disks)
        ]
        server = self._server(what, files)
        failures: list[BaseException] = []
        callback = ffi.callback("int64_t(const struct doorbell_request *)", self._serving(server, failures))
        lib.host_clear()
        host.server = callback
        host.requests_max = (1 << 64) - 1
        ffi.buffer(host.call)[:] = what.call.ljust(len(host.call), b"\0")
        end = lib.host_run()
        host.server = ffi.NULL
        if failures:
            raise failures[0]
        assert end == lib.HOST_FINISHED, end
        payload = bytes(ffi.buffer(host.payload, host.payload_length)) if host.payload_length else b""
        spent = (time.monotonic() - started) * 1000
        report = Report(("native",), host.batches, server.bytes_read, server.bytes_written, spent, 0)
        return Answer(bytes(ffi.buffer(host.result)[: answers.RESULT_SIZE]), payload, report)

    @staticmethod
    def _server(what: Run, files: list[File]) -> Server:
        """That of a jailed child. Addresses are those of this process, so that its memory begins at 0."""
        ffi, library = kvm.bindings()
        # A server looks at the doorbell's page when it is made, and never again here.
        memory = ffi.new("char[]", library.MEMORY_SIZE)
        if what.writable:
            server: Server = MovingServer(memory, files, 1 << 62, what.progress, journal=what.journal)
        else:
            server = Server(memory, files, 1 << 62, what.progress)
        server._memory = ffi.cast("char *", 0)
        return server

    def _serving(self, server: Server, failures: list[BaseException]) -> Callable[..., int]:
        def serve(request: object) -> int:
            operation = request.operation  # type: ignore[attr-defined]
            try:
                return server._operations[operation](*(getattr(request, name) for name in _FIELDS))
            except BaseException as error:
                failures.append(error)
                return -errno.EIO

        return serve


def install() -> Machine:
    """From now on all runs of this process are native ones."""
    stand_in = Machine()
    machine.run = stand_in.run
    return stand_in
