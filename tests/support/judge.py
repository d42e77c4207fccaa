# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a file left by a power cut is worth: its content, and what is wrong with its metadata."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

from tests.support.qcow2 import COMPRESSED, COPIED, INCOMPATIBLE_DATA_FILE, OFFSET_MASK, Qcow2

BITMAPS = {"bitmap directory", "bitmap table", "bitmap data"}
METADATA = {"header", "refcount table", "refcount block", "L1", "L2", "snapshot table", *BITMAPS}


@dataclass(frozen=True)
class Content:
    """What a user of the image sees: the disk's size and content, and the same of each snapshot by id and name."""

    size: int
    disk: str
    snapshots: tuple[tuple[bytes, bytes, int | None, str], ...]


@dataclass
class Faults:
    """Contradictions in the metadata. `leaks`: refcount above the references. `flags`: a COPIED flag that does not
    match the refcount, though nothing is shared that it claims for itself. `damage`: everything else, as text."""

    leaks: int = 0
    flags: int = 0
    damage: list[str] = field(default_factory=list)


def _mapping(image: Qcow2, l1: tuple[int, ...]) -> str:
    """A digest of guest cluster -> stored bytes. Compressed clusters count as their compressed bytes, those of a data
    file as where they are."""
    has_data_file = image.header["incompatible_features"] & INCOMPATIBLE_DATA_FILE
    digest = hashlib.sha256()
    for i, l1_entry in enumerate(l1):
        if not l1_entry & OFFSET_MASK:
            continue
        for j, entry, bitmap in image.used_l2(l1_entry):
            digest.update(b"%d %d %d" % (i * image.l2_entries + j, entry & 1, bitmap))
            if entry & COMPRESSED:
                digest.update(b"compressed" + image.read(*image.compressed_range(entry)))
            elif has_data_file:
                digest.update(b"%d" % (entry & OFFSET_MASK))
            elif entry & OFFSET_MASK:
                digest.update(image.read(entry & OFFSET_MASK, image.cluster_size))
    return digest.hexdigest()


def content(image: Qcow2) -> Content:
    """Reads everything that the image's mappings show. Raises ValueError when the snapshot table is cut off."""
    snapshots = image.snapshots()
    if len(snapshots) != image.header["nb_snapshots"]:
        raise ValueError("the snapshot table ends behind the file")
    return Content(
        size=image.size,
        disk=_mapping(image, image.active_l1()),
        snapshots=tuple(
            (s.id, s.name, s.disk_size, _mapping(image, image.table(s.l1_offset, s.l1_size))) for s in snapshots
        ),
    )


def _flag_faults(image: Qcow2, faults: Faults, references: Counter[int]) -> None:
    """COPIED flags of the active mapping; those of snapshots mean nothing (qemu-img check skips them, too), and data
    files have no refcounts."""
    has_data_file = image.header["incompatible_features"] & INCOMPATIBLE_DATA_FILE

    def look(entry: int, what: str) -> None:
        cluster = (entry & OFFSET_MASK) >> image.cluster_bits
        if entry & COPIED and references[cluster] > 1:
            faults.damage.append(f"{what}: COPIED, but {references[cluster]} references: a write would change both")
        elif bool(entry & COPIED) != (image.refcount(cluster) == 1):
            faults.flags += 1

    for i, l1_entry in enumerate(image.active_l1()):
        if not l1_entry & OFFSET_MASK:
            continue
        look(l1_entry, f"L1[{i}]")
        if has_data_file:
            continue
        for j, entry, _unused in image.used_l2(l1_entry):
            if entry & OFFSET_MASK and not entry & COMPRESSED:
                look(entry, f"L2[{i}][{j}]")


def faults(image: Qcow2) -> Faults:
    """Counts every reference and compares with the refcounts and flags."""
    found = Faults()
    references: Counter[int] = Counter()
    kinds: dict[int, set[str]] = {}
    for clusters, kind, who in image.references():
        references.update(clusters)
        for cluster in clusters:
            kinds.setdefault(cluster, set()).add(kind)
            start = cluster << image.cluster_bits
            if kind in METADATA and start >= image.length:
                found.damage.append(f"{who} lies behind the end of the file")
    for cluster, used_as in kinds.items():
        if len(used_as) > 1 or (references[cluster] > 1 and used_as & (METADATA - {"L2"})):
            found.damage.append(f"cluster {cluster:#x} is {sorted(used_as)}, {references[cluster]} times")
    last = -(-image.length // image.cluster_size)
    for cluster in {*references, *range(last)}:
        count = image.refcount(cluster)
        if count < references[cluster]:
            found.damage.append(f"cluster {cluster:#x}: refcount {count}, {references[cluster]} references")
        elif count > references[cluster]:
            found.leaks += 1
    _flag_faults(image, found, references)
    return found
