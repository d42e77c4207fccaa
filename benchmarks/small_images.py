# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a call and a task cost on small images, where nothing but the overhead counts."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import sys
from collections.abc import Callable

from benchmarks import measure
from benchmarks.large_image import AIRLOCK
from sandbox import operations

MODULE = "airlock.images.qcow2_snapshot"
COMMIT = "airlock.images.qcow2_commit"
COMMAND = "ansible.builtin.command"
Task = dict[str, object]


def _make(path: pathlib.Path) -> str:
    measure.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1G"])
    measure.run(["qemu-io", "-f", "qcow2", "-c", "write -q 0 4M", str(path)])
    measure.run(["qemu-img", "snapshot", "-c", "first", str(path)])
    return str(path)


def listing(directory: pathlib.Path, repeats: int) -> dict[str, measure.Spread]:
    """Seconds to list the snapshots of a small image: a Python call, and both commands as whole processes."""
    path = _make(directory / "small.qcow2")

    def call() -> None:
        with operations.Image.open(path) as image:
            operations.list_snapshots(image)

    work: dict[str, Callable[[], object]] = {
        "Python call": call,
        "qemu-img snapshot -l": functools.partial(measure.run, ["qemu-img", "snapshot", "-l", path]),
        "airlock snapshot -l": functools.partial(measure.run, [AIRLOCK, "snapshot", "-l", path]),
    }
    call()  # imports and /dev/kvm are paid once
    turns = {name: functools.partial(measure.seconds_of, job) for name, job in work.items()}
    return measure.take_turns(turns, repeats)


def tasks(directory: pathlib.Path, count: int, repeats: int) -> dict[str, measure.Spread]:
    """Seconds of one task that changes nothing."""
    path = _make(directory / "task.qcow2")
    kinds: dict[str, list[Task]] = {
        "qcow2_snapshot, unchanged": [{MODULE: {"path": path, "name": "first"}}] * count,
        "command: qemu-img snapshot -l": [{COMMAND: {"argv": ["qemu-img", "snapshot", "-l", path]}}] * count,
    }
    return _of_each_task(directory, kinds, repeats)


def commit_tasks(directory: pathlib.Path, count: int, repeats: int) -> dict[str, measure.Spread]:
    """Seconds of one task that commits an overlay of one cluster."""
    folder = directory / "overlays"
    folder.mkdir()
    names = [f"{number}.qcow2" for number in range(count)]

    def renew() -> None:
        for name in names:
            measure.run(["qemu-img", "create", "-q", "-f", "qcow2", str(folder / f"base{name}"), "1G"])
            overlay = str(folder / name)
            measure.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", f"base{name}", overlay])
            measure.run(["qemu-io", "-f", "qcow2", "-c", "write -q 0 64k", overlay])
        measure.write_back()

    kinds: dict[str, list[Task]] = {
        "qcow2_commit": [{COMMIT: {"path": str(folder / name)}} for name in names],
        "command: qemu-img commit": [{COMMAND: {"argv": ["qemu-img", "commit", str(folder / name)]}} for name in names],
    }
    return _of_each_task(directory, kinds, repeats, renew)


def _of_each_task(
    directory: pathlib.Path,
    kinds: dict[str, list[Task]],
    repeats: int,
    renew: Callable[[], None] = lambda: None,
) -> dict[str, measure.Spread]:
    """Seconds of one task, as the difference between a playbook with a list of them and an empty one. renew: what is
    done before each."""
    empty = _playbook(directory / "empty.yml", [])
    books = {name: _playbook(directory / f"tasks{index}.yml", kinds[name]) for index, name in enumerate(kinds)}

    def per_task(name: str) -> float:
        renew()
        without = measure.seconds_of(_play, empty)
        return (measure.seconds_of(_play, books[name]) - without) / len(kinds[name])

    return measure.take_turns({name: functools.partial(per_task, name) for name in kinds}, repeats)


def fleet(directory: pathlib.Path, count: int, repeats: int) -> dict[str, measure.Spread]:
    """Seconds of a whole playbook that snapshots `count` images: one module task, and a loop of commands."""
    images = [_make(directory / f"fleet{index}.qcow2") for index in range(count)]
    loop: Task = {COMMAND: {"argv": ["qemu-img", "snapshot", "-c", "second", "{{ item }}"]}, "loop": images}
    books = {
        f"one qcow2_snapshot task, {count} images": _playbook(
            directory / "fleet_module.yml", [{MODULE: {"path": images, "name": "second"}}]
        ),
        f"loop of {count} command tasks": _playbook(directory / "fleet_loop.yml", [loop]),
    }

    def once(book: str) -> float:
        taken = measure.seconds_of(_play, book)
        for image in images:
            measure.run(["qemu-img", "snapshot", "-d", "second", image])
        return taken

    return measure.take_turns({name: functools.partial(once, book) for name, book in books.items()}, repeats)


def _playbook(path: pathlib.Path, tasks: list[Task]) -> str:
    """Writes a playbook for this machine; JSON is YAML."""
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"ansible_python_interpreter": sys.executable},
        "tasks": tasks,
    }
    path.write_text(json.dumps([play]))
    return str(path)


def _play(book: str) -> None:
    measure.run(["ansible-playbook", "-i", "localhost,", book], {**os.environ, "ANSIBLE_LOCALHOST_WARNING": "False"})
