# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line and the real qemu-img, run the same way."""

from __future__ import annotations

import pathlib
import subprocess
import typing as t

import pytest

from sandbox.cli import main as cli


class Outcome(t.NamedTuple):
    code: int
    stdout: bytes
    stderr: bytes


EVIL = b"\x1b[31m\n\xff"  # a name in an image
SHOWN = b"\\x1b[31m\\n\xff"  # what is printed of it: no control character, and every other byte


def qemu_img(*arguments: bytes, directory: pathlib.Path) -> Outcome:
    """The real one; its name replaced by ours, and a listing's control characters by what we print."""
    done = subprocess.run([b"qemu-img", *arguments], cwd=directory, capture_output=True, check=False)
    output = done.stdout.replace(b"%-16s" % EVIL, b"%-16s" % SHOWN).replace(EVIL, SHOWN)
    return Outcome(done.returncode, output, done.stderr.replace(b"qemu-img", b"airlock"))


class Airlock:
    """Runs the command line in this process, in a directory."""

    def __init__(self, capture: pytest.CaptureFixture[bytes], patch: pytest.MonkeyPatch) -> None:
        self._capture = capture
        self._patch = patch

    def __call__(self, *arguments: bytes, directory: pathlib.Path) -> Outcome:
        self._capture.readouterr()
        with self._patch.context() as patch:
            patch.chdir(directory)
            code = cli.main(arguments)
        return Outcome(code, *self._capture.readouterr())
