# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other overlays that stand on files of a chain: what they show must not change."""

from __future__ import annotations

import os
import stat
import typing as t

from ..sandbox import errors, info, rebases, vmdk
from ..sandbox.chain import open_chain
from ..sandbox.images import Image, Limits
from ..sandbox.references import Key, file_key
from .clock import Clock

if t.TYPE_CHECKING:
    from .chain_wanted import Wanted

_SHOWN_MAX = 5
_NO_IMAGE = ("not_found", "is_directory", "not_regular")  # gone, or another thing since it was listed


class Sibling(t.NamedTuple):
    """An overlay that is no part of the chain. below: the files that it stands on, as Layer.key tells them apart."""

    path: str
    below: frozenset[Key]


class Search(t.NamedTuple):
    """What was found. unclear: images that may stand on the chain: no name may lead to what they stand on, or that
    could not be found out. closed: what became of files and directories that could not be opened: anything may be in
    there."""

    siblings: list[Sibling]
    unclear: list[str]
    closed: list[errors.AirlockError]


def find_siblings(wanted: Wanted, own: t.Mapping[Key, str], clock: Clock) -> Search:
    """Those that the task names, and those that a scan finds. own: the files of the chain itself, which are none.

    What is scanned are the directories of these files, and the allowed roots, with all below. What is neither a qcow2
    nor a vmdk image is passed over. Raises what open_chain() raises, for one that the task names; HostError, JailError,
    TimeLimitError, for the scan could not go on.
    """
    # A name that leads to a file of the chain is what is looked for, wherever it stands.
    roots = [*wanted.allowed_roots, *own.values()]
    found = Search([_named(path, roots, wanted, clock) for path in wanted.siblings if _key(path) not in own], [], [])
    if wanted.scan:
        seen: set[Key] = set()
        homes = [os.path.dirname(path) or "." for path in own.values() if os.path.isfile(path)]
        for place in dict.fromkeys(map(os.path.realpath, [*homes, *wanted.allowed_roots])):
            for path, key in _files(place, found):
                if key not in seen and key not in own:
                    seen.add(key)
                    _scan(path, roots, clock, found)
    return found


def unclear_warning(paths: t.Sequence[str]) -> str:
    """For a person."""
    shown = ", ".join(errors.quote(path) for path in paths[:_SHOWN_MAX])
    more = f" and {len(paths) - _SHOWN_MAX} more" if len(paths) > _SHOWN_MAX else ""
    return (
        f"scan has found images of which it is not known whether they stand on files of this chain: {shown}{more}. "
        "Their backing files are in places where no name may lead, or they could not be read as qcow2 or vmdk images. "
        "Add such places to allowed_roots to have that looked at, and look at the others with qcow2_info."
    )


def _key(path: str) -> Key | None:
    """None: there is nothing that can be looked at."""
    try:
        return file_key(os.stat(path))
    except (OSError, ValueError):
        return None


def _named(path: str, roots: t.Sequence[str], wanted: Wanted, clock: Clock) -> Sibling:
    """Shared with whoever uses it: only headers are looked at."""
    with Image.open(path, force_share=True) as image:
        format_name, _backing_name = _header(image, clock)
        with open_chain(
            image,
            backing_format=wanted.backing_format,
            allowed_roots=roots,
            force_share=True,
            limits=Limits(seconds=clock.left()),
            top_format=format_name,
        ) as chain:
            clock.reports += chain.reports
            return Sibling(path, frozenset(layer.key for layer in chain.layers[1:]))


def _header(image: Image, clock: Clock) -> tuple[str, bytes]:
    """The format, qcow2 or vmdk, and the backing file's name. Both guests are asked: each knows its own images. Raises
    NotQcow2Error for what is neither."""
    try:
        header = info.image_info(image, Limits(seconds=clock.left()))
        clock.reports.append(header.report)
        return "qcow2", header.backing_name
    except errors.NotQcow2Error as error:
        try:
            other = vmdk.vmdk_info(image, Limits(seconds=clock.left()))
        except errors.HeaderError as neither:
            if neither.code != "not_vmdk":
                raise
            raise error from neither
        clock.reports.append(other.report)
        return "vmdk", other.backing_name


def _scan(path: str, roots: t.Sequence[str], clock: Clock, found: Search) -> None:
    """Looks at what one image stands on itself. Whatever stands on that is found in its own place."""
    try:
        with Image.open(path, force_share=True) as image:
            _format_name, backing_name = _header(image, clock)
        if backing_name:
            found.siblings.append(Sibling(path, frozenset([rebases.leads_to(backing_name, path, roots)])))
    except errors.NotQcow2Error:
        return
    except errors.ImageOpenError as error:
        _note(error, found)
    except (errors.HostError, errors.JailError, errors.TimeLimitError):
        raise
    except errors.AirlockError as error:
        if error.code != "backing_not_found":
            found.unclear.append(path)


def _note(error: errors.ImageOpenError, found: Search) -> None:
    """Of what could not be opened."""
    if error.code not in _NO_IMAGE:
        found.closed.append(error)


def _files(place: str, found: Search) -> t.Iterator[tuple[str, Key]]:
    """Regular files in a directory and below; no symbolic link is followed. What is no directory is one itself. What
    cannot be listed is noted."""

    def note(error: OSError) -> None:
        _note(errors.open_error(str(error.filename or place), error, writable=False), found)

    def look(path: str) -> os.stat_result | None:
        try:
            return os.lstat(path)
        except OSError as error:
            note(error)
            return None

    status = look(place)
    if status and not stat.S_ISDIR(status.st_mode):
        yield place, file_key(status)
        return
    for directory, _directories, names in os.walk(place, onerror=note):
        for name in sorted(names):
            path = os.path.join(directory, name)
            status = look(path)
            if status and stat.S_ISREG(status.st_mode):
                yield path, file_key(status)
