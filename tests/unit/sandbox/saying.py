# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the command line would say."""

from __future__ import annotations

from sandbox import errors
from sandbox.cli import qemu_words


def said(error: errors.AirlockError, voice: qemu_words.Voice | None = None) -> str:
    """All lines for an exception, without the program's name. voice: of what was being done; None: of reading."""
    return "\n".join(qemu_words.reports(error, voice or qemu_words.reading()))
