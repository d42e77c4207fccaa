# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of qcow2_info: reads, never writes."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..sandbox import errors, operations
from . import report
from .group import Meter, OpenImage, open_images

# Numbers of feature bits: the qcow2 specification, "Header".
DIRTY, CORRUPT, EXTENDED_L2 = 0, 1, 4  # incompatible
LAZY_REFCOUNTS = 0  # compatible


def info_flow(module: AnsibleModule) -> dict[str, t.Any]:
    """Reads the images; returns what RETURN of qcow2_info says. Raises GroupError."""
    params = module.params
    meter = Meter()
    with open_images(
        params["path"], params["timeout"], meter, writable=False, force_share=params["force_share"]
    ) as subjects:
        images = [_image_record(subject) for subject in subjects]
    result: dict[str, t.Any] = {"changed": False, "images": images, "sandbox": meter.summary()}
    if len(images) == 1:
        result["snapshots"] = images[0]["snapshots"]
        result["listing"] = images[0]["listing"]
    return result


def _image_record(subject: OpenImage) -> dict[str, t.Any]:
    """One element of RETURN's `images`."""
    info: operations.ImageInfo = subject.run(operations.image_info)
    incompatible, compatible = _bits(info.incompatible_features), _bits(info.compatible_features)
    return {
        "path": subject.path,
        "version": info.version,
        "virtual_size": info.virtual_size,
        "file_size": info.file_size,
        "cluster_size": info.cluster_size,
        "refcount_bits": info.refcount_bits,
        "dirty": DIRTY in incompatible,
        "corrupt": CORRUPT in incompatible,
        "lazy_refcounts": LAZY_REFCOUNTS in compatible,
        "extended_l2": EXTENDED_L2 in incompatible,
        "compression_type": info.compression,
        "encryption": None if info.encryption == "none" else info.encryption,
        "features": {
            "incompatible": incompatible,
            "compatible": compatible,
            "autoclear": _bits(info.autoclear_features),
        },
        "backing_file": _name(info.backing_name),
        "backing_format": _name(info.backing_format),
        "data_file": _name(info.data_file),
        "bitmap_count": info.bitmap_count,
        "snapshots": [report.snapshot_record(snapshot) for snapshot in info.snapshots],
        "listing": report.listing(info.snapshots),
    }


def _bits(mask: int) -> list[int]:
    """The numbers of the bits that are set."""
    return [number for number in range(64) if mask >> number & 1]


def _name(text: bytes) -> str | None:
    """A name out of the image, printable."""
    return errors.clean(text, 1023) if text else None
