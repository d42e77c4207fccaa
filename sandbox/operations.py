# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The typed face of the sandbox: what can be asked about an image, and what can be done to it.

    with Image.open("disk.qcow2", writable=True) as image:
        create_snapshot(image, b"before-upgrade", (1_700_000_000, 0))

Each function boots one guest, which reads the image; here nothing of its content is looked at. All raise subclasses of
errors.AirlockError: refusals of the guest, a guest that misbehaves, a host that lacks something.

All of it in one place, for programs. The command line and the Ansible modules take what they need from the files below.
"""

from __future__ import annotations

from .facts.listing import format_listing
from .images.bitmaps import Action, Bitmap, BitmapChange, BitmapList, Extent, change_bitmap, list_bitmaps
from .images.chain import Chain, Layer, open_chain
from .images.image import Image, Limits, Report
from .images.info import ImageInfo, image_info
from .images.snapshot_changes import Applied, Created, Deleted, apply_snapshot, create_snapshot, delete_snapshot
from .images.snapshots import Comparison, Selector, Snapshot, SnapshotList, compare_snapshot, list_snapshots
from .images.transaction import Transaction

__all__ = [
    "Action",
    "Applied",
    "Bitmap",
    "BitmapChange",
    "BitmapList",
    "Chain",
    "Comparison",
    "Created",
    "Deleted",
    "Extent",
    "Image",
    "ImageInfo",
    "Layer",
    "Limits",
    "Report",
    "Selector",
    "Snapshot",
    "SnapshotList",
    "Transaction",
    "apply_snapshot",
    "change_bitmap",
    "compare_snapshot",
    "create_snapshot",
    "delete_snapshot",
    "format_listing",
    "image_info",
    "list_bitmaps",
    "list_snapshots",
    "open_chain",
]
