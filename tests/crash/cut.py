# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Cuts the power at every moment of one operation, and judges every file that can be left.

AIRLOCK_LONG=1 asks qemu-img about more states, and draws more random subsets.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest

from sandbox.vmm import machine
from tests.crash import replay
from tests.support import judge, qemu
from tests.support.drivers import Result
from tests.support.qcow2 import BITMAPS_EXTENSION, Qcow2
from tests.support.recording import recording

LONG = os.environ.get("AIRLOCK_LONG") == "1"
ASK_QEMU_EVERY = 5 if LONG else 20
RANDOM_SUBSETS = 200 if LONG else 30
Meaning = Callable[[Qcow2], object]


def record(operate: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[replay.Change]:
    """Runs the operation with a recorder behind the doorbell of each guest that it takes: what was done to which file,
    by the path that it was opened with."""
    names = replay.operation_names()
    log: list[replay.Change] = []

    def run(what: machine.Run) -> machine.Answer:
        with recording(monkeypatch) as recorder:
            answer = machine_run(what)
            for event in recorder.events():
                path = what.disks[event.disk].path
                log.append(replay.Change(path, names[event.operation], event.offset, event.length, event.data))
        return answer

    machine_run = machine.run
    with monkeypatch.context() as patch:
        patch.setattr(machine, "run", run)
        operate()
    return log


def must(result: Result) -> None:
    assert result.code == 0, result.message


def qemu_agrees(path: str, found: judge.Faults, meaning: Meaning) -> None:
    """qemu-img check sees what we saw, and its repair leaves nothing behind."""
    checked = qemu.check(path)
    if found.flags:
        assert checked.code == 2, checked.text
        wrong = [line for line in checked.text.splitlines() if line.startswith("ERROR") and "OFLAG_COPIED" not in line]
        assert wrong == []
    else:
        assert checked.code == (3 if found.leaks else 0), checked.text
    with Qcow2(path) as image:
        writes_header = image.header["autoclear_features"] or any(
            kind == BITMAPS_EXTENSION for _at, kind, _data in image.extensions()
        )
        if writes_header and image.header["nb_snapshots"]:
            return  # 10.0.2's repair rewrites the header before it reads the snapshot table: all snapshots are lost
        before = meaning(image)
    qemu.run(["qemu-img", "check", "-q", "-r", "all", "-f", "qcow2", path])
    assert qemu.check(path).clean
    with Qcow2(path) as image:
        assert meaning(image) == before


def cut_power(
    path: str, operate: Callable[[], Result], meaning: Meaning, monkeypatch: pytest.MonkeyPatch
) -> Counter[str]:
    """Operates on the image, then looks at every state that a power cut could have left instead: its meaning has to be
    the old or the new one. Returns how many states there were: clean, with leaks, with flags."""
    with open(path, "rb") as file:
        before = file.read()
    with Qcow2(path) as image:
        allowed = [meaning(image)]
        assert judge.faults(image).damage == []
    log = record(lambda: must(operate()), monkeypatch)
    with Qcow2(path) as image:
        allowed.append(meaning(image))
    tally: Counter[str] = Counter()
    problems = []
    state = path + ".state"
    for story, files in replay.states({path: before}, log, seed=1, extra=RANDOM_SUBSETS):
        with open(state, "wb") as file:
            file.write(files[path])
        with Qcow2(state) as image:
            found = judge.faults(image)
            if meaning(image) not in allowed:
                found.damage.append("neither the old nor the new content")
        if found.damage:
            problems.append(f"{story}: {found.damage[:3]}")
            continue
        tally["flags" if found.flags else "leaks" if found.leaks else "clean"] += 1
        if sum(tally.values()) % ASK_QEMU_EVERY == 0:
            qemu_agrees(state, found, meaning)
    with open(path, "rb") as file:
        assert replay.replayed({path: before}, log)[path] == file.read(), "the log does not tell all that was done"
    assert not problems, f"{len(problems)} bad states beside {tally}, first: " + "\n".join(problems[:4])
    return tally
