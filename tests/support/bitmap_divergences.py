# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where our bitmap operations end otherwise than qemu-img's on purpose; docs/divergences.md tells users why."""

from __future__ import annotations

from collections.abc import Callable

from . import qemu
from .bitmap_drivers import BitmapCall, BitmapResult
from .bitmaps import stale_names
from .qcow2 import INCOMPATIBLE_DIRTY, Qcow2


def _stale_removal(call: BitmapCall, before: str, expected: BitmapResult, got: BitmapResult) -> bool:
    """A stale bitmap is there to be removed, which frees its clusters; qemu-img finds none, and leaks them."""
    return "not found" in expected.message and call.kinds[0] == "remove" and call.name in stale_names(before)


def _dirty(call: BitmapCall, before: str, expected: BitmapResult, got: BitmapResult) -> bool:
    """qemu-img repairs an image whose refcounts may lie before it does anything; we say that it has to be repaired."""
    with Qcow2(before) as image:
        return bool(image.header["incompatible_features"] & INCOMPATIBLE_DIRTY) and got.code == 1


def _inconsistent(call: BitmapCall, before: str, expected: BitmapResult, got: BitmapResult) -> bool:
    """qemu-img check finds the image corrupt, and so do we."""
    return expected.code == 0 and got.code == 1 and qemu.check(before).code == 2


Explains = Callable[[BitmapCall, str, BitmapResult, BitmapResult], bool]

DIVERGENCES: dict[str, Explains] = {
    "a stale bitmap is removed": _stale_removal,
    "a dirty image is refused": _dirty,
    "an inconsistent image is refused": _inconsistent,
}
