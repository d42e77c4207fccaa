# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that several modules have, documented in doc_fragments/_images.py, and what they take for a name."""

from __future__ import annotations

import typing as t

from ansible.module_utils.common.text.converters import to_bytes

from ..sandbox import errors

SANDBOX_ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "memory_limit": {"type": "str"},
}

IMAGES_ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "path": {"type": "list", "elements": "str", "required": True},
    "timeout": {"type": "int"},
    "lock_timeout": {"type": "int", "default": 0},
    **SANDBOX_ARGUMENTS,
}

LIMIT_ARGUMENT: dict[str, dict[str, t.Any]] = {
    "limit": {"type": "int", "default": 1000},
}

FORCE_SHARE_ARGUMENT: dict[str, dict[str, t.Any]] = {
    "force_share": {"type": "bool", "default": False},
}

LINKS_ARGUMENT: dict[str, dict[str, t.Any]] = {
    "follow_links": {"type": "bool", "default": False},
}

CHAIN_ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "allowed_roots": {"type": "list", "elements": "str", "default": []},
    "backing_format": {"type": "str", "choices": ["qcow2", "raw", "vmdk"]},
}

PROGRESS_ARGUMENT: dict[str, dict[str, t.Any]] = {
    "progress_file": {"type": "str"},
}

MOVES_ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "rate_limit": {"type": "str"},
    **PROGRESS_ARGUMENT,
    "timeout": {"type": "int"},
    "lock_timeout": {"type": "int", "default": 0},
    **SANDBOX_ARGUMENTS,
}


def check_timeout(seconds: int | None) -> int | None:
    """The option timeout. Raises ArgumentError."""
    if seconds is not None and seconds < 1:
        raise errors.ArgumentError(f"timeout is {seconds} seconds. It must be at least 1.", "bad_timeout")
    return seconds


def image_text(option: str, value: str | None, limit: int, plain: bool = True) -> bytes:
    """The option's value as it stands in an image; b"" when it was not given. Raises ArgumentError.

    limit: bytes. plain: whether control characters are refused.
    """
    if value is None:
        return b""
    data: bytes = to_bytes(value, errors="surrogate_or_strict")
    if not data:
        raise errors.ArgumentError(f"{option} is empty. Leave it out, or give it a value.", "empty_name")
    if len(data) > limit:
        raise errors.ArgumentError(
            f"{option} has {len(data)} bytes, the format has room for {limit}. Choose a shorter one.", "name_too_long"
        )
    if plain and any(ord(character) < 32 or 127 <= ord(character) < 160 for character in value):
        raise errors.ArgumentError(
            f"{option} contains control characters: '{errors.clean(value)}'. Choose a plain one.", "control_character"
        )
    return data
