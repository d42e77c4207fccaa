# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the header of an image says."""

from __future__ import annotations

import typing as t

from .. import errors
from ..guests._limits import BACKING_FORMAT_MAX, BACKING_NAME_MAX, DATA_FILE_NAME_MAX
from . import calls
from .calls import Snapshot
from .image import Image, Limits, Report
from .snapshots import ask


class ImageInfo(t.NamedTuple):
    """Facts of the format. Sizes in bytes; names as they stand in the image, unchecked.

    data_file: its first 1024 bytes, for the format sets no limit. bitmap_count: as the header has it; None: that part
    of the header is damaged, so that nobody knows.
    """

    version: int
    virtual_size: int
    file_size: int
    cluster_size: int
    refcount_bits: int
    encryption: str | None  # "aes", "luks"
    compression_type: str  # "zlib", "zstd"
    incompatible_features: int
    compatible_features: int
    autoclear_features: int
    l1_entries: int
    bitmap_count: int | None
    backing_name: bytes
    backing_format: bytes
    data_file: bytes
    snapshots: t.Sequence[Snapshot]
    report: Report

    @property
    def dirty(self) -> bool:
        """Whoever wrote to it last did not close it: refcounts may be wrong."""
        return bool(self.incompatible_features & 1)

    @property
    def corrupt(self) -> bool:
        """qemu has found contradictions in it."""
        return bool(self.incompatible_features & 2)

    @property
    def has_data_file(self) -> bool:
        """The data is in another file. data_file is only a remark without this."""
        return bool(self.incompatible_features & 4)

    @property
    def extended_l2(self) -> bool:
        """Clusters are divided into subclusters."""
        return bool(self.incompatible_features & 16)

    @property
    def lazy_refcounts(self) -> bool:
        """Refcounts may be updated late."""
        return bool(self.compatible_features & 1)


def image_info(image: Image, limits: Limits | None = None) -> ImageInfo:
    """The facts of the image's header, and its snapshots."""
    result, payload, report = ask(image, "image_info", limits=limits)
    if result.version not in (2, 3) or not 9 <= result.cluster_bits <= 21 or result.refcount_order > 6:
        raise errors.GuestProtocolError("The guest's answer has an impossible version, cluster size or refcount width.")
    return ImageInfo(
        version=result.version,
        virtual_size=result.virtual_size,
        file_size=result.file_size,
        cluster_size=1 << result.cluster_bits,
        refcount_bits=1 << result.refcount_order,
        encryption=_one_of(("", "aes", "luks"), result.encryption, "encryption") or None,
        compression_type=_one_of(("zlib", "zstd"), result.compression_type, "compression"),
        incompatible_features=result.incompatible_features,
        compatible_features=result.compatible_features,
        autoclear_features=result.autoclear_features,
        l1_entries=result.l1_entries,
        bitmap_count=None if result.bitmaps_fault else result.bitmap_count,
        backing_name=calls.text(
            result.backing_name, result.backing_name_length, BACKING_NAME_MAX, "a backing file's name"
        ),
        backing_format=calls.text(
            result.backing_format, result.backing_format_length, BACKING_FORMAT_MAX, "a backing file's format"
        ),
        data_file=calls.text(result.data_file, result.data_file_length, DATA_FILE_NAME_MAX, "a data file's name"),
        snapshots=calls.snapshots(payload, result.snapshot_count),
        report=report,
    )


def _one_of(names: tuple[str, ...], number: int, what: str) -> str:
    if number >= len(names):
        raise errors.GuestProtocolError(f"The guest's answer has the unknown {what} {number}.")
    return names[number]
