# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What travels to a managed host: every file of the sandbox but those of the command line."""

from __future__ import annotations

import os
import pathlib

CHECKOUT = pathlib.Path(__file__).resolve().parents[3]
COMMAND_LINE = {"cli.py", "cli_bitmap.py", "cli_common.py", "cli_info.py", "cli_snapshot.py", "options.py", "sizes.py"}
STAY_AT_HOME = {"__init__.py", *COMMAND_LINE}


def test_each_file_of_the_sandbox_has_its_link() -> None:
    sandbox = {path.name for path in (CHECKOUT / "sandbox").glob("*.py") if not path.name.startswith("cli")}
    links = CHECKOUT / "plugins" / "module_utils" / "sandbox"
    assert {path.name: os.readlink(path) for path in links.glob("*.py")} == {
        name: f"../../../sandbox/{name}" for name in sandbox - STAY_AT_HOME
    }
