# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The typed face of the sandbox: what can be asked about an image, and what can be done to it.

    with Image.open("disk.qcow2", writable=True) as image:
        create_snapshot(image, b"before-upgrade", (1_700_000_000, 0))

Each function boots one guest, which reads the image; here nothing of its content is looked at. All raise subclasses of
errors.AirlockError: refusals of the guest, a guest that misbehaves, a host that lacks something.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from . import calls, disks, errors, locks, machine
from .calls import Selector, Snapshot
from .listing import format_listing
from .machine import Limits, Report

if t.TYPE_CHECKING:
    from .journal import UndoJournal

__all__ = [
    "Applied",
    "Comparison",
    "Created",
    "Deleted",
    "Image",
    "ImageInfo",
    "Limits",
    "Report",
    "Selector",
    "Snapshot",
    "SnapshotList",
    "Transaction",
    "apply_snapshot",
    "compare_snapshot",
    "create_snapshot",
    "delete_snapshot",
    "format_listing",
    "image_info",
    "list_snapshots",
]

_FAMILY = "snapshot"
_DATE_MAX = (1 << 32) - 1


class SnapshotList(t.NamedTuple):
    """The snapshots in table order, and the size of the disk in bytes."""

    snapshots: tuple[Snapshot, ...]
    virtual_size: int
    report: Report


class ImageInfo(t.NamedTuple):
    """Facts of the format. Sizes in bytes; names as they stand in the image, unchecked."""

    version: int
    virtual_size: int
    file_size: int
    cluster_size: int
    refcount_bits: int
    encryption: str | None  # "aes", "luks"
    compression_type: str  # "zlib", "zstd"
    incompatible_features: int
    compatible_features: int
    autoclear_features: int
    l1_entries: int
    bitmap_count: int
    backing_name: bytes
    backing_format: bytes
    data_file: bytes
    snapshots: tuple[Snapshot, ...]
    report: Report

    @property
    def dirty(self) -> bool:
        """Whoever wrote to it last did not close it: refcounts may be wrong."""
        return bool(self.incompatible_features & 1)

    @property
    def corrupt(self) -> bool:
        """qemu has found contradictions in it."""
        return bool(self.incompatible_features & 2)

    @property
    def extended_l2(self) -> bool:
        """Clusters are divided into subclusters."""
        return bool(self.incompatible_features & 16)

    @property
    def lazy_refcounts(self) -> bool:
        """Refcounts may be updated late."""
        return bool(self.compatible_features & 1)


class Comparison(t.NamedTuple):
    """The active mapping beside a snapshot's. disk_size: the snapshot's, in bytes; differing_clusters: of the disk."""

    equal: bool
    same_size: bool
    disk_size: int
    differing_clusters: int
    report: Report


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


