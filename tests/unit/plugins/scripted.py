# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for sandbox.operations: a list of the calls that must come, in order, each with its answer."""

from __future__ import annotations

import typing as t

LAYERS = ("kvm", "seccomp")


class Step(t.NamedTuple):
    """One expected call. gives: what it returns, or an exception that it raises."""

    name: str
    arguments: tuple[t.Any, ...]
    gives: t.Any


class Script:
    """Images are known by their paths here; a call is its name and its arguments."""

    def __init__(self, operations: t.Any, bitmaps: t.Any) -> None:
        self.operations = operations
        self.bitmaps = bitmaps
        self.steps: list[Step] = []
        self.Image: t.Any = None
        self.seconds: list[float] = []  # the time limits that the calls were given
        self.report = operations.Report(
            layers=LAYERS, exits=3, bytes_read=0, bytes_written=0, milliseconds=2.5, peak_memory=0
        )

    def expect(self, name: str, *arguments: t.Any, gives: t.Any = None) -> Script:
        """The next call must be this one."""
        self.steps.append(Step(name, arguments, gives))
        return self

    def call(self, name: str, *arguments: t.Any) -> t.Any:
        """A call that comes; it must be the next one."""
        assert self.steps, f"nothing more was expected, but {name}{arguments} came"
        step = self.steps.pop(0)
        assert (name, arguments) == (step.name, step.arguments)
        if isinstance(step.gives, Exception):
            raise step.gives
        return step.gives

    def finish(self) -> None:
        assert not self.steps, f"these calls never came: {self.steps}"

    def stand_ins(self) -> dict[str, t.Any]:
        """What takes the place of which name in operations."""
        script = self

        class Image:
            def __init__(self, path: str, place: t.Any = None) -> None:
                self.path = path
                self.place = place
                self.key = place.key if place else None

            def __eq__(self, other: object) -> bool:
                return isinstance(other, Image) and self.path == other.path

            def __hash__(self) -> int:
                return hash(self.path)

            @classmethod
            def open(cls, place: t.Any, writable: bool = False, force_share: bool = False) -> t.Any:
                with place:
                    script.call("open", place.path, writable, force_share)
                    return cls(place.path, place)

            def __enter__(self) -> t.Any:
                return self

            def __exit__(self, *_exception: object) -> None:
                script.call("close", self.path)

        class Transaction:
            def __init__(self, images: t.Sequence[Image]) -> None:
                self.paths = [image.path for image in images]
                self.kept = False

            def __enter__(self) -> t.Any:
                script.call("begin", *self.paths)
                return self

            def keep(self) -> None:
                script.call("keep")
                self.kept = True

            def __exit__(self, *_exception: object) -> None:
                if not self.kept:
                    script.call("undo")

        def function(name: str) -> t.Callable[..., t.Any]:
            def stand_in(image: Image, *arguments: t.Any, limits: t.Any, progress: t.Any = None) -> t.Any:
                assert progress is None  # no task here has a progress_file
                script.seconds.append(limits.seconds)
                return script.call(name, image.path, *arguments)

            return stand_in

        names = ("list_snapshots", "image_info", "compare_snapshot")
        changes = ("create_snapshot", "apply_snapshot", "delete_snapshot")
        of_bitmaps = ("list_bitmaps", "change_bitmap")
        self.Image = Image
        functions = {name: function(name) for name in names + changes + of_bitmaps}
        return {"Image": Image, "Transaction": Transaction, **functions}

    def image(self, path: str) -> t.Any:
        """What a call is given for an image that was opened."""
        return self.Image(path)

    # ---- answers ----------------------------------------------------------------------------------------

    def snapshot(self, number: int, name: bytes, disk_size: int = 1 << 20) -> t.Any:
        """A snapshot with this id, taken at 1,600,000,000 + number."""
        return self.operations.Snapshot(
            id=b"%d" % number,
            name=name,
            date_seconds=1_600_000_000 + number,
            date_nanoseconds=7,
            vm_state_size=0,
            vm_clock=0,
            icount=0,
            disk_size=disk_size,
        )

    def listed(self, *snapshots: t.Any, virtual_size: int = 1 << 20) -> t.Any:
        return self.operations.SnapshotList(snapshots, virtual_size, self.report)

    def created(self, number: int, *now: t.Any) -> t.Any:
        return self.operations.Created(b"%d" % number, 0, self.report, self.listed(*now))

    def deleted(self, *now: t.Any, leaked: int = 0) -> t.Any:
        return self.operations.Deleted(9, leaked, self.report, self.listed(*now))

    def applied(self, *now: t.Any, virtual_size: int = 1 << 20, resized: bool = False) -> t.Any:
        listed = self.listed(*now, virtual_size=virtual_size)
        return self.operations.Applied(virtual_size, resized, 0, self.report, listed)

    def compared(self, differing: int, disk_size: int = 1 << 20, same_size: bool = True) -> t.Any:
        equal = not differing and same_size
        return self.operations.Comparison(equal, same_size, disk_size, differing, self.report)

    def info(self, **facts: t.Any) -> t.Any:
        """A plain version 3 image, but for the facts given."""
        plain = {
            "version": 3,
            "virtual_size": 1 << 20,
            "file_size": 196624,
            "cluster_size": 65536,
            "refcount_bits": 16,
            "encryption": None,
            "compression_type": "zlib",
            "incompatible_features": 0,
            "compatible_features": 0,
            "autoclear_features": 0,
            "l1_entries": 1,
            "bitmap_count": 0,
            "backing_name": b"",
            "backing_format": b"",
            "data_file": b"",
            "snapshots": (),
            "report": self.report,
        }
        return self.operations.ImageInfo(**{**plain, **facts})

    # ---- answers about bitmaps ---------------------------------------------------------------------------

    def bitmap(
        self,
        name: bytes,
        dirty: int | None = 0,
        granularity: int = 65536,
        recording: bool = True,
        in_use: bool = False,
        stale: bool = False,
    ) -> t.Any:
        """A bitmap with so many dirty bits."""
        count = None if in_use or stale else dirty
        size = None if count is None else count * granularity
        return self.bitmaps.Bitmap(name, granularity, recording, in_use, stale, size, count)

    def with_bitmaps(
        self,
        *bitmaps: t.Any,
        extents: t.Sequence[tuple[int, int]] = (),
        end: int = 1 << 20,
        virtual_size: int = 1 << 20,
    ) -> t.Any:
        found = tuple(self.bitmaps.Extent(*extent) for extent in extents)
        return self.bitmaps.BitmapList(bitmaps, virtual_size, found, end, self.report)

    def bitmaps_changed(self, *now: t.Any, changed: bool = True, leaked: int = 0) -> t.Any:
        return self.bitmaps.BitmapChange(changed, now, 1 << 20, 3, leaked, self.report)
