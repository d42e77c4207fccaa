# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task returns of an image has bounds, whatever the image holds.

A tenant's image of 27 MiB can hold 65,536 snapshots. Returned as a whole they cost the control node gigabytes, once
more for each fork and each callback. What a task decides, it decides on all records; what it returns are the last ones,
which are the ones that were made last.
"""

from __future__ import annotations

import json
import typing as t

from ..sandbox import errors
from ..sandbox.guests._limits import BITMAPS_MAX, SNAPSHOTS_MAX

RECORD_BYTES = 768 << 10  # for the records of all images of a result together, as JSON
LEAST_BYTES = 16 << 10  # for an image at least: a long list of images is the operator's own doing
LIMIT_MAX = max(SNAPSHOTS_MAX, BITMAPS_MAX)  # records of an image

Record = t.TypeVar("Record")


class Room:
    """How much the result has for the records of one image.

    images: how many there are in the result; the records of a single one stand at its top as well. limit: records of
    one list. taken: bytes of JSON that are spoken for already.
    """

    def __init__(self, images: int, limit: int, taken: int = 0) -> None:
        self._copies = 2 if images == 1 else 1
        self._left = max(RECORD_BYTES // images, LEAST_BYTES) - taken * self._copies
        self._limit = limit

    def last_of(
        self,
        records: t.Sequence[Record],
        make: t.Callable[[Record], t.Any],
        row: t.Callable[[Record], str] | None = None,
        share: float = 1,
    ) -> list[t.Any]:
        """The last ones of the records that there is room for, in their order.

        make: what is returned of one. row: what else is said of it, in one text for all. share: the part of the room
        that these may take.
        """
        least = self._left * (1 - share)
        kept: list[t.Any] = []
        for index in range(len(records) - 1, max(len(records) - self._limit, 0) - 1, -1):
            value = make(records[index])
            size = size_of(value) + (size_of(row(records[index])) if row else 0)
            if self._left - size * self._copies < least:
                break
            self._left -= size * self._copies
            kept.append(value)
        return kept[::-1]


def check_limit(limit: int) -> int:
    """The option `limit`. Raises ArgumentError."""
    if not 0 <= limit <= LIMIT_MAX:
        raise errors.ArgumentError(f"limit is {limit}. It is from 0 to {LIMIT_MAX}.", "bad_limit")
    return limit


def size_of(value: t.Any) -> int:
    """Bytes of a value in the answer of a module, with what stands around it in a list."""
    return len(json.dumps(value)) + 2
