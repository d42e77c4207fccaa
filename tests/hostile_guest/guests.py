# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Builds the guests of these tests; also for scripts that tests start, so without pytest."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

from sandbox.vmm.machine import Program

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
sys.path.insert(0, str(TOP / "tools"))

from pack_guest import segments  # noqa: E402


def program(name: str) -> Program:
    """The guest of NAME.c, compiled if that is new. Raises CalledProcessError."""
    path = TOP / "build" / "hostile" / f"{name}.elf"
    # A make that has started this one has told it by its environment how to go on, and that is not meant here.
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["make", "--silent", "-f", "guest/build.mk", str(path.relative_to(TOP))]
        subprocess.run(command, check=True, cwd=TOP, env=environment)
        return Program(*segments(path.read_bytes()))


def modes() -> dict[str, int]:
    """enum mode of hostile.c: one number after the other."""
    text = (HERE / "hostile.c").read_text(encoding="ascii")
    body = re.search(r"enum mode \{(.*?)\};", text, re.DOTALL)
    return {name: number for number, name in enumerate(re.findall(r"MODE_(\w+)", body[1]), 1)}
