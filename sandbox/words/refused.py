# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a refusal of the guest to the exception for it, worded as the tables of this room have it."""

from __future__ import annotations

import errno
import os
import typing as t

from .. import errors
from ..errors import PATH_LIMIT, AirlockError, clean, quote
from ..guests import _abi
from . import advice, refusals
from .wording import Wording, Words, names_of

_NAME_LIMIT = 255


class ResultHeader(t.NamedTuple):
    """struct result_header of guest/abi/calls.h; cffi's own view of it has the same fields."""

    code: int
    modified: int = 0
    text_length: int = 0
    leaked_clusters: int = 0
    arguments: t.Sequence[int] = (0, 0, 0, 0, 0, 0)
    text: t.Sequence[int] = ()
    disk: int = 0


def from_refusal(header: ResultHeader, path: str, name: str = "") -> AirlockError:
    """The exception for a result whose code is not 0.

    header: the result's header; nothing in it is trusted. path, name of a snapshot: as the operator gave them
    (surrogateescape).
    """
    return error(header, path, name, Words(refusals.WORDINGS))


def error(
    header: ResultHeader,
    path: str,
    name: str,
    words: Words,
    texts: t.Sequence[str] = (),
    written: str = " The image was written to before this. {state_kept} {list_snapshots}",
) -> AirlockError:
    """The exception in the words of a family of guests. name: what it is about. texts: as the operator gave them.
    written: what to say of an operation that had begun to write."""
    refusal = names_of("refusal", "REFUSAL_").get(header.code, "")
    if refusal == "write_failed" and header.arguments[0] in (errno.ENOSPC, errno.EDQUOT):
        refusal = "no_space"
    wording = words.wordings.get(refusal)
    if wording is None:
        return errors.GuestProtocolError(
            f"{clean(path, PATH_LIMIT)}: the guest refused with the unknown code {header.code}."
        )
    text = bytes(list(header.text[0 : min(int(header.text_length), len(header.text))]))
    fields = _fields(header, text, path, name, texts)
    fields.update(words.fields(refusal, text, fields))
    fields["message"] = wording.message.format_map(fields)
    message = f"{fields['path']}: {fields['message']}"
    if _is_about_bitmaps(header, wording):
        message += f" If it is the bitmaps alone: {fields['remove_damaged']}"
    if header.modified:
        message += written.format_map(fields)
    elif wording.kind in ("ImageWriteError", "NoSpaceError", "InconsistentImageError"):
        message += " Nothing was changed."
    kind: type[AirlockError] = getattr(errors, wording.kind)
    made = kind(message, refusal, **fields)
    made.modified = bool(header.modified)
    if isinstance(made, errors.RefusalError):
        made.leaked_clusters = int(header.leaked_clusters)
    return made


def _is_about_bitmaps(header: ResultHeader, wording: Wording) -> bool:
    """Whether a table that the message names is one of bitmaps."""
    first, last = ("{entry}" in wording.message or "{table}" in wording.message), "{target}" in wording.message
    named = ({header.arguments[0]} if first else set()) | ({header.arguments[5]} if last else set())
    return not refusals.OF_BITMAPS.isdisjoint(_table(number) for number in named)


def _table(number: int) -> str:
    return names_of("table", "TABLE_").get(number, "")


def header_of(refusal: str) -> ResultHeader:
    """A result's header with this refusal, as if a guest had looked."""
    return ResultHeader(_abi.load().integer_const(f"REFUSAL_{refusal.upper()}"))


def snapshot_not_found(path: str, name: str) -> AirlockError:
    """The exception for a snapshot that cannot be in any image, worded as the guest's refusal."""
    return from_refusal(header_of("snapshot_not_found"), path, name)


def of_disk(header: ResultHeader, paths: t.Sequence[str]) -> AirlockError | None:
    """The exception for a guest that names a disk which it does not have."""
    if header.disk < len(paths):
        return None
    return errors.GuestProtocolError(f"The guest refused because of disk {int(header.disk)} of {len(paths)}.")


def bitmaps_fault(number: int) -> str:
    """What is wrong with bitmaps, with fields in it. number: enum bitmaps_fault."""
    return refusals.BITMAPS_FAULTS.get(names_of("bitmaps_fault", "BITMAPS_").get(number, ""), "unknown fault {a}")


def damaged_bitmaps(path: str, damage: str) -> errors.BitmapError:
    """The exception for bitmaps that are damaged. damage: as bitmap_refusals.bitmaps_damage() has it."""
    way = advice.say("remove_damaged", {"image": quote(path)})
    message = f"{clean(path, PATH_LIMIT)}: The bitmaps are damaged: {damage}. {way}"
    return errors.BitmapError(message, "bitmaps_extension", file=path, damage=damage)


def _fields(header: ResultHeader, text: bytes, path: str, name: str, texts: t.Sequence[str]) -> advice.Fields:
    """What all texts can quote, and beside that, as they were given: file, the path; given, the name;
    bitmap, the one that is meant. text: out of the image. texts: of bitmaps, as they were given."""
    arguments = [int(value) for value in header.arguments]
    shell_path = quote(path)
    fields = advice.Fields(zip("abcdef", arguments))
    fields.update({f"{letter}_hex": hex(value) for letter, value in zip("abcdef", arguments)})
    fields["text"] = clean(text)
    # The guest knows no more of a name than its first bytes; one that was given is shown whole.
    given = [name for name in texts if os.fsencode(name)[: len(header.text)] == text]
    fields["bitmap"] = given[0] if given else fields["text"]
    fields["file"], fields["given"], fields["disk"] = path, name, int(header.disk)
    fields["path"] = clean(path, PATH_LIMIT)
    fields["name"] = f"'{clean(name, _NAME_LIMIT)}'" if name else "with an empty name"
    fields["image"] = shell_path
    fields["errno"] = _system_text(arguments[0])
    fields["of_errno"] = advice.of_errno(arguments[0])
    fields["table"] = refusals.TABLES.get(_table(arguments[0]), f"table of kind {arguments[0]}")
    fields["entry"] = f"Entry {arguments[2]} of the {fields['table']} at {fields['b_hex']}"
    if fields["table"] == "header":
        fields["entry"] = "The header"
    fields["target"] = refusals.TABLES.get(_table(arguments[5]), f"table of kind {arguments[5]}")
    nameless = [f"Unknown incompatible feature: {arguments[0]:x}"] if arguments[0] else []
    fields["features"] = ", ".join([fields["text"], *nameless] if fields["text"] else nameless)
    fields["bitmaps"] = bitmaps_fault(arguments[0]).format_map(fields)
    return fields


def _system_text(number: int) -> str:
    """What the system calls the errno; numbers out of a guest can be anything."""
    return os.strerror(number) if 0 < number < 4096 else f"error {number}"
