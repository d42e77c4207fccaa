# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How long and how much memory: whole processes, several runs, contenders taking turns."""

from __future__ import annotations

import contextlib
import os
import pathlib
import statistics
import subprocess
import time
import typing as t
from collections.abc import Callable, Mapping, Sequence


class Spread(t.NamedTuple):
    """Seconds of several runs."""

    minimum: float
    median: float
    maximum: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        return cls(min(seconds), statistics.median(seconds), max(seconds))


class Memory(t.NamedTuple):
    """The peak of a whole process tree, in bytes.

    shared_once: largest sum of PSS that a sampler saw, pages shared inside the tree counted once. It may miss a short
    peak. each_apart: sum of every process's own peak (VmHWM): never too low, counts shared pages more than once.
    """

    shared_once: int
    each_apart: int


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Runs `command`; RuntimeError with what it printed where it fails."""
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)}: exit {done.returncode}: {(done.stdout + done.stderr).strip()[-2000:]}"
        )


def seconds_of(work: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def take_turns(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Spread]:
    """Runs each contender `repeats` times, the first of one round being the last of the next.

    A contender returns its own seconds, so that it can prepare and clean up outside them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _round in range(repeats):
        for name in order:
            seconds[name].append(contenders[name]())
        order.reverse()
    return {name: Spread.of(values) for name, values in seconds.items()}


def peak_memory(command: Sequence[str], may_fail: bool = False) -> Memory:
    """Runs `command` and watches its process tree. The watching slows it down: not for timed runs.

    may_fail: a refusal will do, too. Raises RuntimeError for one otherwise.
    """
    highest: dict[int, int] = {}
    shared_once = 0
    errors = subprocess.DEVNULL if may_fail else None
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors) as process:
        while process.poll() is None:
            total = 0
            for pid in _tree(process.pid):
                total += _field(f"/proc/{pid}/smaps_rollup", "Pss:")
                highest[pid] = max(highest.get(pid, 0), _field(f"/proc/{pid}/status", "VmHWM:"))
            shared_once = max(shared_once, total)
            time.sleep(0.001)
    if process.returncode and not may_fail:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}")
    return Memory(shared_once, sum(highest.values()))


def _tree(pid: int) -> list[int]:
    """The process and all its descendants; those that end meanwhile may be missing."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):  # it has ended, before or in the middle of being looked at
            for children in pathlib.Path(f"/proc/{parent}/task").glob("*/children"):
                found.extend(int(child) for child in children.read_text().split())
    return found


def _field(path: str, name: str) -> int:
    """A size of a /proc file in bytes; 0 where the process is gone or has no memory any more."""
    try:
        with open(path, encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith(name):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def write_back() -> None:
    """Lets nobody pay for what another left in the page cache."""
    os.sync()
