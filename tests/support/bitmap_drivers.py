# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who carries out a list of bitmap actions: qemu-img, our Python face, or our command line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Protocol

from . import qemu
from .drivers import AIRLOCK, Result, without_program

FLAGS = {name: f"--{name}" for name in ("add", "remove", "clear", "enable", "disable", "merge")}


@dataclass(frozen=True)
class BitmapCall:
    """One command: actions on the bitmap `name`, in order, each a kind and, of a merge, the source's name.

    granularity: of all additions, in bytes; 0: not given. source_file: the image that all merges are from, relative to
    the directory of the image; "": the image itself.
    """

    name: bytes
    actions: tuple[tuple[str, bytes], ...]
    granularity: int = 0
    source_file: str = ""

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _unused in self.actions]

    def arguments(self, path: str) -> list[str | bytes]:
        """The command line behind "bitmap"."""
        words: list[str | bytes] = ["-f", "qcow2"]
        for kind, source in self.actions:
            words += [FLAGS[kind], source] if kind == "merge" else [FLAGS[kind]]
        if self.granularity:
            words += ["-g", str(self.granularity)]
        if self.source_file:
            words += ["-b", os.path.join(os.path.dirname(path), self.source_file), "-F", "qcow2"]
        return [*words, path, self.name]

    def __str__(self) -> str:
        shown = [word.decode("utf-8", "replace") if isinstance(word, bytes) else word for word in self.arguments("X")]
        return "bitmap " + " ".join(repr(word[:40]) if " " in word or not word else word[:40] for word in shown)


@dataclass(frozen=True)
class BitmapResult(Result):
    """And what our Python face says: the change; None of a command, and of a refusal."""

    change: Any = None


class BitmapDriver(Protocol):
    """Carries out one list of actions on an image."""

    def run(self, path: str, call: BitmapCall, dry_run: bool = False) -> BitmapResult: ...


class QemuBitmaps:
    """qemu-img bitmap."""

    def run(self, path: str, call: BitmapCall, dry_run: bool = False) -> BitmapResult:
        if dry_run:
            raise NotImplementedError("qemu-img cannot tell what it would do")
        outcome = qemu.run(["qemu-img", "bitmap", *call.arguments(path)])
        return BitmapResult(outcome.code, without_program(outcome.errors))


class PythonBitmaps:
    """sandbox.images.bitmaps in this process: a real guest in KVM, without the price of a new interpreter."""

    def run(self, path: str, call: BitmapCall, dry_run: bool = False) -> BitmapResult:
        from sandbox import errors
        from sandbox.images.bitmaps import Action, change_bitmap
        from sandbox.images.image import Image

        try:
            with contextlib.ExitStack() as stack:
                image = stack.enter_context(Image.open(path, writable=not dry_run))
                source = None
                if call.source_file and "merge" in call.kinds:
                    where = os.path.join(os.path.dirname(path), call.source_file)
                    source = stack.enter_context(Image.open(where))
                simple = {
                    "remove": Action.remove,
                    "clear": Action.clear,
                    "enable": Action.enable,
                    "disable": Action.disable,
                }
                actions = [
                    Action.add(call.granularity)
                    if kind == "add"
                    else Action.merge(text, source)
                    if kind == "merge"
                    else simple[kind]()
                    for kind, text in call.actions
                ]
                change = change_bitmap(image, call.name, actions, dry_run=dry_run)
        except errors.AirlockError as error:
            return BitmapResult(1, f"{error.code}: {error}")
        return BitmapResult(0, "", change)


class CliBitmaps:
    """build/airlock bitmap, as an operator runs it."""

    def run(self, path: str, call: BitmapCall, dry_run: bool = False) -> BitmapResult:
        if dry_run:
            raise NotImplementedError("the command line has no dry run")
        command = [sys.executable, AIRLOCK, "bitmap", *call.arguments(path)]
        environment = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(command, check=False, env=environment, capture_output=True, timeout=qemu.TIMEOUT)
        return BitmapResult(done.returncode, without_program(done.stderr))


BITMAP_DRIVERS: dict[str, type[BitmapDriver]] = {"qemu": QemuBitmaps, "airlock": PythonBitmaps, "cli": CliBitmaps}
