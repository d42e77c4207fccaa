# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots as a task returns and shows them."""

from __future__ import annotations

import typing as t

from ...sandbox.facts.listing import escape_unprintable, format_listing, listing_row
from ...sandbox.facts.snapshot_facts import snapshot_facts
from ...sandbox.images.snapshots import Snapshot


def predicted_record(snapshot: Snapshot) -> dict[str, t.Any]:
    """A record for a snapshot that only check mode knows: neither its id nor its date is known yet."""
    return {
        **snapshot_facts(snapshot),
        "id": None,
        "date": {"seconds": None, "nanoseconds": None, "iso8601": None},
    }


def listing(snapshots: t.Sequence[Snapshot]) -> str:
    """The table that qemu-img snapshot -l prints, with control characters escaped; empty without snapshots."""
    return format_listing(snapshots, escape_unprintable).decode("utf-8", "replace")


def row(snapshot: Snapshot) -> str:
    """Its line in listing()."""
    return listing_row(snapshot, escape_unprintable).decode("utf-8", "replace")


def diff_text(disk_size: int, active: str, lines: t.Sequence[str]) -> str:
    """One side of an image's diff. active: what to say of the disk's own content, may be empty. lines: of snapshots."""
    head = [f"disk size: {disk_size} bytes", *([f"active state: {active}"] if active else [])]
    return "\n".join([*head, *lines]) + "\n"


def diff_line(record: t.Mapping[str, t.Any]) -> str:
    """What the diff says of a snapshot."""
    date = record["date"]["iso8601"] or "date not known yet"
    return f"snapshot {record['id'] or '(new)'}: {record['name']}, {date}, {record['disk_size']} bytes"
