# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What qcow2_bitmap has to do with one image, and what that leads to, found out by reading it."""

from __future__ import annotations

import typing as t

from ...sandbox import errors
from ...sandbox.images import bitmaps
from ...sandbox.images.bitmaps import Action, Bitmap
from ..group import OpenImage
from .options import BitmapWanted, Merge
from .sources import Source


class BitmapPlan:
    """What is to be done with one image; made before anything is written.

    sources: the other images that are merged from, by their paths. actions: what is left to do, may be nothing after
    all. changed: whether it leads to something else than there is, as a guest says that has tried it without writing.
    steps: operations that it takes. before, after: the bitmaps that there are, and that there are in the end, or would
    be.
    """

    steps = 1

    def __init__(
        self, subject: OpenImage, wanted: BitmapWanted, sources: t.Mapping[str, Source], listed: bitmaps.BitmapList
    ) -> None:
        self.subject = subject
        self.wanted = wanted
        self.virtual_size = listed.virtual_size
        self.before = self.after = listed.bitmaps
        self.damage = listed.damage
        self.leaked_clusters: int | None = None
        self.changed = False
        self.actions = self._removal() if wanted.state == "absent" else self._making(sources)

    @classmethod
    def read(cls, subject: OpenImage, wanted: BitmapWanted, sources: t.Mapping[str, Source]) -> BitmapPlan:
        """The plan for an image, which guests read. Raises AirlockError."""
        listed: bitmaps.BitmapList = subject.run(bitmaps.list_bitmaps)
        if not wanted.damaged:
            bitmaps.require_sound(subject.path, listed)
        plan = cls(subject, wanted, sources, listed)
        if plan.actions:
            foreseen: bitmaps.BitmapChange = subject.run(bitmaps.change_bitmap, wanted.name, plan.actions, True)
            plan.changed, plan.after = foreseen.changed, foreseen.bitmaps
        return plan

    @property
    def path(self) -> str:
        """As the task names the image."""
        return self.subject.path

    def carry_out(self, listeners: t.Iterator[t.Any]) -> None:
        """Changes the image, and fills in what has come of it. listeners: the one that the operation tells."""
        run, progress = self.subject.run, next(listeners)
        done: bitmaps.BitmapChange = run(bitmaps.change_bitmap, self.wanted.name, self.actions, progress=progress)
        self.changed, self.after = done.changed, done.bitmaps
        self.leaked_clusters = done.leaked_clusters

    def _named(self) -> list[Bitmap]:
        return [bitmap for bitmap in self.before if bitmap.name == self.wanted.name]

    def _removal(self) -> list[Action]:
        if self.wanted.damaged:
            return [Action.remove_damaged()]
        return [Action.remove()] if self._named() else []

    def _making(self, sources: t.Mapping[str, Source]) -> list[Action]:
        """The way from what there is to what is wanted."""
        there = [bitmap for bitmap in self._named() if not bitmap.stale]
        wanted = self.wanted
        fault = self._fault(there)
        if fault and not wanted.recreate:
            raise fault
        kept = there[0] if there and not fault else None
        actions = [Action.remove()] if fault else []
        if kept is None:
            # One that is made anew keeps its granularity, unless the task says otherwise.
            actions.append(Action.add(wanted.granularity or (there[0].granularity if there else 0)))
        elif wanted.cleared and kept.dirty_count != 0:
            actions.append(Action.clear())
        actions += [self._merge(merge, sources) for merge in self._merges(sources)]
        if wanted.enabled is not None and wanted.enabled != (kept is None or kept.recording):
            actions.append(Action.enable() if wanted.enabled else Action.disable())
        return actions

    def _merge(self, merge: Merge, sources: t.Mapping[str, Source]) -> Action:
        return Action.merge(merge.name, None if merge.path is None else sources[merge.path].opened.image)

    def _merges(self, sources: t.Mapping[str, Source]) -> t.Iterator[Merge]:
        """All but those whose bitmap is not there and need not be."""
        asked = {merge.name for merge in self.wanted.merges if merge.ignore_missing and merge.path is None}
        there = {bitmap.name for bitmap in self.before if bitmap.name in asked} if asked else frozenset()
        for merge in self.wanted.merges:
            if not merge.ignore_missing or merge.name in (there if merge.path is None else sources[merge.path].names):
                yield merge

    def _fault(self, there: t.Sequence[Bitmap]) -> errors.BitmapError | None:
        """Why the bitmap that is there cannot be the one that is wanted."""
        image, name, wanted = errors.clean(self.path), str(self.wanted), self.wanted.granularity
        advice = "Set recreate to true to have it removed and a new one made, and make a full backup then."
        if len(there) > 1:
            return errors.BitmapError(
                f"{image}: {len(there)} bitmaps have the name {name}. Remove them with state 'absent'. {advice}",
                "bitmap_ambiguous",
            )
        if there and there[0].in_use:
            return errors.BitmapError(
                f"{image}: the bitmap {name} is inconsistent: who used it last did not store it, or has it open still. "
                f"It can only be removed. {advice}",
                "bitmap_inconsistent",
            )
        if there and wanted and there[0].granularity != wanted:
            return errors.BitmapError(
                f"{image}: the bitmap {name} has a granularity of {there[0].granularity} bytes, not {wanted}. Leave "
                f"granularity out to keep it. {advice}",
                "bitmap_other_granularity",
            )
        return None
