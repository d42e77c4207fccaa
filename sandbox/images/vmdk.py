# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a vmdk image says: monolithicSparse alone, whose data is in the file itself."""

from __future__ import annotations

import typing as t

from .. import errors
from ..guests._limits import BACKING_NAME_MAX, VMDK_DESCRIPTOR_SECTORS_MAX, VMDK_GRAIN_BITS_MAX
from . import calls
from .image import run_guest

if t.TYPE_CHECKING:
    from .image import Image, Limits, Report


def _chain_guest() -> tuple[bytes, bytes]:
    from ..guests import _guest_chain

    return _guest_chain.load()


class VmdkInfo(t.NamedTuple):
    """Facts of the format. Sizes in bytes; the backing file's name as it stands in the image, unchecked.

    content_id: another one whenever the disk has been written to; parent_content_id: that which the backing file had.
    descriptor_sectors: of its text, which begins with the second sector of the file.
    """

    version: int
    virtual_size: int
    file_size: int
    cluster_size: int
    zeroed_grains: bool
    content_id: int
    parent_content_id: int
    descriptor_sectors: int
    backing_name: bytes
    report: Report

    @property
    def backing_format(self) -> bytes:
        """As QEMU has it: never another one."""
        return b"vmdk" if self.backing_name else b""

    # What other formats can have, and this one cannot.

    @property
    def encryption(self) -> None:
        return None

    @property
    def has_data_file(self) -> bool:
        return False

    @property
    def data_file(self) -> bytes:
        return b""

    @property
    def snapshots(self) -> tuple[()]:
        return ()

    @property
    def bitmap_count(self) -> int:
        return 0


def vmdk_info(image: Image, limits: Limits | None = None) -> VmdkInfo:
    """The facts of the image's header and descriptor."""
    result, payload, report = run_guest([image], _chain_guest, "vmdk_info", {}, limits, _refuse(image))
    grain = result.grain_size
    if payload or not 1 <= result.version <= 3 or not 512 <= grain <= 1 << VMDK_GRAIN_BITS_MAX or grain & (grain - 1):
        raise errors.GuestProtocolError("The guest's answer has an impossible version or grain size.")
    if not 1 <= result.descriptor_sectors <= VMDK_DESCRIPTOR_SECTORS_MAX:
        raise errors.GuestProtocolError("The guest's answer has an impossible length of a descriptor.")
    if result.virtual_size % 512 or not 0 < result.virtual_size < 1 << 63:
        raise errors.GuestProtocolError("The guest's answer has an impossible size of a disk.")
    return VmdkInfo(
        version=result.version,
        virtual_size=result.virtual_size,
        file_size=image.disk.size,
        cluster_size=grain,
        zeroed_grains=bool(result.zeroed_grains),
        content_id=result.content_id,
        parent_content_id=result.parent_content_id,
        descriptor_sectors=result.descriptor_sectors,
        backing_name=calls.text(
            result.backing_name, result.backing_name_length, BACKING_NAME_MAX, "a backing file's name"
        ),
        report=report,
    )


def _refuse(image: Image) -> t.Callable[[t.Any], errors.AirlockError]:
    def refuse(header: t.Any) -> errors.AirlockError:
        from ..words import chain_refusals  # words, and most runs need none

        return chain_refusals.from_layer_refusal(header, image.path)

    return refuse
