# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: kill_at
type: aggregate
short_description: Kill ansible-playbook, and all that it has started, at a moment that is told
description:
  - Only for tests. The environment variable E(KILL_AT) is V(start:TASK), when the task of this name begins,
    V(item:TASK:N), when its loop has done N items, or V(later:TASK:SECONDS), that long after it has begun.
"""


def processes() -> dict[int, tuple[int, str]]:
    """The parent and the state of each process that there is."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                state, parent = stat.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has ended
        found[int(entry)] = (int(parent), state)
    return found


def descendants() -> set[int]:
    """The ids of all processes that this one has started, and of those that these have started."""
    there = processes()
    found = [os.getpid()]
    for one in found:
        found += [child for child, (parent, state) in there.items() if parent == one and state != "Z"]
    return set(found[1:])


def signal_all(ids: t.Iterable[int], number: int) -> None:
    for one in ids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, number)


def kill_all() -> None:
    """Nobody gets to do anything more, and nobody holds an image any more when this process ends."""
    stopped: set[int] = set()
    while new := descendants() - stopped:  # who is stopped starts nobody
        signal_all(new, signal.SIGSTOP)
        stopped |= new
        time.sleep(0.02)
    signal_all(stopped, signal.SIGKILL)
    while any(processes().get(one, (0, "Z"))[1] != "Z" for one in stopped):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


class CallbackModule(CallbackBase):
    """Counts and kills."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kill_at"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.task, self.number = [*os.environ["KILL_AT"].split(":"), ""][:3]
        self.items = 0

    def v2_playbook_on_task_start(self, task: t.Any, is_conditional: bool) -> None:
        if task.name != self.task:
            return
        if self.kind == "start":
            kill_all()
        elif self.kind == "later":
            threading.Timer(float(self.number), kill_all).start()

    def v2_runner_item_on_ok(self, result: t.Any) -> None:
        if self.kind == "item" and result.task_name == self.task:
            self.items += 1
            if self.items == int(self.number):
                kill_all()
