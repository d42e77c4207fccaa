# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which lines and branches of the guest the unit tests, differential runs and fuzzers run together, by file:

    python -m tests.coverage [--short]

All run the same C sources, compiled for the host. The guest in KVM cannot count, for it has no room for the counters:
differential runs have a native one in its place here, see tests/differential/counted.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz import build
from tests.support.native import COVERAGE, TOP

INPUTS = 3000  # of each fuzzer; always the same
SHORT_TESTS, SHORT_INPUTS = "test_counters.py", 200


@dataclass
class Counts:
    """Of one file. lines: number -> how often it ran. branches: (line, which of its branches) -> how often taken."""

    lines: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    branches: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))

    def row(self, name: str) -> str:
        """A line of the table: shares of lines and branches, and the numbers of lines that nothing ran."""
        missed = [str(number) for number, count in sorted(self.lines.items()) if not count]
        return f"{share(self.lines)} {share(self.branches)}  {name}  {' '.join(missed)}".rstrip()


def share(counts: dict[int, int] | dict[tuple[int, int], int]) -> str:
    ran = sum(1 for count in counts.values() if count)
    return f"{100 * ran / len(counts):6.1f} %" if counts else "       -"


def unit_tests(directory: Path, short: bool) -> int:
    """Runs those of the guest; what they count goes to the directory. Returns pytest's exit status."""
    tests = TOP / "tests" / "unit" / "guest"
    tests = tests / SHORT_TESTS if short else tests
    environment = {**os.environ, COVERAGE: str(directory), "PYTHONPATH": str(TOP)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    return subprocess.run(command, check=False, env=environment, cwd=TOP).returncode


def differential_runs(directory: Path, short: bool) -> int:
    """Compares random chains with qemu-img. Returns the exit status."""
    environment = {**os.environ, COVERAGE: str(directory), "PYTHONPATH": str(TOP)}
    command = [sys.executable, "-m", "tests.differential.counted", *(["--short"] if short else [])]
    return subprocess.run(command, check=False, env=environment, cwd=TOP).returncode


def fuzzers(directory: Path, short: bool) -> int:
    """Compiles and runs them on inputs that are always the same. Returns 0, or the first exit status that is not."""
    build.fuzzers(directory, options=["--coverage", "-O0"])
    for name in build.PROGRAMS:
        seeds = directory / f"{name}-seeds"
        seeds.mkdir()
        files = sorted(map(str, build.SEEDS[name](seeds)))
        command = [str(directory / name), "0", str(SHORT_INPUTS if short else INPUTS), *files]
        code = subprocess.run(command, check=False, env={**os.environ, **build.ENVIRONMENT}).returncode
        if code:
            return code
    return 0


def counted(directory: Path) -> dict[Path, Counts]:
    """What all programs have left in the directory, by source file. Raises CalledProcessError."""
    found: dict[Path, Counts] = defaultdict(Counts)
    for data in sorted(directory.rglob("*.gcda")):
        command = ["gcov", "--json-format", "--branch-probabilities", "--stdout", str(data)]
        output = subprocess.run(command, check=True, capture_output=True, cwd=directory).stdout
        for document in map(json.loads, output.splitlines()):
            for file in document["files"]:
                counts = found[(directory / file["file"]).resolve()]
                for line in file["lines"]:
                    number = line["line_number"]
                    counts.lines[number] += line["count"]
                    for which, branch in enumerate(line["branches"]):
                        counts.branches[number, which] += branch["count"]
    return found


def table(found: dict[Path, Counts]) -> list[str]:
    """A line a file of the guest, and one of all of them."""
    guest = TOP / "guest"
    files = {path.relative_to(TOP): counts for path, counts in found.items() if guest in path.parents}
    whole = Counts()
    for path, counts in files.items():
        whole.lines.update({hash((path, number)): count for number, count in counts.lines.items()})
        whole.branches.update({(hash((path, line)), which): count for (line, which), count in counts.branches.items()})
    rows = [counts.row(str(path)) for path, counts in sorted(files.items())]
    total = f"{share(whole.lines)} {share(whole.branches)}"
    return [" lines   branches", *rows, f"{total}  of {len(whole.lines)} lines, {len(whole.branches)} branches"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--short", action="store_true", help="a small part of the tests and inputs")
    short = parser.parse_args().short
    with tempfile.TemporaryDirectory() as directory:
        fuzzing = Path(directory) / "fuzz"
        fuzzing.mkdir()
        codes = [part(Path(directory), short) for part in (unit_tests, differential_runs)]
        codes.append(fuzzers(fuzzing, short))
        print("\n".join(table(counted(Path(directory)))))
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
