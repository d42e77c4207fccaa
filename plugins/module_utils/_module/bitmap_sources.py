# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The other images that a task of qcow2_bitmap merges from."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ..sandbox import bitmaps, errors, images
from .bitmap_wanted import Merge
from .group import OpenImage


def refuse_own_images(paths: t.Sequence[str], merges: t.Sequence[Merge]) -> None:
    """Raises ArgumentError when a merge names an image of the task as if it was another one."""
    own = {identity for identity in map(_identity, paths) if identity}
    for merge in merges:
        if merge.path is not None and _identity(merge.path) in own:
            name = errors.quote(merge.path)
            advice = f"To merge within {name}, name the bitmap without path."
            if len(paths) > 1:
                advice += " To merge from one image of the group into the others, use a task of its own."
            raise errors.ArgumentError(f"{name} stands in merge, and in path as well. {advice}", "bitmap_source_same")


class Source(t.NamedTuple):
    """An image that is merged from. names: of all its bitmaps, if a merge need not be there; else empty."""

    opened: OpenImage
    names: frozenset[bytes]


@contextlib.contextmanager
def open_sources(merges: t.Sequence[Merge], timeout: int, force_share: bool) -> t.Iterator[dict[str, Source]]:
    """Opens and locks, for reading only, each image that is merged from, by its path."""
    paths = dict.fromkeys(merge.path for merge in merges if merge.path is not None)
    asked = {merge.path for merge in merges if merge.ignore_missing}
    with contextlib.ExitStack() as stack:
        opened = {
            path: OpenImage(stack.enter_context(images.Image.open(path, force_share=force_share)), timeout)
            for path in paths
        }
        yield {
            path: Source(source, _names(source) if path in asked else frozenset()) for path, source in opened.items()
        }


def _names(source: OpenImage) -> frozenset[bytes]:
    listed: bitmaps.BitmapList = source.run(bitmaps.list_bitmaps, False)
    return frozenset(bitmap.name for bitmap in listed.bitmaps)


def _identity(path: str) -> tuple[int, int] | None:
    """Of the file; None when it cannot be told, opening it will say why."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
