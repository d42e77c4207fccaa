# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of the bitmaps of an overlay that is committed."""

from __future__ import annotations

import typing as t

from ...sandbox import errors
from ...sandbox.images import bitmaps
from ...sandbox.images.bitmaps import Action, Bitmap
from ...sandbox.images.chain import Layer
from ...sandbox.images.image import Limits
from ..clock import Clock
from .options import CommitWanted

NAMES_MAX = 300  # that are returned, however many an image has; each takes up to 3 KiB as JSON


class CommitBitmapsPlan:
    """names: of the bitmaps that the task's policy is about, printable, the first NAMES_MAX; count: of all of them.
    any: whether there is anything to do for them.

    Made before anything is written.
    """

    def __init__(self, top: Layer, base: Layer, wanted: CommitWanted, clock: Clock, found: t.Sequence[Bitmap]) -> None:
        self._top = top
        self._base = base
        self._overlay = errors.clean(wanted.path, errors.PATH_LIMIT)
        self._clock = clock
        self._together = Clock(None)  # who made the overlay decides how many there are, and each takes a guest
        self._policy = wanted.bitmaps
        self._found = found
        self.count = len(self._found)
        self.names = [errors.clean(bitmap.name) for bitmap in self._found[:NAMES_MAX]]
        if self._found and self._policy == "refuse":
            raise errors.BitmapError(
                f"{self._overlay} has persistent bitmaps ({len(self._found)}; the first is '{self.names[0]}'), which "
                "say nothing of the base. Set bitmaps to 'merge' to have them merged into those of the base, or to "
                "'drop' to have them removed.",
                "has_bitmaps",
            )
        # A file that goes takes its bitmaps with it.
        self.any = bool(self._found) and not (self._policy == "drop" and wanted.drop)
        self._in_base: set[bytes] = set()

    @classmethod
    def read(cls, top: Layer, base: Layer, wanted: CommitWanted, resized: bool, clock: Clock) -> CommitBitmapsPlan:
        """The plan for an overlay, of which guests read the bitmaps, and those of the base where it has to take some.

        resized: the base will have grown by the time that bitmaps are merged into it. Raises AirlockError; BitmapError
        for what the policy, or the base, does not allow.
        """
        plan = cls(top, base, wanted, clock, _listed(top, clock))
        if plan._found and plan._policy == "merge":
            plan._check_merge(resized)
        return plan

    def _limits(self) -> Limits:
        return self._clock.limits()

    def _check_merge(self, resized: bool) -> None:
        """Raises BitmapError where merging would fail, as far as it can be known."""
        base = self._base
        if base.format != "qcow2":
            raise errors.BitmapError(
                f"{errors.clean(base.path, errors.PATH_LIMIT)} is {base.format}: it has no room for the bitmaps of "
                f"{self._overlay}. Set bitmaps to 'drop' to have them removed.",
                "base_without_bitmaps",
            )
        for bitmap in self._found:
            if bitmap.inconsistent:
                raise errors.BitmapError(
                    f"{self._overlay}: the bitmap '{errors.clean(bitmap.name)}' is inconsistent: what it says is not "
                    "to be relied upon, so it is not merged. Remove it first (qcow2_bitmap, state 'absent'), and make "
                    "a full backup next time.",
                    "bitmap_inconsistent",
                )
        self._in_base = {bitmap.name for bitmap in _listed(base, self._clock) if not bitmap.stale}
        if not resized:
            for bitmap in self._found:
                self._merge(bitmap, dry_run=True)

    def _merge(self, bitmap: bitmaps.Bitmap, dry_run: bool) -> None:
        actions = [Action.merge(bitmap.name, self._top.image)]
        if bitmap.name not in self._in_base:
            actions = [Action.add(bitmap.granularity), *actions, *([] if bitmap.recording else [Action.disable()])]
        self._change(self._base.image, bitmap.name, actions, dry_run)

    def _change(self, image: t.Any, name: bytes, actions: t.Sequence[Action], dry_run: bool = False) -> None:
        if self._clock.left() is None:
            self._together.check()
        done = bitmaps.change_bitmap(image, name, actions, dry_run, counts=False, limits=self._limits())
        self._clock.reports.append(done.report)

    def carry_out(self) -> None:
        """Behind the commit, however long that took. Raises TimeLimitError as well; done again, it goes on."""
        if not self.any:
            return
        self._together = Clock(None)
        if self._policy == "merge":
            for bitmap in self._found:
                self._merge(bitmap, dry_run=False)
            return
        for name in dict.fromkeys(bitmap.name for bitmap in self._found):
            self._change(self._top.image, name, [Action.remove()])


def _listed(layer: Layer, clock: Clock) -> t.Sequence[Bitmap]:
    """The bitmaps of a layer; other formats than qcow2 have none."""
    if layer.format != "qcow2":
        return ()
    listed = bitmaps.list_bitmaps(layer.image, counts=False, limits=Limits(seconds=clock.left()))
    bitmaps.require_sound(layer.path, listed)
    clock.reports.append(listed.report)
    return listed.bitmaps
