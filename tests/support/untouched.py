# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a change of bitmaps must leave as it is: every byte that belongs to something else."""

from __future__ import annotations

from collections.abc import Iterator

from . import compare
from .qcow2 import AUTOCLEAR_BITMAPS, BITMAPS_EXTENSION, Qcow2

FEATURE_NAMES = 0x6803F857
# What may be written anew: where it is, not what it says of others.
STRUCTURES = frozenset({"header", "refcount table", "refcount block", "bitmap directory"})
MAY_MOVE = frozenset({"refcount_table_offset", "refcount_table_clusters", "autoclear_features", "header_length"})


def _changed_clusters(old: Qcow2, new: Qcow2) -> Iterator[int]:
    """Clusters that read otherwise; what lies behind a file's end reads as zeros."""
    size = old.cluster_size
    candidates = {
        cluster
        for offset, length in compare.differences(old.path, new.path, 1 << 20)
        for cluster in range(offset // size, (offset + length - 1) // size + 1)
    }
    for cluster in sorted(candidates):
        if old.read(cluster * size, size) != new.read(cluster * size, size):
            yield cluster


def header_without_bitmaps(image: Qcow2) -> tuple[object, ...]:
    """The header's fields, extensions and backing name, without what is about bitmaps or may be left out."""
    fields = {name: value for name, value in image.header.items() if name not in MAY_MOVE}
    name = image.read(fields.pop("backing_file_offset"), fields["backing_file_size"])
    kept = sorted(
        (kind, data) for _unused, kind, data in image.extensions() if kind not in (BITMAPS_EXTENSION, FEATURE_NAMES)
    )
    return tuple(fields.items()), name, tuple(kept)


def what_else_changed(before: str, after: str, name: bytes) -> str:
    """ "" when an operation on the bitmap `name` changed nothing but that bitmap, the directory, the refcounts and the
    header's extension; else what."""
    with Qcow2(before) as old, Qcow2(after) as new:
        if header_without_bitmaps(old) != header_without_bitmaps(new):
            return f"the header was\n  {header_without_bitmaps(old)}\nand is\n  {header_without_bitmaps(new)}"
        allowed = old.header["autoclear_features"] & AUTOCLEAR_BITMAPS | AUTOCLEAR_BITMAPS
        if new.header["autoclear_features"] & ~allowed & ~old.header["autoclear_features"]:
            return f"autoclear features {new.header['autoclear_features']:#x}"
        kinds: dict[int, set[str]] = {}
        named = f"bitmap {name[:20]!r} "
        for clusters, kind, who in old.references():
            own = "own" if kind.startswith("bitmap") and (who + " ").startswith(named) else kind
            for cluster in clusters:
                kinds.setdefault(cluster, set()).add(own)
        for cluster in _changed_clusters(old, new):
            foreign = kinds.get(cluster, set()) - STRUCTURES - {"own"}
            if foreign:
                return f"cluster {cluster:#x} changed, which is {sorted(foreign)}"
        last = -(-old.length // old.cluster_size)
        kept = [c for c in kinds if c < last and kinds[c] - STRUCTURES - {"own"}]
        dropped = [cluster for cluster in kept if new.refcount(cluster) != old.refcount(cluster)]
        if dropped:
            return f"the refcounts of clusters {dropped[:10]} changed"
        places = {(e.name, e.table) for e in old.bitmap_directory()} if allowed else set()
        if old.header["autoclear_features"] & AUTOCLEAR_BITMAPS:
            lost = {place for place in places if place[0] != name} - {(e.name, e.table) for e in new.bitmap_directory()}
            if lost:
                return f"bitmaps that were not meant moved: {lost}"
        return ""
