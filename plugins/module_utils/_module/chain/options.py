# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task of qcow2_chain asks for: its options, checked before any image is opened."""

from __future__ import annotations

import contextlib
import typing as t

from ...sandbox import errors
from ...sandbox.host.places import Place, find_place
from ..arguments import check_timeout
from ..group import check_named_once
from ..progress_file import find_progress_file
from ..sizes import parse_rate
from .access import WantedAccess


class ChainWanted:
    """What the task asks for. layers: paths, the top first; places: the same, looked up. missing: how many of them are
    still to be created. rate: bytes a second, 0: not limited. progress_file: its place, or None. Places are open until
    the end of a `with`."""

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        self.layers: list[str] = params["layers"][::-1]
        self.method: str = params["method"]
        self.flatten: bool = params["flatten"]
        self.drop: bool = params["drop"]
        self.compressed: bool = params["compressed"]
        self.allow_resize: bool = params["allow_resize"]
        self.backing_format: str | None = params["backing_format"]
        self.allowed_roots: list[str] = params["allowed_roots"]
        self.siblings: list[str] = params["siblings"]
        self.scan: bool = params["scan"]
        self.rate = parse_rate(params["rate_limit"])
        self.access = WantedAccess(params)
        self.follow_links: bool = params["follow_links"]
        self.timeout = check_timeout(params["timeout"])
        if not self.layers:
            raise errors.ArgumentError("layers is empty. Name at least one image in it.", "no_layers")
        with contextlib.ExitStack() as stack:
            progress_file = find_progress_file(params["progress_file"], self.follow_links)
            self.progress_file = stack.enter_context(progress_file) if progress_file else None
            self.places = [stack.enter_context(find_place(path, self.follow_links)) for path in self.layers]
            self.missing = self._count_missing()
            self._check_named_once()
            self._stack = stack.pop_all()

    def __enter__(self) -> ChainWanted:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    @property
    def existing(self) -> list[Place]:
        """Those that are there, the top first."""
        return self.places[self.missing :]

    @property
    def created(self) -> list[Place]:
        """Those that are still to be created, from the lowest up."""
        return self.places[: self.missing][::-1]

    def _count_missing(self) -> int:
        """Raises ArgumentError when one is missing that another one stands on."""
        # A link that leads nowhere is there: no overlay is created in its place.
        there = [place.there or place.linked for place in self.places]
        missing = there.index(True) if True in there else 0
        if not all(there[missing:]):
            missing = len(there) - 1 - there[::-1].index(False)
            path = self.layers[missing]
            raise errors.ArgumentError(
                f"{errors.quote(path)} is not there. Only what stands on top of all others is created; look whether "
                "the path is right.",
                "layer_not_found",
            )
        return missing

    def _check_named_once(self) -> None:
        """Raises ArgumentError for one file that is named twice, or one path that is to be created twice."""
        check_named_once(self.places[::-1], "layers", "each layer")
        for index, place in enumerate(self.created):
            for other in self.created[:index]:
                if place.name == other.name and place.directory.is_same(other.directory):
                    raise errors.ArgumentError(
                        f"{errors.quote(place.path)} and {errors.quote(other.path)} are the same file. Name each layer "
                        "once.",
                        "duplicate_path",
                    )
