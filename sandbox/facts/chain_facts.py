# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A backing chain as plain dictionaries: what qcow2_info returns and `airlock info --output json` prints.

Text out of an image is made printable.
"""

from __future__ import annotations

import typing as t

from .. import errors
from ..images.chain import Layer, drawing, open_chain
from ..images.image import Image, Limits, Report

_PATH_MAX = 4096


class ChainFacts(t.NamedTuple):
    """layers: one dictionary for each, from the top to the base. drawing: "base <- a <- top". report: of all guests."""

    layers: list[dict[str, t.Any]]
    drawing: str
    report: Report


def read_chain(
    image: Image,
    backing_format: str | None = None,
    allowed_roots: t.Sequence[str | bytes] = (),
    force_share: bool = False,
    limits: Limits | None = None,
    top_format: str = "qcow2",
) -> ChainFacts:
    """The chain below an image; the other layers are open for this only. Raises as open_chain()."""
    with open_chain(
        image,
        backing_format=backing_format,
        allowed_roots=allowed_roots,
        force_share=force_share,
        limits=limits,
        top_format=top_format,
    ) as chain:
        return ChainFacts([layer_facts(layer) for layer in chain.layers], drawing(chain), _sum(chain.reports))


def layer_facts(layer: Layer) -> dict[str, t.Any]:
    """Sizes in bytes. Names of files are None where there is none."""
    return {
        "path": errors.clean(layer.path, _PATH_MAX),
        "format": layer.format,
        "depth": layer.depth,
        "virtual_size": layer.virtual_size,
        "file_size": layer.file_size,
        "backing_file": errors.clean(layer.backing_name, 1024) if layer.backing_name else None,
        "backing_format": errors.clean(layer.backing_format) if layer.backing_format else None,
        "data_file": errors.clean(layer.data_file.path, _PATH_MAX) if layer.data_file else None,
    }


def _sum(reports: t.Sequence[Report]) -> Report:
    return Report(
        reports[-1].layers,
        sum(report.exits for report in reports),
        sum(report.bytes_read for report in reports),
        sum(report.bytes_written for report in reports),
        sum(report.milliseconds for report in reports),
        max(report.peak_memory for report in reports),
    )
