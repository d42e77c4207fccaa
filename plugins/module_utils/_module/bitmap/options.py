# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task of qcow2_bitmap asks for: its options, checked before any file is opened."""

from __future__ import annotations

import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ...sandbox import errors
from ...sandbox.guests._limits import BITMAP_NAME_MAX
from ...sandbox.images import bitmaps
from ..arguments import image_text
from ..options import check_given, settle_paths
from ..sizes import parse_size

MERGE_ARGUMENTS: dict[str, dict[str, t.Any]] = {
    "name": {"type": "str", "required": True},
    "path": {"type": "str"},
    "format": {"type": "str", "choices": ["qcow2"], "default": "qcow2"},
    "ignore_missing": {"type": "bool", "default": False},
}


class Merge(t.NamedTuple):
    """A bitmap that is merged. path: the image that it is in, None: the image of the task itself.

    ignore_missing: whether it need not be there.
    """

    name: bytes
    path: str | None
    ignore_missing: bool

    def __str__(self) -> str:
        name = f"'{errors.clean(self.name)}'"
        return name if self.path is None else f"{name} of {errors.clean(self.path)}"


class BitmapWanted:
    """What the task asks for. granularity: bytes, 0: not given; enabled None: not given; merges without no-ops."""

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        self.state: str = params["state"]
        self.damaged: bool = params["damaged"]
        # Who may take a bitmap of a strange name away must be able to name it.
        self.name = self._name(params["name"])
        self.granularity = parse_granularity(params["granularity"])
        self.recreate: bool = params["recreate"]
        self.enabled: bool | None = params["enabled"]
        self.cleared: bool = params["cleared"]
        merges = [parse_merge(number, value) for number, value in enumerate(params["merge"], 1)]
        self.merges = tuple(dict.fromkeys(m for m in merges if m.path is not None or m.name != self.name))
        if self.state == "absent" and (merges or self.cleared):
            raise errors.ArgumentError(
                f"{'merge' if merges else 'cleared'} says what a bitmap is to hold, and state is 'absent'. Use it with "
                "state 'present', and remove the bitmap in a task of its own.",
                "only_with_present",
            )

    def _name(self, name: str | None) -> bytes:
        """Raises ArgumentError."""
        if not self.damaged:
            return image_text("name", name or "", BITMAP_NAME_MAX, plain=self.state == "present")
        if self.state != "absent" or name is not None:
            raise errors.ArgumentError(
                "damaged is about all bitmaps that are damaged. Use it with state 'absent' and without name.",
                "damaged_alone",
            )
        return b""

    def __str__(self) -> str:
        return f"'{errors.clean(self.name)}'"


def parse_granularity(value: str | None) -> int:
    """Bytes; 0 when it was not given. Raises ArgumentError."""
    if value is None:
        return 0
    size = parse_size(value.strip()) or 0
    if not bitmaps.GRANULARITY_MIN <= size <= bitmaps.GRANULARITY_MAX or size & (size - 1):
        raise errors.ArgumentError(
            f"granularity is '{errors.clean(value, 80)}'. It must be a power of two from 512 bytes to 2 GiB, such as "
            "65536, 64k, 64KiB or 1M.",
            "bad_granularity",
        )
    return size


def parse_merge(number: int, value: t.Any) -> Merge:
    """The element of merge with this number, counted from 1: a name, or a dictionary. Raises ArgumentError."""
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        value = {"name": str(value)}
    elif not isinstance(value, dict):
        raise _bad_merge(number, "neither a name nor a dictionary with name, path and format")
    try:
        check_given(MERGE_ARGUMENTS, value, "merge")
    except errors.ArgumentError as error:
        raise _bad_merge(number, f"not valid: {error.message}") from error
    checked = ArgumentSpecValidator(MERGE_ARGUMENTS).validate(value)
    if checked.error_messages:
        raise _bad_merge(number, f"not valid: {' '.join(checked.error_messages)}")
    values = checked.validated_parameters
    settle_paths(values)
    name = image_text(f"name in element {number} of merge", values["name"], BITMAP_NAME_MAX, plain=False)
    return Merge(name, values["path"], values["ignore_missing"])


def _bad_merge(number: int, what: str) -> errors.ArgumentError:
    return errors.ArgumentError(
        f"Element {number} of merge is {errors.clean(what)}. Give the name of a bitmap of the image itself, or a "
        "dictionary with name and path for one of another image.",
        "bad_merge",
    )
