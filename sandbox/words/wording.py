# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The form in which the tables of this room tell what a refusal of the guest means, and how it is found."""

from __future__ import annotations

import functools
import typing as t

from ..guests import _abi

# What many messages advise; all there is stands in advice.py.
RESTORE = "{restore}"


class Wording(t.NamedTuple):
    """How a refusal is told.

    kind: name of the exception class in errors.py. message: what is wrong and what to do next, without the image's
    path. A way of advice.py is a field in it.
    """

    kind: str
    message: str


def _no_fields(_refusal: str, _text: bytes, _fields: t.Any) -> dict[str, str]:
    return {}


class Words(t.NamedTuple):
    """What the guests of a family refuse, in words.

    wordings: by the name of the refusal. fields: what only these texts can quote, from the refusal's name, its text and
    what all can quote (advice.Fields).
    """

    wordings: t.Mapping[str, Wording]
    fields: t.Callable[[str, bytes, t.Any], dict[str, str]] = _no_fields


@functools.cache
def names_of(enum: str, prefix: str) -> dict[int, str]:
    """The names in an enum of guest/abi by their numbers, in lower case and without the prefix."""
    elements = _abi.load().typeof(f"enum {enum}").elements
    return {number: name[len(prefix) :].lower() for number, name in elements.items()}
