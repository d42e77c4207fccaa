# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many lines of the guest the tests of this directory run: python -m tests.unit.guest.coverage"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tests.unit.guest.native import COVERAGE, HERE, TOP


def counted(directory: Path) -> dict[str, dict[int, int]]:
    """Source file -> line -> how often it ran, of all makes of the guest together."""
    files = [str(path) for path in sorted(directory.rglob("*.gcda"))]
    command = ["gcov", "--json-format", "--stdout", *files]
    output = subprocess.run(command, check=True, capture_output=True, cwd=directory)
    lines: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for document in output.stdout.splitlines():
        for file in json.loads(document)["files"]:
            for line in file["lines"]:
                lines[file["file"]][line["line_number"]] += line["count"]
    return lines


def main() -> int:
    """Prints a line a file, with the numbers of the lines that nothing ran."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, COVERAGE: directory, "PYTHONPATH": str(TOP)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE.parent)]
        code = subprocess.run(command, check=False, env=environment, cwd=TOP).returncode
        lines = counted(Path(directory))
    whole = ran = 0
    for name in sorted(lines):
        path = Path(name)
        if TOP / "guest" not in path.parents:
            continue
        missed = [str(number) for number, count in sorted(lines[name].items()) if count == 0]
        whole += len(lines[name])
        ran += len(lines[name]) - len(missed)
        share = 100 * (len(lines[name]) - len(missed)) / len(lines[name])
        print(f"{share:6.1f} %  {path.relative_to(TOP)}  {' '.join(missed)}")
    print(f"{100 * ran / max(whole, 1):6.1f} %  of {whole} lines")
    return code


if __name__ == "__main__":
    sys.exit(main())
