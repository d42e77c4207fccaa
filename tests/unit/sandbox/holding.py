# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody else who has an image open."""

from __future__ import annotations

import os
import subprocess


class Holder:
    """A qemu-io that has the image open until the end of its standard input."""

    def __init__(self, image: str, *options: str) -> None:
        self.process = subprocess.Popen(
            ["qemu-io", *options, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        # The answer to a command shows that the image is open, and locked.
        self.process.stdin.write(b"length\n")
        self.process.stdin.flush()
        answer = b""
        while b"1 MiB" not in answer:
            part = os.read(self.process.stdout.fileno(), 4096)
            assert part, answer
            answer += part

    def __enter__(self) -> int:
        return self.process.pid

    def __exit__(self, *_exception: object) -> None:
        self.process.communicate()
