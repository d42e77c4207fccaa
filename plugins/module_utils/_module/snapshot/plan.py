# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What qcow2_snapshot has to do with one image, found out by reading it once.

It is foreseen in foresight.py, or carried out in carry_out.py.
"""

from __future__ import annotations

import time
import typing as t

from ...sandbox import errors
from ...sandbox.guests._limits import SNAPSHOT_ID_MAX, SNAPSHOT_NAME_MAX
from ...sandbox.images import snapshots
from ..arguments import image_text
from ..group import OpenImage

if t.TYPE_CHECKING:
    from .retention import Retention


class SnapshotWanted:
    """What the task asks for: state, name and snapshot_id as bytes (b"": not given), allow_resize, date, retention."""

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        self.state: str = params["state"]
        self.name = image_text("name", params["name"], SNAPSHOT_NAME_MAX)
        self.id = image_text("snapshot_id", params["snapshot_id"], SNAPSHOT_ID_MAX)
        self.allow_resize: bool = params["allow_resize"]
        self.date = divmod(time.time_ns(), 1_000_000_000)
        if self.state == "present" and self.id:
            raise errors.ArgumentError(
                "snapshot_id chooses among snapshots that exist, the id of a new one cannot be chosen. "
                "Use state 'present' with name alone.",
                "snapshot_id_with_present",
            )
        self.retention: Retention | None = None
        if params["retention"] is not None:
            from .retention import Retention  # few tasks need it

            self.retention = Retention(params["retention"], self.state, self.name, SNAPSHOT_NAME_MAX)

    def matches(self, snapshot: snapshots.Snapshot) -> bool:
        """Whether the task means this one. Without name and id it means none."""
        if not self.id and not self.name:
            return False
        return (not self.id or snapshot.id == self.id) and (not self.name or snapshot.name == self.name)

    def __str__(self) -> str:
        parts = [f"id {errors.clean(self.id)}"] if self.id else []
        return " ".join([*parts, f"'{errors.clean(self.name)}'"] if self.name else parts)


class SnapshotPlan:
    """What is to be done with one image; made from one read of it, before anything is written.

    found: the snapshot that the task means, if there is one, and found_at its place in the table. creates: whether it
    is missing and wanted. outdated: the snapshots that retention lets go. comparison: of the one found with the active
    disk, for state 'applied'. changed: whether there is anything to do. after: the snapshots that there are in the end,
    or would be.
    """

    def __init__(self, subject: OpenImage, wanted: SnapshotWanted, before: snapshots.SnapshotList) -> None:
        self.subject = subject
        self.wanted = wanted
        self.before = self.after = before
        self.leaked_clusters: int | None = None
        self.found_at = self._find()
        self.found = None if self.found_at is None else self.before.snapshots[self.found_at]
        self.comparison: snapshots.Comparison | None = None
        self.creates = wanted.state == "present" and bool(wanted.name) and self.found is None
        self.outdated: tuple[snapshots.Snapshot, ...] = ()
        if wanted.retention is not None:
            self.outdated = wanted.retention.outdated(self.before.snapshots, self.creates, wanted.date)
        self.changed = self.creates or bool(self.outdated) or (wanted.state == "absent" and self.found is not None)

    @classmethod
    def read(cls, subject: OpenImage, wanted: SnapshotWanted) -> SnapshotPlan:
        """The plan for an image, of which guests read the snapshots. Raises AirlockError."""
        plan = cls(subject, wanted, subject.run(snapshots.list_snapshots))
        if wanted.state == "applied":
            plan.comparison = comparison = subject.run(snapshots.compare_snapshot, plan.selector)
            plan.changed = not comparison.equal
        return plan

    @property
    def steps(self) -> int:
        """Operations that it takes."""
        return int(self.creates) + len(self.outdated) + int(self.wanted.state != "present")

    @property
    def path(self) -> str:
        """As the task names the image."""
        return self.subject.path

    @property
    def selector(self) -> snapshots.Selector:
        """Exactly the snapshot that was found."""
        if self.found is None:
            raise errors.SnapshotNotFoundError(
                f"{errors.clean(self.path)}: there is no snapshot {self.wanted}. {self._what_there_is()}",
                "snapshot_not_found",
            )
        return snapshots.Selector.by_id(self.found.id, name=self.found.name)

    def _find(self) -> int | None:
        there = self.before.snapshots
        found = [index for index, snapshot in enumerate(there) if self.wanted.matches(snapshot)]
        if len(found) > 1 and self.wanted.state != "present":
            ids = ", ".join(errors.clean(there[index].id) for index in found[:20])
            raise errors.ArgumentError(
                f"{errors.clean(self.path)}: {len(found)} snapshots match {self.wanted}, with the ids {ids}. "
                "Choose one with snapshot_id.",
                "ambiguous_name",
            )
        return found[0] if found else None

    def _what_there_is(self) -> str:
        there = self.before.snapshots
        if not there:
            return "The image has no snapshots."
        names = ", ".join(f"{errors.clean(s.id)} '{errors.clean(s.name, 80)}'" for s in there[:20])
        return f"There are: {names}{', ...' if len(there) > 20 else ''}."
