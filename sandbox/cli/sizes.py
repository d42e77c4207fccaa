# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes as qemu-img reads them: 65536, 64k, 1.5M, 0x200.

Source: qemu 10.0.2, util/cutils.c (do_strtosz) and qemu-img.c (cvtnum_full).
"""

from __future__ import annotations

import re

SIZE_MAX = (1 << 63) - 1
_SUFFIXES = b"BKMGTPE"

# C's white space; a sign; hexadecimal without suffix, or decimal with a fraction that may lack either side.
_SIZE = re.compile(
    rb"[ \t\n\v\f\r]*(?P<sign>[+-]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)"
    rb"|(?P<whole>[0-9]*)(?P<fraction>\.[0-9]*)?(?P<suffix>[BKMGTPEbkmgtpe]?))"
)


class SizeRangeError(ValueError):
    """A number, but below 0 or above SIZE_MAX."""


def parse_size(text: bytes) -> int:
    """Bytes. Raises SizeRangeError, and ValueError for what is no size."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError("not a size")
    negative = found["sign"] == b"-"
    if found["hex"]:
        if negative:
            raise ValueError("qemu stops behind the zero")
        return _in_range(int(found["hex"], 16))
    whole, fraction, suffix = found["whole"], found["fraction"] or b"", found["suffix"]
    if not whole and len(fraction) < 2:
        raise ValueError("no digits")
    tail = suffix or (fraction if whole else b"")
    if negative or int(whole or b"0") > (1 << 64) - 1:
        # Out of range where the number ends, and an error if more follows.
        if tail:
            raise ValueError("out of range, and not the end")
        raise SizeRangeError
    return _in_range(_scaled(int(whole or b"0"), float(b"0" + fraction + b"0"), suffix))


def _scaled(whole: int, fraction: float, suffix: bytes) -> int:
    """Rounded half up, from 64 bits of fraction. Raises ValueError."""
    if fraction == 1.0:  # of nines without end
        whole, fraction = whole + 1, 0.0
    bits = int(fraction * (1 << 64))
    power = _SUFFIXES.index(suffix.upper()) if suffix else 0
    if bits and not power:
        raise ValueError("parts of a byte")
    return ((whole << 64 | bits) * (1 << 10 * power) + (1 << 63)) >> 64


def _in_range(size: int) -> int:
    if size > SIZE_MAX:
        raise SizeRangeError
    return size
