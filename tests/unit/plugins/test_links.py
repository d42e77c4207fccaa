# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What travels to a managed host: every file of the sandbox but those of the command line."""

from __future__ import annotations

import os
import pathlib

CHECKOUT = pathlib.Path(__file__).resolve().parents[3]
SANDBOX = CHECKOUT / "sandbox"
LINKS = CHECKOUT / "plugins" / "module_utils" / "sandbox"


def test_each_file_of_the_sandbox_has_its_link() -> None:
    files = {path.relative_to(SANDBOX) for path in SANDBOX.rglob("*.py") if path.name != "__init__.py"}
    travels = {path for path in files if path.parts[0] != "cli"}
    assert len(travels) > 40
    assert {path.relative_to(LINKS): os.readlink(path) for path in LINKS.rglob("*.py")} == {
        path: "../" * (len(path.parts) + 2) + f"sandbox/{path}" for path in travels
    }