class Image:
    """An opened and locked image. Closing it drops the locks.

    path: as given. disk: the open file. lock: what is held. journal: set while a Transaction runs.
    """

    def __init__(self, path: str, disk: disks.Disk, lock: locks.Lock) -> None:
        self.path = path
        self.disk = disk
        self.lock = lock
        self.journal: UndoJournal | None = None

    @classmethod
    def open(cls, path: str | bytes, writable: bool = False, force_share: bool = False) -> Image:
        """Opens the file and takes qemu's locks before anything is read.

        force_share: reads even what a virtual machine holds, and forbids nothing to others.
        Raises ImageOpenError, ImageInUseError, ForceShareError.
        """
        name = os.fsdecode(path)
        if writable and force_share:
            raise errors.force_share_error(name)
        disk = disks.open_disk(name, writable)
        try:
            lock = locks.lock_image(disk.descriptor, name, writable, force_share)
        except BaseException:
            disk.close()
            raise
        return cls(name, disk, lock)

    def close(self) -> None:
        self.disk.close()

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Transaction:
    """Changes of several images, all or none: every change is undone unless keep() was called.

        with Transaction(images) as transaction:
            for image in images: create_snapshot(image, name, date)
            transaction.keep()

    An exception inside undoes everything and goes on.
    """

    def __init__(self, images: t.Sequence[Image]) -> None:
        self.images = tuple(images)

    def __enter__(self) -> Transaction:
        from .journal import UndoJournal  # who only reads does not load it

        for image in self.images:
            try:
                image.journal = UndoJournal(image.disk)
            except OSError as error:
                self._disarm()
                raise errors.NoJournalError(
                    f"There is no place to note what {errors.clean(image.path)} was like before the change: "
                    f"{os.strerror(error.errno or 0)}. Make room in its directory, or in the one for temporary files."
                ) from error
        return self

    def __exit__(self, kind: object, _exception: object, _traceback: object) -> None:
        if any(image.journal for image in self.images):
            self.undo()

    def keep(self) -> None:
        """The changes stay; what the operations freed is given back to the file system, as far as that can be done."""
        for image in self.images:
            if image.journal is not None:
                # Nothing refers to it any more. qemu ignores a discard that fails as well.
                with contextlib.suppress(OSError):
                    image.journal.keep()
        self._disarm()

    def undo(self) -> None:
        """Every image becomes what it was, to the byte and to its length.

        Raises TransactionError, after all were tried, when one could not be restored; it names each such image.
        """
        failures = []
        for image in self.images:
            if image.journal is None:
                continue
            try:
                image.journal.undo()
            except (OSError, errors.AirlockError) as error:
                failures.append(f"{errors.clean(image.path, 256)} ({errors.clean(str(error), 256)})")
        self._disarm()
        if failures:
            raise errors.TransactionError(
                f"These images were changed and could not be restored: {', '.join(failures)}. The others of the group "
                'are as they were. Look at each with "qemu-img check" and restore it from a backup.'
            )

    def _disarm(self) -> None:
        for image in self.images:
            if image.journal is not None:
                image.journal.close()
                image.journal = None


def list_snapshots(image: Image, limits: Limits | None = None) -> SnapshotList:
    """The snapshots of an image; none of them for one with an external data file, which can have none."""
    result, payload, report = _run(image, "list", limits=limits)
    return _list_of(result, payload, report)


def image_info(image: Image, limits: Limits | None = None) -> ImageInfo:
    """The facts of the image's header, and its snapshots."""
    result, payload, report = _run(image, "info", limits=limits)
    if result.version not in (2, 3) or not 9 <= result.cluster_bits <= 21 or result.refcount_order > 6:
        raise errors.GuestProtocolError("The guest's answer has an impossible version, cluster size or refcount width.")
    return ImageInfo(
        version=result.version,
        virtual_size=result.virtual_size,
        file_size=result.file_size,
        cluster_size=1 << result.cluster_bits,
        refcount_bits=1 << result.refcount_order,
        encryption=_one_of(("", "aes", "luks"), result.encryption, "encryption") or None,
        compression_type=_one_of(("zlib", "zstd"), result.compression_type, "compression"),
        incompatible_features=result.incompatible_features,
        compatible_features=result.compatible_features,
        autoclear_features=result.autoclear_features,
        l1_entries=result.l1_entries,
        bitmap_count=result.bitmap_count,
        backing_name=calls.text(result.backing_name, result.backing_name_length, 1023, "a backing file's name"),
        backing_format=calls.text(result.backing_format, result.backing_format_length, 15, "a backing file's format"),
        data_file=calls.text(result.data_file, result.data_file_length, 1023, "a data file's name"),
        snapshots=calls.snapshots(payload, result.snapshot_count),
        report=report,
    )


def compare_snapshot(image: Image, selector: Selector, limits: Limits | None = None) -> Comparison:
    """Whether the active mapping and the disk's size are those of a snapshot. Raises SnapshotNotFoundError."""
    _reject_unmatchable(image, selector, "apply", limits)
    result, _payload, report = _run(image, "compare", "apply", selector.shown(), limits, {"snapshot": selector})
    return Comparison(bool(result.equal), bool(result.same_size), result.disk_size, result.differing_clusters, report)


