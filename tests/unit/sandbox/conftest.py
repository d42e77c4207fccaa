# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the sandbox have in common."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import typing as t

import pytest

from .command_line import Airlock

TOP = pathlib.Path(__file__).parents[3]


@pytest.fixture
def airlock(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Airlock:
    return Airlock(capfdbinary, monkeypatch)


@pytest.fixture
def no_descriptor_left() -> t.Iterator[None]:
    """What a test opens is closed behind it."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the command line's archive, built from this checkout."""
    target = tmp_path_factory.mktemp("build") / "airlock"
    subprocess.run([sys.executable, TOP / "tools" / "build_cli.py", "--output", target], check=True)
    return str(target)
