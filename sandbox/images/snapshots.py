# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The snapshots of an image, read."""

from __future__ import annotations

import typing as t

from .. import errors
from . import calls
from .calls import Selector, Snapshot
from .image import Image, Limits, Progress, Report, run_guest

__all__ = ["Comparison", "Selector", "Snapshot", "SnapshotList", "compare_snapshot", "list_snapshots"]


def _snapshot_guest() -> tuple[bytes, bytes]:
    from ..guests import _guest_snapshot

    return _guest_snapshot.load()


class SnapshotList(t.NamedTuple):
    """The snapshots in table order, and the size of the disk in bytes."""

    snapshots: t.Sequence[Snapshot]
    virtual_size: int
    report: Report


class Comparison(t.NamedTuple):
    """The active mapping beside a snapshot's. disk_size: the snapshot's, in bytes; differing_clusters: of the disk."""

    equal: bool
    same_size: bool
    disk_size: int
    differing_clusters: int
    report: Report


def ask(
    image: Image,
    operation: str,
    name: str = "",
    limits: Limits | None = None,
    fields: t.Mapping[str, t.Any] | None = None,
) -> tuple[t.Any, bytes, Report]:
    """One guest that reads the image: (result struct, payload, report). name: of a snapshot, for the wording of a
    refusal.

    The guest may not write, even if the image was opened for it.
    """
    return run_guest([image], _snapshot_guest, operation, fields or {}, limits, _refuse(image, name))


def change(
    image: Image,
    operation: str,
    name: str = "",
    limits: Limits | None = None,
    fields: t.Mapping[str, t.Any] | None = None,
    progress: Progress = None,
) -> tuple[t.Any, bytes, Report]:
    """One guest that changes the image, as ask(). progress: as of Run.

    Raises ArgumentError for one that was opened for reading.
    """
    refuse = _refuse(image, name)
    return run_guest([image], _snapshot_guest, operation, fields or {}, limits, refuse, (0,), progress)


def list_snapshots(image: Image, limits: Limits | None = None) -> SnapshotList:
    """The snapshots of an image; none of them for one with an external data file, which can have none."""
    result, payload, report = ask(image, "snapshot_list", limits=limits)
    return list_of(result, payload, report)


def compare_snapshot(image: Image, selector: Selector, limits: Limits | None = None) -> Comparison:
    """Whether the active mapping and the disk's size are those of a snapshot. Raises SnapshotNotFoundError."""
    reject_unmatchable(image, selector, limits)
    result, _payload, report = ask(image, "snapshot_compare", selector.shown(), limits, {"snapshot": selector})
    return Comparison(bool(result.equal), bool(result.same_size), result.disk_size, result.differing_clusters, report)


def list_of(result: t.Any, payload: bytes, report: Report) -> SnapshotList:
    """The list in the answer to any operation on snapshots. Raises GuestProtocolError."""
    return SnapshotList(calls.snapshots(payload, result.snapshot_count), result.virtual_size, report)


def reject_unmatchable(image: Image, selector: Selector, limits: Limits | None) -> None:
    """A text longer than any id or name: the image is looked at all the same, so that its own faults come first."""
    if not selector.can_match():
        list_snapshots(image, limits)
        from ..words import refused

        raise refused.snapshot_not_found(image.path, selector.shown())


def _refuse(image: Image, name: str) -> t.Callable[[t.Any], errors.AirlockError]:
    def refuse(header: t.Any) -> errors.AirlockError:
        from ..words import refused  # words, and most runs need none

        return refused.from_refusal(header, image.path, name)

    return refuse
