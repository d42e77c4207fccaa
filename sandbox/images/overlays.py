# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""New overlays: images that hold nothing and show what they stand on."""

from __future__ import annotations

import functools
import os
import typing as t

from .. import errors
from ..host import disks, drafts, locks
from ..host.places import Place, find_place
from ..words import opening
from .image import Image, Limits, Report, run_guest
from .rebases import check_name

SECTOR = 512


def _chain_guest() -> tuple[bytes, bytes]:
    from ..guests import _guest_chain

    return _guest_chain.load()


def create_overlay(
    path: str | Place,
    virtual_size: int,
    backing_name: bytes,
    backing_format: str,
    cluster_size: int = 65536,
    limits: Limits | None = None,
    access: drafts.Access | None = None,
) -> Report:
    """A new qcow2 image, byte for byte as qemu-img create makes it.

    path: a Place stays the caller's. virtual_size: bytes; what is no multiple of SECTOR is rounded up. backing_name: as
    it is recorded; the file is not looked at. cluster_size: a power of two from 512 bytes to 2 MiB. access: who may do
    what with the file; by default only its owner, who runs this.
    The file is there whole, or not at all. Raises ArgumentError for a bad name, ImageOpenError for a path where there
    is a file already, or where none can be made, RefusalError.
    """
    check_name(backing_name, backing_format)
    with (
        path.again() if isinstance(path, Place) else find_place(path, writable=True) as place,
        drafts.Draft(place, access or drafts.Access()) as draft,
    ):
        try:
            disk = disks.Disk(place.path, os.dup(draft.descriptor), writable=True)
        except OSError as error:
            raise opening.open_error(place.path, error, writable=True) from error
        with Image(place.again(), disk, locks.Lock(())) as image:
            image.lock = locks.lock_image(image.disk.descriptor, place.path, writable=True)
            report = _fill(image, virtual_size, backing_name, backing_format, cluster_size, limits)
            draft.publish()
    return report


def _fill(
    image: Image, virtual_size: int, name: bytes, format_name: str, cluster_size: int, limits: Limits | None
) -> Report:
    recorded = os.fsencode(format_name)
    fields = {
        "virtual_size": -(-virtual_size // SECTOR) * SECTOR,
        "cluster_bits": cluster_size.bit_length() - 1,
        "backing_length": len(name),
        "format_length": len(recorded),
        "backing_name": name,
        "backing_format": recorded,
    }
    refuse = functools.partial(_refusal, image.path, os.fsdecode(name))
    result, payload, report = run_guest([image], _chain_guest, "overlay_create", fields, limits, refuse, writable=(0,))
    if payload or result.file_size != image.disk.size:
        raise errors.GuestProtocolError("The guest's answer about a new overlay contradicts itself.")
    return report


def _refusal(path: str, name: str, header: t.Any) -> errors.AirlockError:
    from ..words import chain_refusals  # words, and most runs need none

    return chain_refusals.from_rebase_refusal(header, [path], name)
