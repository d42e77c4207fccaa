# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task of qcow2_commit asks for: its options, checked before any image is opened."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ...sandbox import errors
from ...sandbox.host.places import find_place
from ...sandbox.images.chain import Layer
from ..arguments import check_timeout
from ..progress_file import find_progress_file
from ..removal import check_no_device
from ..sizes import parse_rate


class CommitWanted:
    """What the task asks for. base None: the layer below the overlay. rate: bytes a second, 0: not limited. place: of
    the overlay. progress_file: the place of that, or None. Both are open until the end of a `with`."""

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        self.path: str = params["path"]
        self.format: str = params["format"]
        self.base = None if params["base"] is None else os.fsencode(params["base"])
        self.drop: bool = params["drop"]
        self.allow_resize: bool = params["allow_resize"]
        self.bitmaps: str = params["bitmaps"]
        self.backing_format: str | None = params["backing_format"]
        self.allowed_roots: list[str] = params["allowed_roots"]
        self.rate = parse_rate(params["rate_limit"])
        self.timeout = check_timeout(params["timeout"])
        with contextlib.ExitStack() as stack:
            progress_file = find_progress_file(params["progress_file"], params["follow_links"])
            self.progress_file = stack.enter_context(progress_file) if progress_file else None
            self.place = stack.enter_context(find_place(self.path, params["follow_links"], writable=True))
            self._stack = stack.pop_all()

    def __enter__(self) -> CommitWanted:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def is_gone(self) -> bool:
        """Whether the overlay is not there, and its directory is: an earlier run can have removed it. A link to it
        stays."""
        return not self.place.there

    def check_removable(self, overlay: Layer) -> None:
        """Raises ArgumentError for what is no file, and for an overlay with snapshots: no commit takes them along."""
        check_no_device(overlay)
        path = errors.quote(self.path)
        if overlay.info and overlay.info.snapshots:
            raise errors.ArgumentError(
                f"{path} has snapshots ({len(overlay.info.snapshots)}), which would go with it. Delete them first "
                "(qcow2_snapshot), or leave drop out.",
                "drop_loses",
            )
