# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots as a task returns and shows them."""

from __future__ import annotations

import typing as t

from ..sandbox import errors
from ..sandbox.listing import format_listing
from ..sandbox.snapshot_facts import snapshot_facts
from ..sandbox.snapshots import Snapshot


def predicted_record(snapshot: Snapshot) -> dict[str, t.Any]:
    """A record for a snapshot that only check mode knows: neither its id nor its date is known yet."""
    return {
        **snapshot_facts(snapshot),
        "id": None,
        "date": {"seconds": None, "nanoseconds": None, "iso8601": None},
    }


def listing(snapshots: t.Sequence[Snapshot]) -> str:
    """The table that qemu-img snapshot -l prints, with control characters escaped; empty without snapshots."""
    return format_listing(snapshots, escape=True).decode("utf-8", "replace")


def diff_text(disk_size: int, active: str, snapshots: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    """One side of an image's diff. active: what to say of the disk's own content, may be empty."""
    lines = [f"disk size: {disk_size} bytes"]
    if active:
        lines.append(f"active state: {active}")
    for record in snapshots:
        date = record["date"]["iso8601"] or "date not known yet"
        lines.append(f"snapshot {record['id'] or '(new)'}: {record['name']}, {date}, {record['disk_size']} bytes")
    return "\n".join(lines) + "\n"


def leak_warning(path: str, clusters: int) -> str:
    """What to tell about clusters that nothing refers to."""
    count = "1 cluster is" if clusters == 1 else f"{clusters} clusters are"
    return (
        f"{errors.quote(path)}: {count} leaked: in use by the refcounts, but by nothing else. That is harmless. "
        f"'qemu-img check -r leaks {errors.quote(path)}' gives the space back; on an image with bitmaps it loses all "
        "snapshots, so work on a copy there."
    )
