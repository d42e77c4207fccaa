# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write build/airlock: the command line as one executable file, a zip archive that Python runs.

Each module is in it twice: as source, and compiled for the Python that builds. Python takes the compiled one if it
suits it, and starts in a fraction of the time; any other Python compiles the source. The same sources and the same
Python make the same bytes.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import marshal
import os
import sys
import zipfile
from pathlib import Path

from generated import TOP

# -I: nothing out of the caller's environment (PYTHONPATH, PYTHONHOME) gets into what root runs. By the shell, for not
# every env knows -S, and without it a first line has no room for an argument.
SHEBANG = b"""#!/bin/sh
exec python3 -I "$0" "$@"
"""
START = "import sys\n\nfrom sandbox.cli.main import main\n\nsys.exit(main())\n"
OLDEST = (1980, 1, 1, 0, 0, 0)  # the first date that a zip archive knows


def compiled(source: bytes, name: str) -> bytes:
    """The bytes of a .pyc file that is not checked against its source."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    hash_of_nothing = bytes(8)
    flags = (1).to_bytes(4, "little")  # hash-based, unchecked
    # Through marshal twice: the first pass's output depends on reference counts.
    data = marshal.dumps(marshal.loads(marshal.dumps(code)))
    return importlib.util.MAGIC_NUMBER + flags + hash_of_nothing + data


def archive() -> bytes:
    """The whole file."""
    files = {"__main__.py": START.encode()}
    for path in sorted((TOP / "sandbox").rglob("*.py")):
        files[str(path.relative_to(TOP))] = path.read_bytes()
    output = io.BytesIO()
    output.write(SHEBANG)
    with zipfile.ZipFile(output, "w", zipfile.ZIP_STORED) as target:
        for name, source in files.items():
            for entry, data in ((name + "c", compiled(source, name)), (name, source)):
                record = zipfile.ZipInfo(entry, OLDEST)
                record.external_attr = 0o644 << 16
                record.compress_type = zipfile.ZIP_DEFLATED if entry.endswith(".py") else zipfile.ZIP_STORED
                target.writestr(record, data)
    return output.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the command line as one executable file.")
    parser.add_argument("--output", type=Path, default=TOP / "build" / "airlock")
    target: Path = parser.parse_args().output
    target.parent.mkdir(exist_ok=True)
    draft = target.with_name(f"{target.name}.{os.getpid()}.draft")
    draft.write_bytes(archive())
    draft.chmod(0o755)
    draft.replace(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
