# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lists of bitmap actions mean, in a few lines of Python, and images to hold the guest against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.bitmaps import merged
from tests.support.native import BitmapAction, Guest
from tests.support.patch import Patch

DEFAULT_GRANULARITY = 4096  # for clusters of up to 4 KiB
Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Bitmap:
    """granularity: bytes. dirty: the numbers of the bits that are set."""

    name: bytes
    granularity: int
    recording: bool
    dirty: frozenset[int]

    def rescaled(self, granularity: int, size: int) -> frozenset[int]:
        """The bits of another granularity that stand for some byte of the dirty ranges on a disk of `size` bytes."""
        found: set[int] = set()
        for bit in self.dirty:
            first, end = bit * self.granularity, min((bit + 1) * self.granularity, size)
            found.update(range(first // granularity, (end - 1) // granularity + 1))
        return frozenset(found)


class RefusedError(Exception):
    """A list that cannot be carried out. args: the refusal, and the index of the action."""


def after(
    before: Sequence[Bitmap],
    name: bytes,
    actions: Sequence[BitmapAction],
    size: int,
    others: Sequence[Bitmap] = (),
) -> list[Bitmap]:
    """The bitmaps after a list of actions on one of them. Raises RefusedError."""
    now = {bitmap.name: bitmap for bitmap in before}
    elsewhere = {bitmap.name: bitmap for bitmap in others}
    for index, action in enumerate(actions):
        if action.kind == "add":
            if name in now:
                raise RefusedError("BITMAP_EXISTS", index)
            now[name] = Bitmap(name, action.granularity or DEFAULT_GRANULARITY, True, frozenset())
            continue
        if name not in now:
            raise RefusedError("BITMAP_NOT_FOUND", index)
        bitmap = now[name]
        if action.kind == "remove":
            del now[name]
        elif action.kind == "merge":
            source: Mapping[bytes, Bitmap] = elsewhere if action.disk else now
            if action.source not in source:
                raise RefusedError("BITMAP_NOT_FOUND", index)
            more = source[action.source].rescaled(bitmap.granularity, size)
            now[name] = replace(bitmap, dirty=bitmap.dirty | more)
        else:
            changes = {"clear": {"dirty": frozenset()}, "enable": {"recording": True}, "disable": {"recording": False}}
            now[name] = replace(bitmap, **changes[action.kind])
    return list(now.values())


def runs_of(bits: frozenset[int]) -> Runs:
    return tuple(merged((bit, 1) for bit in sorted(bits)))


def store(guest: Guest, path: Path, bitmaps: Sequence[Bitmap]) -> bytes:
    """The image at `path` with these bitmaps: added by the guest, their bits painted by the test."""
    image = path.read_bytes()
    for bitmap in bitmaps:
        guest.load_bytes(image)
        recording = BitmapAction("enable" if bitmap.recording else "disable")
        answer = guest.change_bitmap(bitmap.name, BitmapAction("add", bitmap.granularity), recording)
        if answer.refusal:
            raise ValueError(answer.refusal)
        guest.store(path)
        with Patch(str(path)) as patch:
            patch.paint(bitmap.name, runs_of(bitmap.dirty))
        image = path.read_bytes()
    return image
