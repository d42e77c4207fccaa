# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be told of a name out of an image by looking at the name alone: no file is touched here.

A path is a tuple of its parts here, see places.parts_of().
"""

from __future__ import annotations

import typing as t

from ..guests._limits import BACKING_NAME_MAX
from .places import Parts, parts_of

PART_MAX = 255  # bytes: no file system has longer names


class Reference(t.NamedTuple):
    """A name and where it stands. name: bytes of the image's maker. role: "backing" or "data_file". image: the path of
    the image that names it. descriptor_sectors: of the text that has the name, in a vmdk image; 0: of another format.
    """

    name: bytes
    role: str
    image: str
    descriptor_sectors: int = 0


class NameRuleError(Exception):
    """A name breaks a rule: its one argument is the rule, a key of reference_refusals.WORDINGS."""


def check_form(name: bytes) -> None:
    """Raises NameRuleError for what cannot be the name of a file, or would be none to qemu."""
    if not name:
        raise NameRuleError("name_empty")
    if b"\0" in name:
        raise NameRuleError("name_nul")
    # path_has_protocol() of qemu 10.0.2, block.c: any colon before the first slash.
    if b":" in name.split(b"/", 1)[0]:
        raise NameRuleError("protocol")
    if len(name) > BACKING_NAME_MAX or any(len(part) > PART_MAX for part in name.split(b"/")):
        raise NameRuleError("name_long")
    if name.rsplit(b"/", 1)[-1] in (b"", b".", b".."):
        raise NameRuleError("not_regular")


def check_place(name: bytes, home: Parts, directories: t.Iterable[Parts], files: t.Container[Parts]) -> None:
    """Raises NameRuleError for a name that leads, as it reads, neither into one of the directories nor to one of
    the files.

    home: the directory that a relative name starts from; no symbolic link is in it.
    """
    absolute = name.startswith(b"/")
    landing: list[bytes] = [] if absolute else list(home)
    for part in parts_of(name):
        if part != b"..":
            landing.append(part)
        elif landing:
            landing.pop()
    path = tuple(landing)
    if path not in files and not any(is_below(path, directory) for directory in directories):
        raise NameRuleError("absolute" if absolute else "outside")


def is_below(path: Parts, directory: Parts) -> bool:
    """Whether a path begins with the directory's and goes on. Both as they read."""
    return len(path) > len(directory) and path[: len(directory)] == directory


def reduce(start: Parts, parts: t.Iterable[bytes], known: t.Container[Parts]) -> Parts:
    """A path from the root of the file system: `parts`, seen from `start`.

    ".." take back a part as long as what is left then is one of `known`, directories that the operator named and what
    is above them. Behind others they stay: whether they lead back there is for the file system to say.
    """
    path = list(start)
    for part in parts:
        if part == b".." and tuple(path) in known:
            del path[-1:]
        else:
            path.append(part)
    return tuple(path)
