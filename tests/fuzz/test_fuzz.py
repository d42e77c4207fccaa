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

INPUTS = {"steps": 1500, "chains": 1500}
PARTS = 2
DONE = {
    "steps": [f"operation {number}" for number in range(3, len(build.OPERATIONS) + 1)],  # the first two only read
    "chains": ("commit", "rebase", "compress", "relink", "empty"),
}


@pytest.fixture(scope="session")
def fuzzers(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory with the fuzzers and their seeds, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    directory = (base if worker_id == "master" else base.parent) / "fuzz"
    directory.mkdir(exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "done").exists():
            for name, make in build.SEEDS.items():
                (directory / f"{name}-seeds").mkdir()
                make(directory / f"{name}-seeds")
            build.fuzzers(directory)
            (directory / "done").touch()
    return directory


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", build.PROGRAMS)
def test_fuzz(fuzzers: Path, name: str, part: int) -> None:
    seeds = sorted(str(path) for path in (fuzzers / f"{name}-seeds").iterdir())
    inputs = INPUTS[name]
    command = [str(fuzzers / name), str(part * inputs), str(inputs), *seeds]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=3600, env={**os.environ, **build.ENVIRONMENT}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # The inputs get somewhere: of each operation a good part is carried out.
    for operation in DONE[name]:
        found = re.search(rf"{operation} (\d+) of (\d+)", done.stdout)
        assert found
        assert int(found[1]) > inputs // 50, done.stdout
