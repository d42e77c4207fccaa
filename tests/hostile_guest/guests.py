# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Builds the guests of these tests; also for scripts that tests start, so without pytest."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sandbox.machine import Program

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
sys.path.insert(0, str(TOP / "tools"))

import build_guest  # noqa: E402

START = [TOP / "guest" / "start" / "start.c", TOP / "guest" / "start" / "memory.c"]


def program(source: str) -> Program:
    return Program(*build_guest.compile_guest([*START, HERE / source]))


def modes() -> dict[str, int]:
    """enum mode of hostile.c: one number after the other."""
    text = (HERE / "hostile.c").read_text(encoding="ascii")
    body = re.search(r"enum mode \{(.*?)\};", text, re.DOTALL)
    return {name: number for number, name in enumerate(re.findall(r"MODE_(\w+)", body[1]), 1)}
