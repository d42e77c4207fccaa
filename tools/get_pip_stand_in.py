# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stand in for the get-pip script that ansible-test fetches, on machines that reach only a package index.

ansible-test runs it with `pip==VERSION` among its arguments, by the Python of a virtual environment without pip.
`--install` puts a copy where ansible-test of ansible-core 2.19 looks first, unless one is there.
"""

from __future__ import annotations

import ensurepip
import os
import pathlib
import shutil
import subprocess
import sys

CACHED = "~/.ansible/test/cache/get_pip_24_2.py"


def install() -> None:
    cached = pathlib.Path(CACHED).expanduser()
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(__file__, cached)


def bootstrap(wanted: list[str]) -> None:
    """Install pip from the wheel that Python carries, then the version asked for with it."""
    ensurepip.bootstrap()
    os.environ.pop("PIP_CONFIG_FILE", None)  # ensurepip points it at /dev/null: the index and its CA would be lost
    command = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*command, *wanted], check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--install"]:
        install()
    else:
        bootstrap([argument for argument in sys.argv[1:] if argument.startswith("pip==")])
