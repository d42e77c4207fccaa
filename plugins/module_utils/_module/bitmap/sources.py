# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The other images that a task of qcow2_bitmap merges from."""

from __future__ import annotations

import contextlib
import typing as t

from ...sandbox import errors
from ...sandbox.host.places import Place, find_place
from ...sandbox.images import bitmaps
from ...sandbox.images.image import Image
from ..group import OpenImage
from .options import Merge


class Source(t.NamedTuple):
    """An image that is merged from. names: of all its bitmaps, if a merge need not be there; else empty."""

    opened: OpenImage
    names: frozenset[bytes]


class Sources:
    """The images that the merges of a task name, looked up by check(), then opened and locked for reading."""

    def __init__(self, merges: t.Sequence[Merge], follow_links: bool) -> None:
        self._merges = merges
        self._follow_links = follow_links
        self._places: dict[str, Place] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def check(self, own: t.Sequence[Place]) -> None:
        """own: the images of the task, none of which is open yet. Raises ArgumentError when a merge names one of them
        as if it was another one; ImageOpenError."""
        keys = {place.key for place in own if place.there}
        for path in dict.fromkeys(merge.path for merge in self._merges if merge.path is not None):
            place = self._places[path] = self._stack.enter_context(find_place(path, self._follow_links))
            if place.key in keys:
                name = errors.quote(path)
                advice = f"To merge within {name}, name the bitmap without path."
                if len(own) > 1:
                    advice += " To merge from one image of the group into the others, use a task of its own."
                raise errors.ArgumentError(
                    f"{name} stands in merge, and in path as well. {advice}", "bitmap_source_same"
                )

    @contextlib.contextmanager
    def opened(self, timeout: int | None, force_share: bool) -> t.Iterator[dict[str, Source]]:
        """By their paths. Raises as Image.open()."""
        asked = {merge.path for merge in self._merges if merge.ignore_missing}
        with contextlib.ExitStack() as stack:
            found = {
                path: OpenImage(stack.enter_context(Image.open(place, force_share=force_share)), timeout)
                for path, place in self._places.items()
            }
            yield {
                path: Source(source, _names(source) if path in asked else frozenset()) for path, source in found.items()
            }


def _names(source: OpenImage) -> frozenset[bytes]:
    listed: bitmaps.BitmapList = source.run(bitmaps.list_bitmaps, False)
    return frozenset(bitmap.name for bitmap in listed.bitmaps)
