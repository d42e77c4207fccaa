# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What qcow2_snapshot has to do with one image: found out by reading it once, foreseen or carried out."""

from __future__ import annotations

import time
import typing as t

from ansible.module_utils.common.text.converters import to_bytes

from ..sandbox import errors, operations
from .group import OpenImage

NAME_LIMIT = 255  # bytes; qemu-img cuts longer names
ID_LIMIT = 127


class Wanted:
    """What the task asks for: state, name and snapshot_id as bytes (b"": not given), allow_resize, the date."""

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        self.state: str = params["state"]
        self.name = _text("name", params["name"], NAME_LIMIT)
        self.id = _text("snapshot_id", params["snapshot_id"], ID_LIMIT)
        self.allow_resize: bool = params["allow_resize"]
        self.date = divmod(time.time_ns(), 1_000_000_000)
        if self.state == "present" and self.id:
            raise errors.ArgumentError(
                "snapshot_id chooses among snapshots that exist, the id of a new one cannot be chosen. "
                "Use state 'present' with name alone.",
                "snapshot_id_with_present",
            )

    def matches(self, snapshot: operations.Snapshot) -> bool:
        """Whether the task means this one."""
        return (not self.id or snapshot.id == self.id) and (not self.name or snapshot.name == self.name)

    def __str__(self) -> str:
        parts = [f"id {errors.clean(self.id)}"] if self.id else []
        return " ".join([*parts, f"'{errors.clean(self.name)}'"] if self.name else parts)


class Plan:
    """What is to be done with one image; made from one read of it, before anything is written.

    found: the snapshot that the task means, if there is one. comparison: of it with the active disk, for state
    'applied'. changed: whether there is anything to do.
    """

    def __init__(self, subject: OpenImage, wanted: Wanted) -> None:
        self.subject = subject
        self.wanted = wanted
        self.before: operations.SnapshotList = subject.run(operations.list_snapshots)
        self.after = self.before
        self.leaked_clusters: int | None = None
        self.found = self._find()
        self.comparison: operations.Comparison | None = None
        if wanted.state == "applied":
            self.comparison = subject.run(operations.compare_snapshot, self.selector)
            self.changed = not self.comparison.equal
        else:
            self.changed = (self.found is None) == (wanted.state == "present")

    @property
    def path(self) -> str:
        """As the task names the image."""
        return self.subject.path

    @property
    def selector(self) -> operations.Selector:
        """Exactly the snapshot that was found."""
        if self.found is None:
            raise errors.SnapshotNotFoundError(
                f"{errors.clean(self.path)}: there is no snapshot {self.wanted}. {self._what_there_is()}",
                code="snapshot_not_found",
            )
        return operations.Selector.by_id(self.found.id, name=self.found.name)

    def _find(self) -> operations.Snapshot | None:
        found = [snapshot for snapshot in self.before.snapshots if self.wanted.matches(snapshot)]
        if len(found) > 1 and self.wanted.state != "present":
            ids = ", ".join(errors.clean(snapshot.id) for snapshot in found[:20])
            raise errors.ArgumentError(
                f"{errors.clean(self.path)}: {len(found)} snapshots match {self.wanted}, with the ids {ids}. "
                "Choose one with snapshot_id.",
                "ambiguous_name",
            )
        return found[0] if found else None

    def _what_there_is(self) -> str:
        snapshots = self.before.snapshots
        if not snapshots:
            return "The image has no snapshots."
        names = ", ".join(f"{errors.clean(s.id)} '{errors.clean(s.name, 80)}'" for s in snapshots[:20])
        return f"There are: {names}{', ...' if len(snapshots) > 20 else ''}."

    def carry_out(self) -> None:
        """Changes the image."""
        if self.wanted.state == "present":
            done = self.subject.run(operations.create_snapshot, self.wanted.name, self.wanted.date)
        elif self.wanted.state == "absent":
            done = self.subject.run(operations.delete_snapshot, self.selector)
        else:
            done = self.subject.run(operations.apply_snapshot, self.selector, self.wanted.allow_resize)
        self.leaked_clusters = done.leaked_clusters
        self.after = done.now

    def foresee(self) -> None:
        """Fills in what carry_out() would lead to, for check mode; refuses what it would refuse."""
        snapshots = tuple(self.before.snapshots)
        size = self.before.virtual_size
        if self.wanted.state == "present":
            seconds, nanoseconds = self.wanted.date
            snapshots += (
                operations.Snapshot(
                    id=b"",
                    name=self.wanted.name,
                    date_seconds=seconds,
                    date_nanoseconds=nanoseconds,
                    vm_state_size=0,
                    vm_clock=0,
                    icount=0,
                    disk_size=size,
                ),
            )
        elif self.wanted.state == "absent":
            snapshots = tuple(snapshot for snapshot in snapshots if snapshot is not self.found)
        elif self.comparison is not None:
            self._foresee_refusal(self.comparison)
            size = self.comparison.disk_size
        self.after = operations.SnapshotList(snapshots=snapshots, virtual_size=size, report=self.before.report)

    def _foresee_refusal(self, comparison: operations.Comparison) -> None:
        """What keeps a guest from applying a snapshot, as far as reading tells."""
        image = errors.clean(self.path)
        info = self.subject.run(operations.image_info)
        if info.bitmap_count:
            raise errors.SnapshotError(
                f"{image}: the image has {info.bitmap_count} persistent bitmaps, which would be wrong afterwards. "
                f"Remove them first: qemu-img bitmap --remove {errors.quote(self.path)} NAME.",
                code="has_bitmaps",
            )
        if comparison.same_size:
            return
        sizes = f"{image}: the disk has {self.before.virtual_size} bytes, the snapshot {comparison.disk_size}."
        if not self.wanted.allow_resize:
            raise errors.SnapshotError(
                f"{sizes} Set allow_resize to true, if a disk of that size is what you want.", code="resize_not_allowed"
            )
        if info.version == 2:
            raise errors.SnapshotError(
                f"{sizes} A version 2 image with snapshots cannot be resized. Make it version 3 first: "
                f"qemu-img amend -o compat=1.1 {errors.quote(self.path)}.",
                code="resize_v2",
            )


def _text(option: str, value: str | None, limit: int) -> bytes:
    """The option's value as it stands in an image; b"" when it was not given. Raises ArgumentError."""
    if value is None:
        return b""
    data: bytes = to_bytes(value, errors="surrogate_or_strict")
    if not data:
        raise errors.ArgumentError(f"{option} is empty. Leave it out, or give it a value.", "empty_name")
    if len(data) > limit:
        raise errors.ArgumentError(
            f"{option} has {len(data)} bytes, the format has room for {limit}. Choose a shorter one.", "name_too_long"
        )
    if any(ord(character) < 32 or 127 <= ord(character) < 160 for character in value):
        raise errors.ArgumentError(
            f"{option} contains control characters: '{errors.clean(value)}'. Choose a plain one.", "control_character"
        )
    return data
