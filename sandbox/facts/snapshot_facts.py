# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots as plain dictionaries, their text made printable. Apart from facts.py, whose rest fewer modules need."""

from __future__ import annotations

import time
import typing as t

from .. import errors

if t.TYPE_CHECKING:
    from ..images.snapshots import Snapshot


def snapshot_facts(snapshot: Snapshot) -> dict[str, t.Any]:
    """One snapshot. Sizes in bytes, vm_clock in nanoseconds."""
    return {
        "id": errors.clean(snapshot.id),
        "name": errors.clean(snapshot.name),
        "date": {
            "seconds": snapshot.date_seconds,
            "nanoseconds": snapshot.date_nanoseconds,
            "iso8601": iso8601(snapshot.date_seconds, snapshot.date_nanoseconds),
        },
        "vm_state_size": snapshot.vm_state_size,
        "vm_clock": snapshot.vm_clock,
        "icount": snapshot.icount,
        "disk_size": snapshot.disk_size,
    }


def iso8601(seconds: int, nanoseconds: int) -> str:
    """A moment in UTC, to the nanosecond."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"
