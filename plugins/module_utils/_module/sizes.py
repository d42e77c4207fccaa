# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes and rates as tasks write them: 65536, 64k, 64KiB, 50M/s."""

from __future__ import annotations

import re

from ..sandbox import errors

_SIZE = re.compile(r"([0-9]+) *(?:([kmgt])(?:ib)?|b)?", re.ASCII | re.IGNORECASE)
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> int | None:
    """Bytes; None for what is no size, as with blanks around it. Suffixes are powers of 1024."""
    match = _SIZE.fullmatch(text)
    return int(match[1][:24]) * _FACTORS[(match[2] or "").lower()] if match else None


def parse_rate(value: str | None) -> int:
    """rate_limit in bytes a second; 0 when it was not given. Raises ArgumentError."""
    if value is None:
        return 0
    text = value.strip()
    rate = parse_size(text[:-2] if text[-2:].lower() == "/s" else text)
    if rate is None or not 0 < rate < 1 << 63:
        raise errors.ArgumentError(
            f"rate_limit is '{errors.clean(value, 80)}'. It must be a number of bytes a second above 0, such as "
            "52428800, 50M or 50MiB.",
            "bad_rate_limit",
        )
    return rate
