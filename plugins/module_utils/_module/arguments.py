# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that every module has. Documented in doc_fragments/_images.py."""

from __future__ import annotations

import typing as t

IMAGES_ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "path": {"type": "list", "elements": "path", "required": True},
    "timeout": {"type": "int", "default": 300},
}

FORCE_SHARE_ARGUMENT: dict[str, dict[str, t.Any]] = {
    "force_share": {"type": "bool", "default": False},
}
