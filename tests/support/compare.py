# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two files, byte for byte, and what lives where they differ."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .qcow2 import HEADER_FIELDS, Qcow2
from .qemu import data_ranges

WINDOW = 1 << 20
PIECE = 4096


def _union(first: Iterator[tuple[int, int]], second: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted([*first, *second]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _window_differences(offset: int, one: bytes, two: bytes) -> Iterator[tuple[int, int]]:
    """(offset, length) of runs of differing 8-byte words; a run ends at a word that is equal."""
    start = None
    length = max(len(one), len(two))
    for piece in range(0, length, PIECE):
        # Of a piece that is equal, only its first word matters: it ends a run.
        end = piece + 8 if one[piece : piece + PIECE] == two[piece : piece + PIECE] else min(piece + PIECE, length)
        for i in range(piece, end, 8):
            if one[i : i + 8] != two[i : i + 8]:
                start = i if start is None else start
            elif start is not None:
                yield offset + start, i - start
                start = None
    if start is not None:
        yield offset + start, length - start


def differences(first: str, second: str, limit: int = 4096) -> list[tuple[int, int]]:
    """(offset, length) of where two files differ, at most `limit` runs. A file that is longer differs from its
    partner's end on, zeros or not."""
    found: list[tuple[int, int]] = []
    with open(first, "rb") as one, open(second, "rb") as two:
        lengths = [os.fstat(file.fileno()).st_size for file in (one, two)]
        both = min(lengths)
        ranges = _union(data_ranges(one.fileno(), both), data_ranges(two.fileno(), both))
        for start, end in ranges:
            for position in range(start, end, WINDOW):
                size = min(WINDOW, end - position)
                pages = [os.pread(file.fileno(), size, position) for file in (one, two)]
                if pages[0] != pages[1]:
                    found += _window_differences(position, pages[0], pages[1])
                if len(found) >= limit:
                    return found[:limit]
        if lengths[0] != lengths[1]:
            found.append((both, max(lengths) - both))
    return found


def _inside(image: Qcow2, offset: int, who: str) -> str:
    """What exactly lies at `offset`, as far as the owner tells."""
    in_cluster = offset % image.cluster_size
    if who == "header":
        for start, size, name in HEADER_FIELDS:
            if start <= offset < start + size:
                return f"header.{name}"
        return f"header +{offset:#x}"
    if who.startswith("refcount block"):
        first = int(who.rsplit(" ", 1)[1]) * image.block_entries
        per_word = 64 // image.refcount_bits
        cluster = first + in_cluster * 8 // image.refcount_bits
        return f"{who} (of clusters {cluster:#x}..{cluster + per_word - 1:#x})"
    if who == "refcount table":
        return f"refcount table [{(offset - image.header['refcount_table_offset']) // 8}]"
    if who == "active L1":
        return f"active L1[{(offset - image.header['l1_table_offset']) // 8}]"
    if " L2[" in who:
        return f"{who}[{in_cluster // (16 if image.extended else 8)}]"
    if who == "snapshot table":
        for snapshot in image.snapshots():
            if snapshot.offset <= offset < snapshot.offset + snapshot.length:
                return f"snapshot table [{snapshot.index}] +{offset - snapshot.offset}"
        return "snapshot table, padding"
    return f"{who} +{in_cluster:#x}"


def classify(image: Qcow2, owners: dict[int, list[str]], offset: int) -> str:
    """One line about who owns the byte at `offset` of an image."""
    if offset >= image.length:
        return "behind the end of the file"
    cluster = offset // image.cluster_size
    names = owners.get(cluster)
    if not names:
        return f"no owner, refcount {image.refcount(cluster)}"
    shown = "; ".join(_inside(image, offset, who) for who in names[:3])
    return shown + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def explain(first: str, second: str, titles: tuple[str, str], limit: int = 24) -> str:
    """The differences of two images as text: where, whose, and the first bytes of both."""
    runs = differences(first, second)
    if not runs:
        return ""
    lines = []
    with Qcow2(first) as one, Qcow2(second) as two:
        owners = one.owners(), two.owners()
        for title, image in zip(titles, (one, two)):
            lines.append(f"  {title}: {image.length} bytes ({image.length:#x}), cluster size {image.cluster_size}")
        for offset, length in runs[:limit]:
            lines.append(f"  {offset:#x} (cluster {offset // one.cluster_size:#x}), {length} bytes")
            for title, image, known in zip(titles, (one, two), owners):
                shown = image.read(offset, min(length, 24)).hex(" ", 8) if offset < image.length else "-"
                lines.append(f"    {title:>8}: {shown}  {classify(image, known, offset)}")
        if len(runs) > limit:
            lines.append(f"  ... {len(runs) - limit} runs more")
    return "\n".join(lines)
