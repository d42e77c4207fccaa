# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who carries out a snapshot operation: qemu-img, our Python face, or our command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Protocol

from . import qemu

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
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
    """Runs one snapshot operation on one image, or lists its snapshots."""

    def run(self, path: str, call: SnapshotCall) -> Result: ...

    def listing(self, path: str) -> bytes:
        """The table of snapshot -l. Raises RuntimeError with the message of a refusal."""


def without_program(errors: bytes) -> str:
    """What a command printed on standard error, without its name."""
    text = errors.decode("utf-8", "replace")
    return re.sub(r"^(qemu-img|airlock): ", "", text, flags=re.MULTILINE).rstrip("\n")


class QemuDriver:
    """qemu-img snapshot with a clock that stands still."""

    def run(self, path: str, call: SnapshotCall) -> Result:
        outcome = qemu.snapshot(path, FLAGS[call.verb], call.argument, call.date)
        return Result(outcome.code, without_program(outcome.errors))

    def listing(self, path: str) -> bytes:
        outcome = qemu.run(["qemu-img", "snapshot", "-l", path])
        if outcome.code:
            raise RuntimeError(without_program(outcome.errors))
        return outcome.output


class PythonDriver:
    """sandbox.operations in this process: a real guest in KVM, without the price of a new interpreter."""

    def run(self, path: str, call: SnapshotCall) -> Result:
        from sandbox import errors, operations

        try:
            with operations.Image.open(path, writable=True) as image:
                if call.verb == "create":
                    # The typed face takes no longer name; our command line cuts it here, as qemu-img does.
                    operations.create_snapshot(image, call.argument[:255], call.date)
                elif call.verb == "apply":
                    selector = operations.Selector.by_id_or_name(call.argument)
                    operations.apply_snapshot(image, selector, allow_resize=True)
                else:
                    operations.delete_snapshot(image, operations.Selector.by_name(call.argument))
        except errors.AirlockError as error:
            return Result(1, f"{error.code}: {error}")
        return Result(0, "")

    def listing(self, path: str) -> bytes:
        from sandbox import errors, operations

        try:
            with operations.Image.open(path) as image:
                return operations.format_listing(operations.list_snapshots(image).snapshots)
        except errors.AirlockError as error:
            raise RuntimeError(f"{error.code}: {error}") from error


class CliDriver:
    """build/airlock snapshot, as an operator runs it."""

    def _run(self, arguments: list[str | bytes], date: tuple[int, int]) -> subprocess.CompletedProcess[bytes]:
        # The command line takes whole seconds only: SOURCE_DATE_EPOCH has no fraction.
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(date[0]), "LC_ALL": "C", "TZ": "UTC"}
        command = [sys.executable, AIRLOCK, "snapshot", *arguments]
        return subprocess.run(command, check=False, env=environment, capture_output=True, timeout=qemu.TIMEOUT)

    def run(self, path: str, call: SnapshotCall) -> Result:
        done = self._run([FLAGS[call.verb], call.argument, path], call.date)
        return Result(done.returncode, without_program(done.stderr))

    def listing(self, path: str) -> bytes:
        done = self._run(["-l", path], qemu.DATE)
        if done.returncode:
            raise RuntimeError(without_program(done.stderr))
        return done.stdout


DRIVERS: dict[str, type[Driver]] = {"qemu": QemuDriver, "airlock": PythonDriver, "cli": CliDriver}
