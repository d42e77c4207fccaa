# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The form in which refusals.py and vmdk_refusals.py tell what a refusal of the guest means, and how it is found."""

from __future__ import annotations

import functools
import typing as t

from ..guests import _abi

# What many messages advise; all there is stands in advice.py.
RESTORE = "{restore}"


def edit_descriptor(image: str, sectors: int) -> str:
    """How the descriptor of a vmdk image is corrected. image: its path, for a shell. sectors: of the descriptor."""
    return (
        f'"dd if={image} of=descriptor.txt bs=512 skip=1 count={sectors}" takes it out; when it is corrected, '
        f'"truncate -s {512 * sectors} descriptor.txt" and '
        f'"dd if=descriptor.txt of={image} bs=512 seek=1 conv=notrunc" put it back.'
    )


class Wording(t.NamedTuple):
    """How a refusal is told.

    kind: name of the exception class in errors.py. message: what is wrong and what to do next, without the image's
    path. A way of advice.py is a field in it.
    """

    kind: str
    message: str


@functools.cache
def names_of(enum: str, prefix: str) -> dict[int, str]:
    """The names in an enum of guest/abi by their numbers, in lower case and without the prefix."""
    elements = _abi.load().typeof(f"enum {enum}").elements
    return {number: name[len(prefix) :].lower() for number, name in elements.items()}
