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
from ..sandbox.references import Key, file_key
from .commit import Clock

if t.TYPE_CHECKING:
    from .chain_wanted import Wanted

_SHOWN_MAX = 5


class Sibling(t.NamedTuple):
    """An overlay that is no part of the chain. below: the files that it stands on, as Layer.key tells them apart."""

    path: str
    below: frozenset[Key]


class Search(t.NamedTuple):
    """What was found. unclear: images that may stand on the chain: no name may lead to what they stand on, or that
    could not be found out."""

    siblings: list[Sibling]
    unclear: list[str]


def find_siblings(wanted: Wanted, own: t.Mapping[Key, str], clock: Clock) -> Search:
    """Those that the task names, and those that a scan finds. own: the files of the chain itself, which are none.

    What is scanned are the directories of these files, and the allowed roots, with all below. Files that cannot be
    opened, or are no qcow2 images, are passed over. Raises what open_chain() raises, for one that the task names;
    HostError, JailError, TimeLimitError, for the scan could not go on.
    """
    # A name that leads to a file of the chain is what is looked for, wherever it stands.
    roots = [*wanted.allowed_roots, *own.values()]
    found = Search([_named(path, roots, wanted, clock) for path in wanted.siblings if _key(path) not in own], [])
    if wanted.scan:
        seen: set[Key] = set()
        homes = [os.path.dirname(path) or "." for path in own.values() if os.path.isfile(path)]
        for place in dict.fromkeys(map(os.path.realpath, [*homes, *wanted.allowed_roots])):
            for path in _files(place):
                key = _key(path)
                if key is not None and key not in seen and key not in own:
                    seen.add(key)
                    _scan(path, roots, clock, found)
    return found


def unclear_warning(paths: t.Sequence[str]) -> str:
    """For a person."""
    shown = ", ".join(errors.quote(path) for path in paths[:_SHOWN_MAX])
    more = f" and {len(paths) - _SHOWN_MAX} more" if len(paths) > _SHOWN_MAX else ""
    return (
        f"scan has found images of which it is not known whether they stand on files of this chain: {shown}{more}. "
        "Their backing files are in places where no name may lead, or they could not be read as qcow2 images. Add such "
        "places to allowed_roots to have that looked at, and look at the others with qcow2_info."
    )


def _key(path: str) -> Key | None:
    """None: there is nothing that can be looked at."""
    try:
        return file_key(os.stat(path))
    except (OSError, ValueError):
        return None


def _named(path: str, roots: t.Sequence[str], wanted: Wanted, clock: Clock) -> Sibling:
    """A qcow2 image, or a vmdk image."""
    try:
        return _opened(path, "qcow2", roots, wanted, clock)
    except errors.NotQcow2Error as error:
        try:
            return _opened(path, "vmdk", roots, wanted, clock)
        except errors.HeaderError as other:
            if other.code != "not_vmdk":
                raise
            raise error from other


def _opened(path: str, format_name: str, roots: t.Sequence[str], wanted: Wanted, clock: Clock) -> Sibling:
    """Shared with whoever uses it: only its header is looked at."""
    with open_chain(
        path,
        backing_format=wanted.backing_format,
        allowed_roots=roots,
        force_share=True,
        limits=Limits(seconds=clock.left()),
        top_format=format_name,
    ) as chain:
        clock.reports += chain.reports
        return Sibling(path, frozenset(layer.key for layer in chain.layers[1:]))


def _scan(path: str, roots: t.Sequence[str], clock: Clock, found: Search) -> None:
    """Looks at what one image stands on itself. Whatever stands on that is found in its own place."""
    try:
        try:
            with Image.open(path, force_share=True) as image:
                header = info.image_info(image, Limits(seconds=clock.left()))
        except (errors.ImageOpenError, errors.NotQcow2Error):
            return
        clock.reports.append(header.report)
        if header.backing_name:
            below = rebases.leads_to(header.backing_name, path, roots)
            found.siblings.append(Sibling(path, frozenset([below])))
    except (errors.HostError, errors.JailError, errors.TimeLimitError):
        raise
    except errors.AirlockError as error:
        if error.code != "backing_not_found":
            found.unclear.append(path)


def _files(place: str) -> t.Iterator[str]:
    """Regular files in a directory and below; no symbolic link is followed. What is no directory is one itself."""
    if not os.path.isdir(place):
        yield place
    for directory, _directories, names in os.walk(place):
        for name in sorted(names):
            path = os.path.join(directory, name)
            if not os.path.islink(path) and os.path.isfile(path):
                yield path
