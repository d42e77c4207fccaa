# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kills the process that serves a guest, with SIGKILL or another signal, at a moment of one's choice: between two
exits, or between two requests of one batch.
"""

from __future__ import annotations

import importlib
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def _children() -> list[int]:
    lists = Path("/proc/self/task").glob("*/children")
    return [int(child) for listed in lists for child in listed.read_text().split()]


class Killer:
    """Counts moments in all children of one test, and kills the child in which number `at` comes. Shared memory tells:
    a jailed child can do nothing else."""

    def __init__(self, at: int, number: int = signal.SIGKILL) -> None:
        self._at = at
        self._number = number
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)  # shared with children: moments so far, and whether it is time
        self._ended = False

    @property
    def moments(self) -> int:
        """How many there were."""
        return int(struct.unpack_from("<Q", self._memory, 0)[0])

    @property
    def killed(self) -> bool:
        """That the moment came: who is in it waits there, and nothing but the signal ends that. Whether watch() has
        noted it yet says nothing, for the one that it has killed may be seen to be dead before."""
        return self._memory[8] != 0

    def moment(self) -> None:
        """In the child: counts, and waits for the end when it is time."""
        number = self.moments
        struct.pack_into("<Q", self._memory, 0, number + 1)
        if number == self._at:
            self._memory[8] = 1
            while True:
                pass

    def watch(self) -> None:
        """In a thread of the parent."""
        while not self._ended:
            if self._memory[8] == 1:
                for child in _children():
                    os.kill(child, self._number)
                self._memory[8] = 2
            time.sleep(0.0005)

    def end(self) -> None:
        self._ended = True


@contextmanager
def killing(
    at: int,
    monkeypatch: pytest.MonkeyPatch,
    module: Callable[[str], Any] = importlib.import_module,
    number: int = signal.SIGKILL,
) -> Iterator[Killer]:
    """Within it, the child that writes dies at moment number `at`, counted over all runs: before each exit is served,
    and before each request that is no read. module: imports, as who is killed does."""
    killer = Killer(at, number)
    # Both are loaded before the first is replaced, of which the second one would be made otherwise.
    servers = {
        "ChangingServer": module("sandbox.vmm.doorbell_writes"),
        "MovingServer": module("sandbox.vmm.doorbell_copies"),
    }
    for name, there in servers.items():
        monkeypatch.setattr(there, name, _mortal(getattr(there, name), killer))
    watcher = threading.Thread(target=killer.watch)
    watcher.start()
    try:
        yield killer
    finally:
        killer.end()
        watcher.join()
        monkeypatch.undo()


def _mortal(server: Any, killer: Killer) -> Any:
    """That server, whose process dies at the killer's moment."""

    class MortalServer(server):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            for number, serve in list(self._operations.items()):
                if number != self._library.DOORBELL_READ:
                    self._operations[number] = self._mortal(serve)

        @staticmethod
        def _mortal(serve: Callable[..., int]) -> Callable[..., int]:
            def then(*request: Any) -> int:
                killer.moment()
                return serve(*request)

            return then

        def serve(self) -> Any:
            killer.moment()
            return super().serve()

    return MortalServer
