# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of the bitmaps of an overlay that is committed."""

from __future__ import annotations

import typing as t

from ..sandbox import bitmaps, errors
from ..sandbox.bitmaps import Action, Bitmap
from ..sandbox.chain import Layer
from ..sandbox.images import Limits

if t.TYPE_CHECKING:
    from .commit import Clock, Task


class Plan:
    """names: of the bitmaps that the task's policy is about, printable. any: whether there is anything to do for them.

    Made before anything is written; raises BitmapError for what the policy, or the base, does not allow.
    """

    def __init__(self, task: Task, clock: Clock) -> None:
        self._task = task
        self._clock = clock
        self._policy = task.wanted.bitmaps
        self._found = self._listed(task.chain.top)
        self.names = [errors.clean(bitmap.name) for bitmap in self._found]
        if self._found and self._policy == "refuse":
            raise errors.BitmapError(
                f"{self._overlay} has persistent bitmaps ({len(self._found)}; the first is '{self.names[0]}'), which "
                "say nothing of the base. Set bitmaps to 'merge' to have them merged into those of the base, or to "
                "'drop' to have them removed.",
                code="has_bitmaps",
            )
        # A file that goes takes its bitmaps with it.
        self.any = bool(self._found) and not (self._policy == "drop" and task.wanted.drop)
        self._in_base: set[bytes] = set()
        if self._found and self._policy == "merge":
            self._check_merge()

    def _listed(self, layer: Layer) -> tuple[Bitmap, ...]:
        """The bitmaps of a layer; other formats than qcow2 have none."""
        if layer.format != "qcow2":
            return ()
        listed = bitmaps.list_bitmaps(layer.image, counts=False, limits=self._limits())
        self._clock.reports.append(listed.report)
        return listed.bitmaps

    @property
    def _overlay(self) -> str:
        return errors.clean(self._task.wanted.path, errors.PATH_LIMIT)

    def _limits(self) -> Limits:
        return Limits(seconds=self._clock.left())

    def _check_merge(self) -> None:
        """Raises BitmapError where merging would fail, as far as it can be known."""
        task = self._task
        base = task.base_layer
        if base.format != "qcow2":
            raise errors.BitmapError(
                f"{errors.clean(base.path, errors.PATH_LIMIT)} is {base.format}: it has no room for the bitmaps of "
                f"{self._overlay}. Set bitmaps to 'drop' to have them removed.",
                code="base_without_bitmaps",
            )
        for bitmap in self._found:
            if bitmap.inconsistent:
                raise errors.BitmapError(
                    f"{self._overlay}: the bitmap '{errors.clean(bitmap.name)}' is inconsistent: what it says is not "
                    "to be relied upon, so it is not merged. Remove it first (qcow2_bitmap, state 'absent'), and make "
                    "a full backup next time.",
                    code="bitmap_inconsistent",
                )
        self._in_base = {bitmap.name for bitmap in self._listed(base) if not bitmap.stale}
        if not task.planned.resized:
            for bitmap in self._found:
                self._merge(bitmap, dry_run=True)

    def _merge(self, bitmap: bitmaps.Bitmap, dry_run: bool) -> None:
        actions = [] if bitmap.name in self._in_base else [Action.add(bitmap.granularity)]
        actions.append(Action.merge(bitmap.name, self._task.chain.top.image))
        self._change(self._task.base_layer.image, bitmap.name, actions, dry_run)

    def _change(self, image: t.Any, name: bytes, actions: t.Sequence[Action], dry_run: bool = False) -> None:
        done = bitmaps.change_bitmap(image, name, actions, dry_run, counts=False, limits=self._limits())
        self._clock.reports.append(done.report)

    def carry_out(self) -> None:
        """Behind the commit."""
        if not self.any:
            return
        if self._policy == "merge":
            for bitmap in self._found:
                self._merge(bitmap, dry_run=False)
            return
        for name in dict.fromkeys(bitmap.name for bitmap in self._found):
            self._change(self._task.chain.top.image, name, [Action.remove()])
