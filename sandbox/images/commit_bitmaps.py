# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of the bitmaps of all layers that a commit goes through.

A layer's bitmap tells what was written to that layer, so that one of the disk is the union over all of them. It is that
only if each layer from the one where it begins up to the top has one of the name that recorded, with the same
granularity: libvirt's rules (incremental-backup.rst; qemuBlockBitmapChainIsValid()). Recording bitmaps of the base note
what the commit writes, whatever is decided here.
"""

from __future__ import annotations

import time
import typing as t

from .. import errors
from ..vmm.answers import TOGETHER_SECONDS
from . import bitmaps
from .bitmaps import Action, Bitmap
from .image import Limits, Report

if t.TYPE_CHECKING:
    from .chain import Chain, Layer

POLICIES = ("refuse", "drop", "merge")


class _Found(t.NamedTuple):
    """One bitmap of one layer."""

    layer: Layer
    bitmap: Bitmap


class CommitBitmaps:
    """What is to be done for the bitmaps of the layers above the base, decided before anything is written.

    names: of those bitmaps, each once, from the top down.
    """

    def __init__(
        self,
        chain: Chain,
        base: int,
        policy: str,
        top_goes: bool,
        limits: t.Callable[[], Limits],
        reports: list[Report],
    ) -> None:
        """Has guests read the bitmaps. policy: one of POLICIES. top_goes: the top's file will be removed. limits: of
        the next guest. reports: get one of each guest. Raises AirlockError; BitmapError for what the policy, the base
        or the bitmaps themselves do not allow."""
        self._chain = chain
        self._base = chain.layers[base]
        self._policy = policy
        self._top_goes = top_goes
        self._limits = limits
        self._reports = reports
        self._end = time.monotonic() + TOGETHER_SECONDS  # whoever made the layers decides how many guests it takes
        self._by_name: dict[bytes, list[_Found]] = {}
        self._in_base: set[bytes] = set()
        for layer in chain.layers[:base]:
            for bitmap in self._listed(layer):
                self._by_name.setdefault(bitmap.name, []).append(_Found(layer, bitmap))
        self.names = list(self._by_name)
        if self.names and policy == "refuse":
            self._refuse()
        if self.names and policy == "merge":
            self._check_merge()

    @property
    def any(self) -> bool:
        """Whether there is anything to do. A file that goes takes its bitmaps with it."""
        return bool(self.names) if self._policy == "merge" else bool(self._to_clear())

    def prepare(self) -> None:
        """Makes the layers writable that change. Comes before open_base(). Raises ImageInUseError, ImageOpenError."""
        for layer in self._to_clear():
            if not layer.image.disk.writable:
                self._chain.make_writable(layer)

    def carry_out(self) -> None:
        """Behind the commit, however long that took; done again, it goes on. Raises AirlockError."""
        self._end = time.monotonic() + TOGETHER_SECONDS
        if self._policy == "merge":
            for name in self.names:
                self._change(self._base, name, self._merge(name), dry_run=False)
            return
        for layer, names in self._to_clear().items():
            for name in names:
                self._change(layer, name, [Action.remove()], dry_run=False)

    def _to_clear(self) -> dict[Layer, list[bytes]]:
        """The names that are removed from each layer."""
        found: dict[Layer, list[bytes]] = {}
        if self._policy == "drop":
            for name, each in self._by_name.items():
                for layer in dict.fromkeys(one.layer for one in each):
                    if not (self._top_goes and layer is self._chain.top):
                        found.setdefault(layer, []).append(name)
        return found

    def _refuse(self) -> t.NoReturn:
        layer = next(iter(self._by_name.values()))[0].layer
        here = [name for name, found in self._by_name.items() if found[0].layer is layer]
        raise _error(
            layer,
            f" has persistent bitmaps ({len(here)}; the first is '{errors.clean(here[0])}'), which say nothing of the "
            "base.",
            "has_bitmaps",
            "policy_of_bitmaps",
        )

    def _check_merge(self) -> None:
        """Raises BitmapError where merging would fail, or would make a bitmap that says too little."""
        base, top = self._base, self._chain.top
        if base.format != "qcow2":
            raise _error(
                base,
                f" is {base.format}: it has no room for the bitmaps of {errors.clean(top.path, errors.PATH_LIMIT)}.",
                "base_without_bitmaps",
                "drop_bitmaps",
            )
        for name, found in self._by_name.items():
            self._check_chain(name, found)
        self._in_base = {bitmap.name for bitmap in self._listed(base) if not bitmap.stale}
        resized = base.virtual_size < top.virtual_size
        size = max(base.virtual_size, top.virtual_size)
        for name, found in self._by_name.items():
            for layer, _bitmap in found:
                if layer.virtual_size != size:
                    raise _error(
                        layer,
                        f" has a disk of {layer.virtual_size} bytes, and so has its bitmap '{errors.clean(name)}'; "
                        f"that of the base will have {size}: they cannot be merged.",
                        "bitmap_sizes",
                        "drop_bitmaps",
                    )
            actions = self._merge(name)
            if resized:  # until the base has grown nothing fits into its bitmaps
                actions = [action for action in actions if action.verb != "merge"]
            if actions:
                self._change(base, name, actions, dry_run=True)

    def _check_chain(self, name: bytes, found: t.Sequence[_Found]) -> None:
        """found: from the top down. Raises BitmapError."""
        shown = errors.clean(name)
        lowest = found[-1]
        for layer, bitmap in found:
            if bitmap.inconsistent:
                raise _error(
                    layer,
                    f": the bitmap '{shown}' is inconsistent: what it says is not to be relied upon, so it is not "
                    "merged.",
                    "bitmap_inconsistent",
                    "only_removed",
                )
        for layer in self._chain.layers[: lowest.layer.depth + 1]:
            here = [bitmap for one, bitmap in found if one is layer]
            if len(here) > 1:
                raise _error(
                    layer, f": {len(here)} bitmaps have the name '{shown}'.", "bitmap_ambiguous", "only_removed"
                )
            fault = ""
            if not here:
                fault = "is not in this layer"
            elif here[0].granularity != lowest.bitmap.granularity:
                fault = f"has a granularity of {here[0].granularity} here, and of {lowest.bitmap.granularity} there"
            elif not here[0].recording and lowest.layer is not self._chain.top:
                fault = "does not record here"
            if fault:
                raise _error(
                    layer,
                    f": the bitmap '{shown}' of {errors.clean(lowest.layer.path, errors.PATH_LIMIT)} {fault}, so that "
                    "together they do not tell all that was written.",
                    "bitmap_chain_broken",
                    "drop_bitmaps",
                )

    def _merge(self, name: bytes) -> list[Action]:
        """What makes the base's bitmap of that name the union over all layers."""
        found = self._by_name[name]
        actions = [Action.merge(name, layer.image) for layer, _bitmap in found]
        if name in self._in_base:
            return actions
        bitmap = found[0].bitmap
        return [Action.add(bitmap.granularity), *actions, *([] if bitmap.recording else [Action.disable()])]

    def _listed(self, layer: Layer) -> t.Sequence[Bitmap]:
        """The bitmaps of a layer; other formats than qcow2 have none."""
        if layer.format != "qcow2":
            return ()
        listed = bitmaps.list_bitmaps(layer.image, counts=False, limits=self._limits())
        bitmaps.require_sound(layer.path, listed)
        self._reports.append(listed.report)
        return listed.bitmaps

    def _change(self, layer: Layer, name: bytes, actions: t.Sequence[Action], dry_run: bool) -> None:
        limits = self._limits()
        if limits.seconds is None and time.monotonic() >= self._end:
            from ..words import advice

            raise errors.TimeLimitError(
                f"The bitmaps took more than {TOGETHER_SECONDS:.0f} seconds, and the commit was stopped. "
                f"{advice.say('more_time')}"
            )
        done = bitmaps.change_bitmap(layer.image, name, actions, dry_run, counts=False, limits=limits)
        self._reports.append(done.report)


def _error(layer: Layer, message: str, code: str, way: str) -> errors.BitmapError:
    from ..words import advice  # words, and most commits need none

    path = errors.clean(layer.path, errors.PATH_LIMIT)
    return errors.BitmapError(f"{path}{message} {advice.say(way)}", code)
