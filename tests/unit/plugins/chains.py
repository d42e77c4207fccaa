# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chains of real images, for the tests of qcow2_chain."""

from __future__ import annotations

import os
import pathlib
import subprocess
import typing as t

Task = t.Callable[..., dict[str, t.Any]]


def run(*command: str, directory: pathlib.Path) -> None:
    subprocess.run(command, cwd=directory, check=True, capture_output=True)


def shown(path: pathlib.Path) -> bytes:
    """The disk as qemu-img reads it; the image has to be sound."""
    target = path.with_suffix(".shown")
    run("qemu-img", "check", "-f", "qcow2", path.name, directory=path.parent)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path.name, target.name, directory=path.parent)
    content = target.read_bytes()
    target.unlink()
    return content


def overlay(directory: pathlib.Path, name: str, below: str | None, *writes: str, size: str = "4M") -> None:
    backing = ("-b", below, "-F", "qcow2") if below else ()
    run("qemu-img", "create", "-q", "-f", "qcow2", *backing, name, size, directory=directory)
    for write in writes:
        run("qemu-io", "-f", "qcow2", "-c", write, name, directory=directory)


def actions(answer: dict[str, t.Any]) -> list[tuple[str, ...]]:
    names = ((step["layer"], step["onto"] or "") for step in answer["plan"])
    return [
        (step["action"], os.path.basename(layer), os.path.basename(onto))
        for step, (layer, onto) in zip(answer["plan"], names)
    ]
