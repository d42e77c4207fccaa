# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prints the metadata of a qcow2 image as text, so that two images can be read side by side with diff.

diff <(python3 tests/differential/dump.py qemu.qcow2) <(python3 tests/differential/dump.py ours.qcow2)
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.support.bitmaps import extents
from tests.support.qcow2 import (
    AUTOCLEAR_BITMAPS,
    COMPRESSED,
    COPIED,
    HEADER_FIELDS,
    OFFSET_MASK,
    ZERO,
    Qcow2,
)


def describe_entry(image: Qcow2, entry: int, bitmap: int) -> str:
    """An L2 entry in words."""
    if entry & COMPRESSED:
        offset, length = image.compressed_range(entry)
        return f"compressed {offset:#x}+{length}"
    words = ["copied"] if entry & COPIED else []
    if entry & ZERO and not image.extended:
        words.append("zero")
    if entry & OFFSET_MASK:
        words.append(f"at {entry & OFFSET_MASK:#x} (cluster {(entry & OFFSET_MASK) >> image.cluster_bits:#x})")
    if image.extended:
        words.append(f"allocated {bitmap & 0xFFFFFFFF:#010x} zeros {bitmap >> 32:#010x}")
    rest = entry & ~(OFFSET_MASK | COPIED | COMPRESSED | ZERO)
    if rest:
        words.append(f"RESERVED {rest:#x}")
    return " ".join(words)


def mapping(image: Qcow2, title: str, l1_offset: int, l1_size: int) -> Iterator[str]:
    """An L1 table and the L2 tables below it; empty entries left out."""
    yield f"{title}: L1 at {l1_offset:#x}, {l1_size} entries"
    for i, l1_entry in enumerate(image.table(l1_offset, l1_size)):
        if not l1_entry:
            continue
        count = image.refcount((l1_entry & OFFSET_MASK) >> image.cluster_bits)
        yield f"  L1[{i}] {l1_entry:#018x}, L2 refcount {count}"
        for j, (entry, bitmap) in enumerate(image.l2(l1_entry)):
            if entry or bitmap:
                yield f"    L2[{j}] {entry:#018x} {describe_entry(image, entry, bitmap)}"


def refcounts(image: Qcow2) -> Iterator[str]:
    """The refcounts that are not 0, in runs of equal value and equal owners' kind."""
    owners = image.owners()
    last = (image.length + image.cluster_size - 1) // image.cluster_size
    blocks = [i for i, block in enumerate(image.refcount_blocks()) if block]
    for i in blocks:
        yield f"  block {i} at {image.refcount_blocks()[i]:#x}, clusters {i * image.block_entries:#x}.."
    for cluster in range(last):
        count = image.refcount(cluster)
        names = owners.get(cluster, [])
        if count or names:
            note = "" if count == len(names) else f"  <- {len(names)} references"
            shown = "; ".join(names[:4]) or "nobody"
            yield f"  {cluster:#x} at {cluster << image.cluster_bits:#x}: {count}{note}  {shown}"


def bitmaps(image: Qcow2) -> Iterator[str]:
    """The directory, and of each bitmap the table entries that are not 0 and the dirty ranges."""
    extension = image.bitmaps_extension()
    if extension:
        word = "" if image.header["autoclear_features"] & AUTOCLEAR_BITMAPS else ", stale"
        yield f"  bitmaps: {extension[0]}, directory at {extension[2]:#x}, {extension[1]} bytes{word}"
    for entry in image.bitmap_directory():
        yield (
            f"  bitmap {entry.name!r}: table at {entry.table:#x}, {entry.table_entries} entries, "
            f"flags {entry.flags:#x}, granularity {1 << entry.granularity_bits}"
        )
        for i, word in enumerate(image.table(entry.table, entry.table_entries)):
            if word:
                yield f"    [{i}] {word:#018x}"
        ranges = extents(image, entry)
        yield f"    dirty: {', '.join(f'{start}+{length}' for start, length in ranges) or 'nothing'}"


def dump(image: Qcow2) -> Iterator[str]:
    """All lines about an image."""
    yield f"length {image.length} ({image.length:#x})"
    for _unused, _unused, name in HEADER_FIELDS:
        yield f"  {name} {image.header[name]:#x}"
    for offset, kind, data in image.extensions():
        yield f"  extension at {offset:#x}: type {kind:#010x}, {len(data)} bytes {data[:32].hex()}"
    yield from bitmaps(image)
    snapshots = image.snapshots()
    for shot in snapshots:
        yield (
            f"snapshot table [{shot.index}] at {shot.offset:#x}, {shot.length} bytes: id {shot.id!r} "
            f"name {shot.name!r} L1 {shot.l1_offset:#x} x {shot.l1_size} date {shot.date} clock {shot.vm_clock} "
            f"state {shot.vm_state_size} extra {shot.extra.hex()}"
        )
    yield from mapping(image, "active", image.header["l1_table_offset"], image.header["l1_size"])
    for shot in snapshots:
        yield from mapping(image, f"snapshot {shot.index} {shot.name!r}", shot.l1_offset, shot.l1_size)
    yield f"refcounts: table at {image.header['refcount_table_offset']:#x}, {image.refcount_bits} bits"
    yield from refcounts(image)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    with Qcow2(parser.parse_args(arguments).path) as image:
        for line in dump(image):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
