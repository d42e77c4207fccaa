# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images and snapshots as plain dictionaries: what qcow2_info returns and `airlock info --output json` prints.

Text out of an image is made printable.
"""

from __future__ import annotations

import typing as t

from .. import errors
from .snapshot_facts import iso8601, snapshot_facts

if t.TYPE_CHECKING:
    from ..images.bitmaps import Bitmap
    from ..images.info import ImageInfo
    from ..images.vmdk import VmdkInfo

__all__ = ["bit_numbers", "bitmap_facts", "image_facts", "iso8601", "snapshot_facts", "vmdk_facts"]


def image_facts(
    path: str,
    info: ImageInfo,
    bitmaps: list[dict[str, t.Any]],
    snapshots: list[dict[str, t.Any]],
    damage: str = "",
) -> dict[str, t.Any]:
    """The facts of one image. Sizes in bytes; names are None where the image has none.

    bitmaps, snapshots: those that are to stand in it, as bitmap_facts() and snapshot_facts() make them. An image can
    have more of them than a reader wants to have. damage: what is wrong with the bitmaps.
    """
    return {
        "path": errors.clean(path, 4096),
        "format": "qcow2",
        "version": info.version,
        "virtual_size": info.virtual_size,
        "file_size": info.file_size,
        "cluster_size": info.cluster_size,
        "refcount_bits": info.refcount_bits,
        "dirty": info.dirty,
        "corrupt": info.corrupt,
        "lazy_refcounts": info.lazy_refcounts,
        "extended_l2": info.extended_l2,
        "compression_type": info.compression_type,
        "encryption": info.encryption,
        "features": {
            "incompatible": bit_numbers(info.incompatible_features),
            "compatible": bit_numbers(info.compatible_features),
            "autoclear": bit_numbers(info.autoclear_features),
        },
        "backing_file": _name(info.backing_name),
        "backing_format": _name(info.backing_format),
        "data_file": _name(info.data_file),
        "bitmap_count": info.bitmap_count,
        "bitmaps": bitmaps,
        "bitmaps_damage": damage or None,
        "snapshot_count": len(info.snapshots),
        "snapshots": snapshots,
    }


def vmdk_facts(path: str, info: VmdkInfo) -> dict[str, t.Any]:
    """The facts of one vmdk image, as image_facts(). Content ids are numbers of 32 bits. There are no bitmaps and no
    snapshots in any."""
    return {
        "path": errors.clean(path, 4096),
        "format": "vmdk",
        "version": info.version,
        "virtual_size": info.virtual_size,
        "file_size": info.file_size,
        "cluster_size": info.cluster_size,
        "zeroed_grains": info.zeroed_grains,
        "content_id": info.content_id,
        "parent_content_id": info.parent_content_id,
        "backing_file": _name(info.backing_name),
        "backing_format": _name(info.backing_format),
        "bitmaps": [],
        "snapshot_count": 0,
        "bitmaps_damage": None,
        "snapshots": [],
    }


def bitmap_facts(bitmap: Bitmap) -> dict[str, t.Any]:
    """One persistent bitmap. granularity and dirty_bytes in bytes of the disk; None where nothing was counted."""
    return {
        "name": errors.clean(bitmap.name, 1024),
        "granularity": bitmap.granularity,
        "recording": bitmap.recording,
        "in_use": bitmap.in_use,
        "stale": bitmap.stale,
        "inconsistent": bitmap.inconsistent,
        "dirty_bytes": bitmap.dirty_bytes,
        "dirty_count": bitmap.dirty_count,
    }


def bit_numbers(mask: int) -> list[int]:
    """The numbers of the bits that are set, ascending."""
    return [number for number in range(mask.bit_length()) if mask >> number & 1]


def _name(name: bytes) -> str | None:
    return errors.clean(name, 1024) if name else None
