# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lies where in an image, for golden vectors."""

from __future__ import annotations

from .qcow2 import COPIED, Qcow2

KILO64 = 64 << 10


def refcounts(image: Qcow2) -> dict[int, int]:
    """Cluster index -> refcount, those of 0 left out."""
    last = -(-image.length // image.cluster_size)
    return {cluster: image.refcount(cluster) for cluster in range(last + 1) if image.refcount(cluster)}


def entries(image: Qcow2) -> dict[int, int]:
    """Offset on the disk -> L2 entry, those of 0 left out."""
    found = {}
    per_table = image.cluster_size // 8
    for index, table in enumerate(image.active_l1()):
        if table:
            for slot, entry, _unused in image.used_l2(table & ~COPIED):
                if entry:
                    found[(index * per_table + slot) * image.cluster_size] = entry
    return found


def data(cluster: int) -> int:
    """The entry of a cluster of 64 KiB that nothing else refers to."""
    return COPIED | cluster * KILO64
