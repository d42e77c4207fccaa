# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The snapshots of an image, changed: created, applied, deleted."""

from __future__ import annotations

import typing as t

from .. import errors
from ..guests._limits import SNAPSHOT_ID_MAX, SNAPSHOT_NAME_MAX
from . import calls
from .calls import Selector
from .image import Image, Limits, Progress, Report
from .snapshots import SnapshotList, change, list_of, reject_unmatchable

_DATE_MAX = (1 << 32) - 1


class Created(t.NamedTuple):
    """id: what the new snapshot got. leaked_clusters: refcounts above what refers to them, left alone.

    now: the snapshots that there are then.
    """

    id: bytes
    leaked_clusters: int
    report: Report
    now: SnapshotList


class Applied(t.NamedTuple):
    """virtual_size: of the disk afterwards, in bytes. resized: whether that is another one than before."""

    virtual_size: int
    resized: bool
    leaked_clusters: int
    report: Report
    now: SnapshotList


class Deleted(t.NamedTuple):
    """freed_clusters: host clusters that nothing refers to any more."""

    freed_clusters: int
    leaked_clusters: int
    report: Report
    now: SnapshotList


def create_snapshot(
    image: Image, name: bytes, date: tuple[int, int], limits: Limits | None = None, progress: Progress = None
) -> Created:
    """A new snapshot of the disk as it is now; another one may have the same name.

    name: at most 255 bytes without NUL, may be empty. date: seconds and nanoseconds since 1970, UTC. progress: as of
    Run, in bytes of tables, here and in the other two.
    Raises ArgumentError for a bad name or date, RefusalError.
    """
    _check_name(name)
    seconds, nanoseconds = date
    if not (0 <= seconds <= _DATE_MAX and 0 <= nanoseconds < 1_000_000_000):
        raise errors.ArgumentError("A snapshot's date lies between 1970 and 2106. Set the clock, or give another date.")
    fields = {"date_seconds": seconds, "date_nanoseconds": nanoseconds, "name_length": len(name), "name": name}
    result, payload, report = change(image, "snapshot_create", _shown(name), limits, fields, progress)
    identifier = calls.text(result.id, result.id_length, SNAPSHOT_ID_MAX, "an id")
    return Created(identifier, result.header.leaked_clusters, report, list_of(result, payload, report))


def apply_snapshot(
    image: Image, selector: Selector, allow_resize: bool, limits: Limits | None = None, progress: Progress = None
) -> Applied:
    """The disk becomes what it was at the snapshot; what was written since is lost.

    allow_resize: whether a snapshot of another disk size is applied as well, and resizes the disk.
    Raises SnapshotNotFoundError, RefusalError.
    """
    reject_unmatchable(image, selector, limits)
    fields = {"snapshot": selector, "resize_allowed": int(allow_resize)}
    result, payload, report = change(image, "snapshot_apply", selector.shown(), limits, fields, progress)
    now = list_of(result, payload, report)
    return Applied(result.virtual_size, bool(result.resized), result.header.leaked_clusters, report, now)


def delete_snapshot(
    image: Image, selector: Selector, limits: Limits | None = None, progress: Progress = None
) -> Deleted:
    """The snapshot goes, and what only it referred to is freed. Raises SnapshotNotFoundError, RefusalError."""
    reject_unmatchable(image, selector, limits)
    fields = {"snapshot": selector}
    result, payload, report = change(image, "snapshot_delete", selector.shown(), limits, fields, progress)
    now = list_of(result, payload, report)
    return Deleted(result.freed_clusters, result.header.leaked_clusters, report, now)


def _check_name(name: bytes) -> None:
    if len(name) > SNAPSHOT_NAME_MAX or b"\0" in name:
        raise errors.ArgumentError(
            f"A snapshot's name has at most {SNAPSHOT_NAME_MAX} bytes and no NUL; this one has {len(name)}. "
            "Shorten it.",
            "name_too_long" if len(name) > SNAPSHOT_NAME_MAX else "argument",
        )


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
