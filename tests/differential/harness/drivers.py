# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who carries out a snapshot operation: qemu-img, our Python face, or our command line."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Protocol

from . import qemu

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
AIRLOCK = os.path.join(TOP, "build", "airlock")
FLAGS = {"create": "-c", "apply": "-a", "delete": "-d"}


@dataclass(frozen=True)
class SnapshotCall:
    """One snapshot operation: verb (create, apply, delete), argument as on qemu-img's command line, and the time."""

    verb: str
    argument: bytes
    date: tuple[int, int] = qemu.DATE


@dataclass(frozen=True)
class Result:
    """Exit code as qemu-img has it, and the message on standard error without the program's name."""

    code: int
    message: str


class Driver(Protocol):
    """Runs one snapshot operation on one image."""

    def run(self, path: str, call: SnapshotCall) -> Result: ...


def _without_program(errors: bytes) -> str:
    text = errors.decode("utf-8", "replace")
    lines = []
    for line in text.splitlines():
        for program in ("qemu-img: ", "airlock: "):
            if line.startswith(program):
                line = line[len(program) :]
        lines.append(line)
    return "\n".join(lines)


class QemuDriver:
    """qemu-img snapshot with a clock that stands still."""

    def run(self, path: str, call: SnapshotCall) -> Result:
        outcome = qemu.snapshot(path, FLAGS[call.verb], call.argument, call.date)
        return Result(outcome.code, _without_program(outcome.errors))


class PythonDriver:
    """sandbox.operations in this process: a real guest in KVM, without the price of a new interpreter."""

    def run(self, path: str, call: SnapshotCall) -> Result:
        from sandbox import errors, operations

        try:
            with operations.Image.open(path, writable=True) as image:
                if call.verb == "create":
                    operations.create_snapshot(image, call.argument, call.date)
                elif call.verb == "apply":
                    selector = operations.Selector.by_id_or_name(call.argument)
                    operations.apply_snapshot(image, selector, allow_resize=True)
                else:
                    operations.delete_snapshot(image, operations.Selector.by_name(call.argument))
        except errors.AirlockError as error:
            return Result(1, f"{error.code}: {error}")
        return Result(0, "")


class CliDriver:
    """build/airlock snapshot, as an operator runs it."""

    def run(self, path: str, call: SnapshotCall) -> Result:
        # The command line takes whole seconds only: SOURCE_DATE_EPOCH has no fraction.
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(call.date[0]), "LC_ALL": "C", "TZ": "UTC"}
        command = [sys.executable, AIRLOCK, "snapshot", FLAGS[call.verb], call.argument, path]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=qemu.TIMEOUT)
        return Result(done.returncode, _without_program(done.stderr))


DRIVERS: dict[str, type[Driver]] = {"qemu": QemuDriver, "airlock": PythonDriver, "cli": CliDriver}
