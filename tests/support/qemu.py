# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""qemu-img and qemu-io as the oracle: with a frozen clock, in UTC, in the C locale."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import re
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.waiting import PATIENCE

DATE = (1767323045, 0)  # 2026-01-02 03:04:05 UTC: what a snapshot gets unless a test says otherwise
TIMEOUT = PATIENCE  # a command that needs longer has hung
COPY_MAX = 8 << 20  # bytes; of what takes less, starting cp costs more than copying
_WINDOW, _BLOCK = 1 << 20, 4096
_ZEROS = bytes(_BLOCK)


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code, standard output, standard error."""

    code: int
    output: bytes
    errors: bytes


@functools.cache
def _faketime_library() -> str:
    """What the faketime wrapper would preload. Asked once: the wrapper itself costs a process a call."""
    command = ["faketime", "-f", "2026-01-02 03:04:05", "env"]
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        if line.startswith("LD_PRELOAD="):
            return line.partition("=")[2]
    raise RuntimeError("faketime sets no LD_PRELOAD")


def environment(date: tuple[int, int] = DATE) -> dict[str, str]:
    """The environment of a qemu tool whose clock stands still at `date` (seconds, nanoseconds since 1970, UTC).

    faketime reads that as a double, so only nanoseconds that are a binary fraction of a second come out exactly.
    """
    return {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C",
        "TZ": "UTC",
        "LD_PRELOAD": _faketime_library(),
        "FAKETIME_FMT": "%s",
        "FAKETIME": f"{date[0]}.{date[1]:09d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def run(command: Sequence[str | bytes], date: tuple[int, int] = DATE, cwd: str | None = None) -> Outcome:
    """Runs a qemu tool. Raises subprocess.TimeoutExpired when it hangs."""
    done = subprocess.run(
        command,
        check=False,
        env=environment(date),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def must(command: Sequence[str | bytes], cwd: str | None = None) -> Outcome:
    """Runs a qemu tool that has to succeed. Raises RuntimeError with what it printed."""
    outcome = run(command, cwd=cwd)
    if outcome.code != 0:
        raise RuntimeError(f"{command!r}: exit {outcome.code}: {(outcome.output + outcome.errors)[:2000]!r}")
    return outcome


def create(path: str, size: int | str, options: str = "", backing: str | None = None) -> None:
    """qemu-img create -f qcow2."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if options:
        command += ["-o", options]
    if backing is not None:
        command += ["-b", backing, "-F", "qcow2"]
    must([*command, path, str(size)])


def io(path: str, *commands: str) -> Outcome:
    """qemu-io: each of `commands` in order, in one process. Failures of single commands do not stop it."""
    arguments = ["qemu-io", "-f", "qcow2"]
    for command in commands:
        arguments += ["-c", command]
    return run([*arguments, path])


def crash(path: str, *commands: str) -> None:
    """qemu-io that dies after `commands`. Without the frozen clock: faketime would leave a semaphore behind."""
    arguments = ["qemu-io", "-f", "qcow2"]
    for command in (*commands, "abort"):
        arguments += ["-c", command]
    subprocess.run([*arguments, path], check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT)


def snapshot(path: str, flag: str, name: bytes | str, date: tuple[int, int] = DATE) -> Outcome:
    """qemu-img snapshot -c/-a/-d NAME."""
    return run(["qemu-img", "snapshot", flag, name, path], date)


@dataclass(frozen=True)
class Check:
    """What qemu-img check says: 0 clean, 2 corrupt, 3 leaks only; anything else: it could not look."""

    code: int
    text: str

    @property
    def clean(self) -> bool:
        return self.code == 0

    @property
    def complaints(self) -> frozenset[str]:
        """Each error and each leaked cluster. A warning may stand before them on their line."""
        return frozenset(re.findall(r"(?:ERROR|Leaked|Repairing) .*", self.text))


def check(path: str, cwd: str | None = None) -> Check:
    """qemu-img check, read-only."""
    outcome = run(["qemu-img", "check", "-f", "qcow2", path], cwd=cwd)
    return Check(outcome.code, (outcome.output + outcome.errors).decode("utf-8", "replace"))


def copy(source: str, target: str) -> None:
    """A copy in which all zeros are holes; a large file is reflinked where the file system can."""
    with open(source, "rb") as one:
        facts = os.fstat(one.fileno())
        if facts.st_blocks * 512 > COPY_MAX or not stat.S_ISREG(facts.st_mode):
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)
            return
        with open(target, "wb", buffering=0) as other:
            for start, end in data_ranges(one.fileno(), facts.st_size):
                _copy_range(one.fileno(), other.fileno(), start, end)
            other.truncate(facts.st_size)
    os.chmod(target, stat.S_IMODE(facts.st_mode))


def data_ranges(descriptor: int, length: int) -> Iterator[tuple[int, int]]:
    """The (start, end) ranges of a file that are not holes."""
    position = 0
    while position < length:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        position = min(os.lseek(descriptor, start, os.SEEK_HOLE), length)
        yield start, position


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    """What is not zero between two offsets of a file, in runs of blocks."""
    while start < end:
        data = os.pread(source, min(_WINDOW, end - start), start)
        blocks = (data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK))
        at = start
        for used, run in itertools.groupby(blocks, lambda block: not _ZEROS.startswith(block)):
            joined = b"".join(run)
            if used:
                os.pwrite(target, joined, at)
            at += len(joined)
        start = at
