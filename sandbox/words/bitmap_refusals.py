# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refusals of guests that are for bitmaps, in words: refusals.py says how they are made."""

from __future__ import annotations

import typing as t

from ..errors import AirlockError, clean
from ..guests._limits import BITMAP_NAME_MAX, BITMAPS_MAX
from . import refusals, refused
from .wording import Wording, Words


def _bitmap(message: str, kind: str = "BitmapError") -> Wording:
    return Wording(kind, message)


WORDINGS: dict[str, Wording] = {
    **refusals.WORDINGS,
    "bitmap_name_empty": _bitmap("A bitmap's name cannot be empty. Give it one."),
    "bitmap_granularity": _bitmap(
        "A granularity of {a} bytes is not possible. Take a power of two from 512 to 2147483648.",
    ),
    "bitmap_exists": _bitmap(
        "There is a bitmap '{text}' already. Take another name, or remove that one first.",
    ),
    "bitmap_version_2": _bitmap(
        "A version 2 image has no place for bitmaps. {upgrade}",
    ),
    "bitmap_too_large": _bitmap(
        "With a granularity of {a} bytes the bitmap would take {b} bytes, more than there may be. Take a larger one.",
    ),
    "bitmap_name_long": _bitmap(
        f"A bitmap's name has at most {BITMAP_NAME_MAX} bytes. Shorten it.",
    ),
    "too_many_bitmaps": _bitmap(
        f"The image has {BITMAPS_MAX} bitmaps already. {{remove_bitmaps}}",
    ),
    "bitmap_directory_full": _bitmap(
        "The bitmap directory would have {a} bytes, more than there may be. {remove_bitmaps}",
    ),
    "bitmap_not_found": _bitmap(
        "There is no bitmap '{text}' in the image. {list_bitmaps}",
        "BitmapNotFoundError",
    ),
    "bitmap_inconsistent": _bitmap(
        "Bitmap '{text}' is inconsistent: whoever used it last did not store it, or a program that knows no bitmaps "
        "has written to the image. {only_removed}",
    ),
    "bitmap_sizes": _bitmap(
        "Bitmap '{text}' is of a disk of {b} bytes, this disk has {a}: they cannot be merged. Name an image of the "
        "same size.",
    ),
    "bitmap_ambiguous": _bitmap(
        "{a} bitmaps have the name '{text}', and are one to all that names it. {only_removed}",
    ),
    "bitmap_header_full": _bitmap(
        "The header's cluster has no room for the bitmaps extension. Name its backing file by a shorter path, "
        "if it has one. {convert}",
    ),
    "bitmap_empty_disk": _bitmap("A disk of no bytes has nothing that a bitmap could note. {resize}"),
    "bitmaps_overlap": _bitmap(
        "The bitmaps claim {a} clusters, and the file has {b}: some are claimed twice. {remove_damaged}",
    ),
}
_WORDS = Words(WORDINGS)


def from_bitmap_refusal(header: refused.ResultHeader, paths: t.Sequence[str], names: t.Sequence[str]) -> AirlockError:
    """The exception for a list of actions on a bitmap, or a list of bitmaps, that was refused.

    paths: of the disks of the call. names: that the operator gave; the first is that of the bitmap, the others those of
    merges' sources.
    """
    return refused.of_disk(header, paths) or refused.error(header, paths[header.disk], names[0], _WORDS, names)


def bitmaps_damage(fault: int, value: int, name: bytes) -> str:
    """What is wrong with the bitmaps of an image that can be read all the same. fault: enum bitmaps_fault."""
    return refused.bitmaps_fault(fault).format(a=int(fault), b=int(value), b_hex=hex(int(value)), text=clean(name))
