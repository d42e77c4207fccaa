# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The long run: python -m tests.fuzz.run DIRECTORY [SECONDS]. What it finds interesting, and what breaks, stays there;
each of the fuzzers has its part of the time.

With clang and its runtime the search is guided by coverage; else driver.c changes seeds blindly.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz import build

BLIND = 20000  # inputs a round


def guided(program: Path, seconds: int) -> int:
    corpus = program.with_name(f"{program.name}-corpus")
    corpus.mkdir(exist_ok=True)
    limits = [f"-max_total_time={seconds}", "-max_len=1048576", "-len_control=0", "-timeout=20", "-rss_limit_mb=4096"]
    workers = [f"-fork={os.cpu_count() or 1}", f"-artifact_prefix={program}-"]
    command = [str(program), *limits, *workers, str(corpus), str(seeds_of(program))]
    return subprocess.run(command, check=False, env={**os.environ, **build.ENVIRONMENT}, cwd=program.parent).returncode


def blind(program: Path, seconds: int) -> int:
    end = time.monotonic() + seconds
    first = int(time.time()) * 1000
    files = sorted(str(path) for path in seeds_of(program).iterdir())
    while time.monotonic() < end:
        command = [str(program), str(first), str(BLIND), *files]
        code = subprocess.run(command, check=False, env={**os.environ, **build.ENVIRONMENT}).returncode
        if code:
            return code
        first += BLIND
    return 0


def seeds_of(program: Path) -> Path:
    """The directory with the program's seeds, which are made when they are not there."""
    seeds = program.with_name(f"{program.name}-seeds")
    if not seeds.exists():
        seeds.mkdir()
        build.SEEDS[program.name](seeds)
    return seeds


def has_engine() -> bool:
    """Whether there is a clang that can link a fuzzer."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "nothing.c"
        source.write_text("int LLVMFuzzerTestOneInput(const char *data, unsigned long size) { return !data; }\n")
        command = [build.clang(), "-fsanitize=fuzzer,address", str(source), "-o", str(source.with_suffix(""))]
        try:
            return subprocess.run(command, check=False, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False


def main() -> int:
    directory = Path(sys.argv[1]).resolve()
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else 600
    directory.mkdir(parents=True, exist_ok=True)
    engine = has_engine()
    build.fuzzers(directory, libfuzzer=engine)
    codes = [(guided if engine else blind)(directory / name, seconds // len(build.PROGRAMS)) for name in build.PROGRAMS]
    return max(codes, key=abs)


if __name__ == "__main__":
    sys.exit(main())
