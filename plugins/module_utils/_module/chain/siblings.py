# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other overlays that stand on files of a chain: what they show must not change."""

from __future__ import annotations

import contextlib
import errno
import itertools
import stat
import typing as t

from ...sandbox import errors
from ...sandbox.host import ending
from ...sandbox.host.places import Directory, Key, Place, directory_at, find_place
from ...sandbox.host.trees import Tree
from ...sandbox.images import info, rebases, vmdk
from ...sandbox.images.chain import open_chain
from ...sandbox.images.image import Image
from ...sandbox.words import opening
from ..clock import Clock

if t.TYPE_CHECKING:
    from ...sandbox.images.chain import Layer
    from .options import ChainWanted

_SHOWN_MAX = 5
_NO_IMAGE = ("not_found", "is_directory", "not_regular")  # gone, or another thing since it was listed


class Sibling(t.NamedTuple):
    """An overlay that is no part of the chain. below: the files that it stands on, as Layer.key tells them apart."""

    path: str
    below: frozenset[Key | None]


class Search(t.NamedTuple):
    """What was found. unclear: images whose backing file the policy refuses, or could not be read: they may be
    overlays of this chain. closed: what became of the first file or directory that could not be opened: anything may be
    in there."""

    siblings: list[Sibling]
    unclear: list[str]
    closed: list[errors.AirlockError]


def find_siblings(wanted: ChainWanted, own: t.Mapping[Key, Layer], clock: Clock) -> Search:
    """Those that the task names, and those that a scan finds. own: the files of the chain itself, which are none.

    What is scanned are the directories of these files, and the allowed roots, with all below. What is neither a qcow2
    nor a vmdk image is passed over. Raises what open_chain() raises, for one that the task names; HostError, JailError,
    TimeLimitError, for the scan could not go on.
    """
    # A name that leads to a file of the chain is what is looked for, wherever it stands.
    places = [layer.image.place for layer in own.values()]
    roots: list[str | Place] = [*wanted.allowed_roots, *places]
    found = Search([], [], [])
    for path in wanted.siblings:
        with find_place(path, wanted.follow_links) as place:
            if place.key not in own:
                found.siblings.append(_named(place, roots, wanted, clock))
    if wanted.scan:
        with contextlib.ExitStack() as stack:
            homes = [place.directory for place in places if stat.S_ISREG(place.status.st_mode)]
            named = [stack.enter_context(find_place(path, wanted.follow_links)) for path in wanted.allowed_roots]
            _scan_all(homes, named, roots, own, wanted, clock, found)
    return found


def _scan_all(
    homes: t.Sequence[Directory],
    named: t.Sequence[Place],
    roots: t.Sequence[str | Place],
    own: t.Container[Key | None],
    wanted: ChainWanted,
    clock: Clock,
    found: Search,
) -> None:
    """homes, named: where to look; a file that is named is looked at itself."""
    seen: set[Key | None] = set()
    tree = Tree(lambda error: _note(error, found), clock.check)
    directories = [directory.again() for directory in homes]
    files = []
    for place in named:
        if not place.there:  # gone since the chain was opened
            found.closed.append(opening.open_error(place.path, FileNotFoundError(errno.ENOENT, ""), writable=False))
        elif stat.S_ISDIR(place.status.st_mode):
            directories.append(directory_at(place))
        elif stat.S_ISREG(place.status.st_mode):
            files.append(place.again())
    for place in itertools.chain(files, tree.files(directories)):
        with place:
            if place.key not in seen and place.key not in own:
                seen.add(place.key)
                _scan(place, roots, wanted.follow_links, clock, found)


def unclear_warning(paths: t.Sequence[str]) -> str:
    """For a person."""
    shown = ", ".join(errors.quote(path) for path in paths[:_SHOWN_MAX])
    more = f" and {len(paths) - _SHOWN_MAX} more" if len(paths) > _SHOWN_MAX else ""
    return (
        f"scan has found images of which it is not known whether they stand on files of this chain: {shown}{more}. "
        "Their backing files are in places where no name may lead, or they could not be read as qcow2 or vmdk images. "
        "Add such places to allowed_roots to have that looked at, and look at the others with qcow2_info."
    )


def _named(place: Place, roots: t.Sequence[str | Place], wanted: ChainWanted, clock: Clock) -> Sibling:
    """Shared with whoever uses it: only headers are looked at."""
    with Image.open(place.again(), force_share=True) as image:
        format_name, _backing_name = _header(image, clock)
        with open_chain(
            image,
            backing_format=wanted.backing_format,
            allowed_roots=roots,
            force_share=True,
            limits=clock.limits(),
            top_format=format_name,
        ) as chain:
            clock.reports += chain.reports
            return Sibling(place.path, frozenset(layer.key for layer in chain.layers[1:]))


def _header(image: Image, clock: Clock) -> tuple[str, bytes]:
    """The format, qcow2 or vmdk, and the backing file's name. Both guests are asked: each knows its own images. Raises
    NotQcow2Error for what is neither."""
    try:
        header = info.image_info(image, clock.limits())
        clock.reports.append(header.report)
        return "qcow2", header.backing_name
    except errors.NotQcow2Error as error:
        try:
            other = vmdk.vmdk_info(image, clock.limits())
        except errors.HeaderError as neither:
            if neither.code != "not_vmdk":
                raise
            raise error from neither
        clock.reports.append(other.report)
        return "vmdk", other.backing_name


def _scan(place: Place, roots: t.Sequence[str | Place], follow_links: bool, clock: Clock, found: Search) -> None:
    """Looks at what one image stands on itself. Whatever stands on that is found in its own place."""
    path = place.path
    try:
        with Image.open(place.again(), force_share=True) as image:
            _format_name, backing_name = _header(image, clock)
        if backing_name:
            below = rebases.leads_to(backing_name, place.directory, path, roots, follow_links)
            found.siblings.append(Sibling(path, frozenset([below])))
    except errors.NotQcow2Error:
        return
    except errors.ImageOpenError as error:
        _note(error, found)
    except (errors.HostError, errors.JailError, errors.TimeLimitError, ending.EndedError):
        raise
    except errors.AirlockError as error:
        if error.code != "backing_not_found":
            found.unclear.append(path)


def _note(error: errors.ImageOpenError, found: Search) -> None:
    """Of what could not be opened."""
    if error.code not in _NO_IMAGE and not found.closed:  # whoever makes directories decides how many there would be
        found.closed.append(error)
