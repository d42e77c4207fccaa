# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task of qcow2_chain asks for: its options, checked before any image is opened."""

from __future__ import annotations

import os
import typing as t

from ..sandbox import errors
from .commit_wanted import parse_rate
from .progress_file import check_place


class Wanted:
    """What the task asks for. layers: paths, the top first. missing: how many of them are still to be created. rate:
    bytes a second, 0: not limited."""

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
        self.progress_file: str | None = params["progress_file"]
        self.timeout: int = params["timeout"]
        if self.timeout < 1:
            raise errors.ArgumentError(f"timeout is {self.timeout} seconds. It must be at least 1.", "bad_timeout")
        if not self.layers:
            raise errors.ArgumentError("layers is empty. Name at least one image in it.", "no_layers")
        check_place(self.progress_file)
        self.missing = self._count_missing()
        self._check_named_once()

    @property
    def existing(self) -> list[str]:
        """Those that are there, the top first."""
        return self.layers[self.missing :]

    def _count_missing(self) -> int:
        """Raises ArgumentError when one is missing that another one stands on."""
        there = [os.path.lexists(path) for path in self.layers]
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
        seen: dict[object, str] = {}
        for path in self.layers:
            try:
                status = os.stat(path)
                key: object = (status.st_dev, status.st_ino)
            except OSError:  # one that is to be created; of the others, opening will say what is wrong
                key = os.path.realpath(path)
            if key in seen:
                raise errors.ArgumentError(
                    f"{errors.quote(path)} and {errors.quote(seen[key])} are the same file. Name each layer once.",
                    "duplicate_path",
                )
            seen[key] = path
