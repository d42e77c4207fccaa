# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the bitmaps of an image mean, read independently of all that is tested.

QEMU puts bitmaps elsewhere whenever it opens an image, so they are compared by meaning: their order, names, flags,
granularity and every bit. Two ways in which one cluster of bits is stored (no cluster, or one of zeros) mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .apart import printed_apart
from .qcow2 import AUTOCLEAR_BITMAPS, OFFSET_MASK, BitmapEntry, Qcow2

IN_USE, RECORDING = 1, 2  # flags of a directory entry
ALL_ONES = 1  # a table entry without a cluster
_FULL = re.compile(rb"\xff+|[^\x00\xff]")
_PIECE = bytes(4096)


@dataclass(frozen=True)
class Bitmap:
    """One bitmap. granularity: bytes of the disk to a bit. dirty: runs of set bits as (first, count), in order and
    apart; None of a bitmap that is in use, whose bits mean nothing."""

    name: bytes
    granularity: int
    recording: bool
    in_use: bool
    dirty: tuple[tuple[int, int], ...] | None


def disk_size(image: Qcow2) -> int:
    """Bytes of the disk as QEMU takes them: whole sectors."""
    return image.size // 512 * 512


def merged(runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ordered runs (first, count), those that touch made one."""
    first = count = 0
    for start, length in runs:
        if count and start == first + count:
            count += length
            continue
        if count:
            yield first, count
        first, count = start, length
    if count:
        yield first, count


def _runs_of_bytes(data: bytes, first: int) -> Iterator[tuple[int, int]]:
    """The set bits of `data`, lowest first in each byte; its bit 0 has the number `first`."""
    for position in range(0, len(data), len(_PIECE)):
        piece = data[position : position + len(_PIECE)]
        if _PIECE.startswith(piece):
            continue  # most are zeros, which the expression would look at one by one
        for found in _FULL.finditer(piece):
            value, start = piece[found.start()], first + (position + found.start()) * 8
            if value == 0xFF:
                yield start, 8 * (found.end() - found.start())
                continue
            for bit in range(8):
                if value >> bit & 1:
                    yield start + bit, 1


def stored_runs(image: Qcow2, entry: BitmapEntry) -> Iterator[tuple[int, int]]:
    """The runs of set bits as they are stored: also those that stand for nothing, behind the disk's end."""

    def pieces() -> Iterator[tuple[int, int]]:
        bits = image.cluster_size * 8
        for i, word in image.used_entries(entry.table, entry.table_entries):
            if word & OFFSET_MASK:
                yield from _runs_of_bytes(image.read(word & OFFSET_MASK, image.cluster_size), i * bits)
            elif word & ALL_ONES:
                yield i * bits, bits

    return merged(pieces())


def dirty_runs(image: Qcow2, entry: BitmapEntry) -> tuple[tuple[int, int], ...]:
    """The runs of dirty bits that stand for some part of the disk."""
    bits = -(-disk_size(image) >> entry.granularity_bits)
    return tuple((start, min(count, bits - start)) for start, count in stored_runs(image, entry) if start < bits)


def extents(image: Qcow2, entry: BitmapEntry) -> list[tuple[int, int]]:
    """The dirty ranges of the disk, (offset, length) in bytes; the last ends where the disk does."""
    shift = entry.granularity_bits
    found = [(start << shift, count << shift) for start, count in dirty_runs(image, entry)]
    return [(start, min(length, disk_size(image) - start)) for start, length in found]


def _meaning(image: Qcow2, entry: BitmapEntry) -> Bitmap:
    in_use = bool(entry.flags & IN_USE)
    return Bitmap(
        name=entry.name,
        granularity=1 << entry.granularity_bits,
        recording=bool(entry.flags & RECORDING),
        in_use=in_use,
        dirty=None if in_use else dirty_runs(image, entry),
    )


def bitmaps(image: Qcow2) -> list[Bitmap]:
    """The bitmaps in the directory's order; none when they are stale."""
    if not image.header["autoclear_features"] & AUTOCLEAR_BITMAPS:
        return []
    return [_meaning(image, entry) for entry in image.bitmap_directory()]


def bitmaps_of(path: str) -> list[Bitmap]:
    with Qcow2(path) as image:
        return bitmaps(image)


def stale_names(path: str) -> list[bytes]:
    """The bitmaps of an extension whose autoclear bit is off."""
    with Qcow2(path) as image:
        if image.header["autoclear_features"] & AUTOCLEAR_BITMAPS:
            return []
        return [entry.name for entry in image.bitmap_directory()]


def tail_is_clean(path: str) -> bool:
    """No bitmap has bits behind the disk's end, as QEMU leaves them."""
    with Qcow2(path) as image:
        for entry in image.bitmap_directory():
            bits = -(-disk_size(image) >> entry.granularity_bits)
            if any(start + count > bits for start, count in stored_runs(image, entry)):
                return False
    return True


def describe(bitmap: Bitmap) -> str:
    """A line for a human."""
    runs = "in use" if bitmap.dirty is None else ", ".join(f"{start}+{count}" for start, count in bitmap.dirty[:12])
    more = "" if bitmap.dirty is None or len(bitmap.dirty) <= 12 else f", and {len(bitmap.dirty) - 12} runs"
    flag = "recording" if bitmap.recording else "off"
    return f"{bitmap.name[:40]!r} {flag}, granularity {bitmap.granularity}, dirty bits {runs or 'none'}{more}"


def difference(theirs: list[Bitmap], ours: list[Bitmap]) -> str:
    """ "" when both mean the same, else both, as text."""
    if theirs == ours:
        return ""
    lines = [f"{len(theirs)} and {len(ours)} bitmaps"]
    for i in range(max(len(theirs), len(ours))):
        one, two = (side[i] if i < len(side) else None for side in (theirs, ours))
        if one != two:
            lines += [f"  [{i}] qemu: {describe(one) if one else '-'}", f"      ours: {describe(two) if two else '-'}"]
    return "\n".join(lines)


def peak_memory_of_list(path: str) -> int:
    """Bytes resident in the child."""
    return printed_apart(f"""if True:
        from sandbox.images import image as images
        from sandbox.images.bitmaps import list_bitmaps
        with images.Image.open({path!r}) as image:
            print(list_bitmaps(image).report.peak_memory)
    """)
