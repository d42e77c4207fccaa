# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The records of an image in diff mode: the lines of both sides, bounded as all that a task returns."""

from __future__ import annotations

import itertools
import typing as t

from .bounded import LEAST_BYTES, size_of

DIFF_BYTES = 96 << 10  # for one side of all images together, as JSON
DIFF_LINES = 100  # records that one side shows

Record = t.TypeVar("Record")


def both_sides(
    before: t.Sequence[Record],
    after: t.Sequence[Record],
    line: t.Callable[[Record], str],
    images: int,
) -> tuple[list[str], list[str]]:
    """All records of both sides, or where these are many, those between the first and the last that differ.

    line: what is said of a record. images: how many have a diff in the result.
    """
    first, last = 0, 0
    shorter = min(len(before), len(after))
    if max(len(before), len(after)) > DIFF_LINES:
        first = _same(zip(before, after))
        last = _same(itertools.islice(zip(reversed(before), reversed(after)), shorter - first))
    room = max(DIFF_BYTES // images, LEAST_BYTES)
    return _side(before, line, first, last, room), _side(after, line, first, last, room)


def _same(pairs: t.Iterable[tuple[t.Any, t.Any]]) -> int:
    """How many pairs are equal, up to the first that is not."""
    return sum(1 for _pair in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _side(records: t.Sequence[Record], line: t.Callable[[Record], str], first: int, last: int, room: int) -> list[str]:
    lines = [f"({first} in front, the same on both sides)"] if first else []
    end = len(records) - last
    for index in range(first, end):
        text = line(records[index])
        room -= size_of(text)
        if index - first >= DIFF_LINES or room < 0:
            lines.append(f"({end - index} more)")
            break
        lines.append(text)
    return [*lines, f"({last} behind, the same on both sides)"] if last else lines
