# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Memory is measured in a program of ordinary size: a forked child starts with its parent's pages."""

from __future__ import annotations

import subprocess
import sys


def printed_apart(script: str) -> int:
    """The number that a Python program of its own prints."""
    return int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
