# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other overlays that stand on files of a chain: what they show must not change."""

from __future__ import annotations

import os
import typing as t

from ..sandbox import errors, info, rebases
from ..sandbox.chain import open_chain
from ..sandbox.images import Image, Limits
from .commit import Clock

if t.TYPE_CHECKING:
    from .chain_wanted import Wanted

Key = tuple[int, int]


class Sibling(t.NamedTuple):
    """An overlay that is no part of the chain. below: the files that it stands on, as Layer.key tells them apart."""

    path: str
    below: frozenset[Key]


def find_siblings(wanted: Wanted, own: t.Mapping[Key, str], clock: Clock) -> list[Sibling]:
    """Those that the task names, and those that a scan finds. own: the files of the chain itself, which are none.

    What is scanned are the directories of these files, and the allowed roots, with all below. Images that may not be
    read, or are no qcow2 images, are passed over. Raises what open_chain() raises, for one that the task names.
    """
    # A name that leads to a file of the chain is what is looked for, wherever it stands.
    roots = [*wanted.allowed_roots, *own.values()]
    found = [_named(path, roots, wanted, clock) for path in wanted.siblings]
    if wanted.scan:
        seen: set[Key] = set()
        places = [*(os.path.dirname(path) or "." for path in own.values()), *wanted.allowed_roots]
        for directory in dict.fromkeys(map(os.path.realpath, places)):
            found += [each for path in _files(directory, seen, own) for each in _scanned(path, roots, clock)]
    return found


def _named(path: str, roots: t.Sequence[str], wanted: Wanted, clock: Clock) -> Sibling:
    """Shared with whoever uses it: only its header is looked at."""
    with open_chain(
        path,
        backing_format=wanted.backing_format,
        allowed_roots=roots,
        force_share=True,
        limits=Limits(seconds=clock.left()),
    ) as chain:
        clock.reports += chain.reports
        return Sibling(path, frozenset(layer.key for layer in chain.layers[1:]))


def _scanned(path: str, roots: t.Sequence[str], clock: Clock) -> list[Sibling]:
    """At most one: what the image stands on itself. Whatever stands on that is found in its own place."""
    try:
        with Image.open(path, force_share=True) as image:
            header = info.image_info(image, Limits(seconds=clock.left()))
            clock.reports.append(header.report)
            if not header.backing_name:
                return []
            return [Sibling(path, frozenset([rebases.leads_to(header.backing_name, path, roots)]))]
    except (errors.TimeLimitError, errors.JailError):
        raise
    except errors.AirlockError:
        return []


def _files(directory: str, seen: set[Key], own: t.Container[Key]) -> t.Iterator[str]:
    """Regular files in the directory and below, each once. No symbolic link is followed."""
    for place, _directories, names in os.walk(directory):
        for name in sorted(names):
            path = os.path.join(place, name)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            key = (status.st_dev, status.st_ino)
            if key in seen or key in own or (status.st_mode & 0o170000) != 0o100000:
                continue
            seen.add(key)
            yield path
