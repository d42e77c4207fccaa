# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists in a guest's answer, which are made into Python values one by one, when they are looked at.

A small image can hold 65,536 snapshots, or 50,000 bitmaps with names of a kilobyte. As objects they take several times
the room that they take in the answer, and most of them nobody looks at twice.
"""

from __future__ import annotations

import typing as t

Item = t.TypeVar("Item")


class Records(t.Sequence[Item]):
    """The records of an answer, read only. It equals every list and tuple of the same values."""

    def __init__(self, places: t.Sequence[int], decode: t.Callable[[int], Item]) -> None:
        """places: where each record begins. decode: makes the value of the record that begins there."""
        self._places = places
        self._decode = decode

    def __len__(self) -> int:
        return len(self._places)

    @t.overload
    def __getitem__(self, index: int) -> Item: ...

    @t.overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, index: int | slice) -> Item | tuple[Item, ...]:
        if isinstance(index, slice):
            return tuple(map(self._decode, self._places[index]))
        return self._decode(self._places[index])

    def __iter__(self) -> t.Iterator[Item]:
        return map(self._decode, self._places)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Records, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"<{len(self)} records>"
