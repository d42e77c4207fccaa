# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A short run of the fuzzer, the same inputs every time; `make fuzz` is the long one."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.fuzz import build

INPUTS = 1500
PARTS = 2


@pytest.fixture(scope="session")
def fuzzer(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory with the fuzzer and its seeds, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    directory = (base if worker_id == "master" else base.parent) / "fuzz"
    directory.mkdir(exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "fuzzer").exists():
            (directory / "seeds").mkdir()
            build.seeds(directory / "seeds")
            build.fuzzer(directory)
    return directory


@pytest.mark.parametrize("part", range(PARTS))
def test_fuzz(fuzzer: Path, part: int) -> None:
    seeds = sorted(str(path) for path in (fuzzer / "seeds").iterdir())
    command = [str(fuzzer / "fuzzer"), str(part * INPUTS), str(INPUTS), *seeds]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, env={**os.environ, **build.ENVIRONMENT}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # The inputs get somewhere: of each operation a good part is carried out.
    for operation in ("create", "apply", "delete", "bitmaps", "change"):
        found = re.search(rf"{operation} (\d+) of (\d+)", done.stdout)
        assert found
        assert int(found[1]) > INPUTS // 50, done.stdout
