# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be removed when a task drops a layer."""

from __future__ import annotations

from ..sandbox import errors
from ..sandbox.images.chain import Layer


def check_no_device(layer: Layer) -> None:
    """Raises ArgumentError for what is no file."""
    if layer.image.disk.is_block:
        raise errors.ArgumentError(
            f"{errors.quote(layer.path)} is a block device, which cannot be removed. Leave drop out.",
            "drop_block_device",
        )