def create_snapshot(image: Image, name: bytes, date: tuple[int, int], limits: Limits | None = None) -> Created:
    """A new snapshot of the disk as it is now; another one may have the same name.

    name: at most 255 bytes without NUL, may be empty. date: seconds and nanoseconds since 1970, UTC.
    Raises ArgumentError for a bad name or date, RefusalError.
    """
    _check_name(name)
    seconds, nanoseconds = date
    if not (0 <= seconds <= _DATE_MAX and 0 <= nanoseconds < 1_000_000_000):
        raise errors.ArgumentError("A snapshot's date lies between 1970 and 2106. Set the clock, or give another date.")
    fields = {"date_seconds": seconds, "date_nanoseconds": nanoseconds, "name_length": len(name), "name": name}
    result, payload, report = _run(image, "create", "create", _shown(name), limits, fields)
    identifier = calls.text(result.id, result.id_length, calls.ID_MAX, "an id")
    return Created(identifier, result.header.leaked_clusters, report, _list_of(result, payload, report))


def apply_snapshot(image: Image, selector: Selector, allow_resize: bool, limits: Limits | None = None) -> Applied:
    """The disk becomes what it was at the snapshot; what was written since is lost.

    allow_resize: whether a snapshot of another disk size is applied as well, and resizes the disk.
    Raises SnapshotNotFoundError, RefusalError.
    """
    _reject_unmatchable(image, selector, "apply", limits)
    fields = {"snapshot": selector, "resize_allowed": int(allow_resize)}
    result, payload, report = _run(image, "apply", "apply", selector.shown(), limits, fields)
    now = _list_of(result, payload, report)
    return Applied(result.virtual_size, bool(result.resized), result.header.leaked_clusters, report, now)


def delete_snapshot(image: Image, selector: Selector, limits: Limits | None = None) -> Deleted:
    """The snapshot goes, and what only it referred to is freed. Raises SnapshotNotFoundError, RefusalError."""
    _reject_unmatchable(image, selector, "delete", limits)
    result, payload, report = _run(image, "delete", "delete", selector.shown(), limits, {"snapshot": selector})
    now = _list_of(result, payload, report)
    return Deleted(result.freed_clusters, result.header.leaked_clusters, report, now)


def _list_of(result: t.Any, payload: bytes, report: Report) -> SnapshotList:
    return SnapshotList(calls.snapshots(payload, result.snapshot_count), result.virtual_size, report)


def _run(
    image: Image,
    operation: str,
    verb: str = "open",
    name: str = "",
    limits: Limits | None = None,
    fields: t.Mapping[str, t.Any] | None = None,
) -> tuple[t.Any, bytes, Report]:
    """One guest for one operation: (result struct, payload, report). verb, name: for the wording of a refusal."""
    changes = operation in ("create", "apply", "delete")
    if changes and not image.disk.writable:
        raise errors.ArgumentError(f"{errors.clean(image.path)} was opened for reading. Open it writable to change it.")
    call = calls.build(operation, [image.disk.size], fields or {})
    try:
        answer = machine.run(_FAMILY, call, [image.disk], limits, image.journal if changes else None)
    except OSError as error:
        raise errors.HostError(
            f"The system has no means to start a guest: {os.strerror(error.errno or 0)}. Look at its limits of "
            "processes, descriptors and memory (ulimit -a)."
        ) from error
    result = calls.result(operation, answer.result)
    header = result.header
    if header.modified and not changes:
        raise errors.GuestProtocolError("The guest says that it wrote to an image which it was to read.")
    if header.code:
        raise errors.from_refusal(header, image.path, verb, name)
    return result, answer.payload, answer.report


def _reject_unmatchable(image: Image, selector: Selector, verb: str, limits: Limits | None) -> None:
    """A text longer than any id or name: the image is looked at all the same, so that its own faults come first."""
    if not selector.can_match():
        list_snapshots(image, limits)
        raise errors.snapshot_not_found(image.path, verb, selector.shown())


def _check_name(name: bytes) -> None:
    if len(name) > calls.NAME_MAX or b"\0" in name:
        raise errors.ArgumentError(
            f"A snapshot's name has at most {calls.NAME_MAX} bytes and no NUL; this one has {len(name)}. Shorten it.",
            "name_too_long" if len(name) > calls.NAME_MAX else "argument",
        )


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _one_of(names: tuple[str, ...], number: int, what: str) -> str:
    if number >= len(names):
        raise errors.GuestProtocolError(f"The guest's answer has the unknown {what} {number}.")
    return names[number]
