# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a refusal of the guest to the exception for it, worded as refusals.py has it."""

from __future__ import annotations

import errno
import os
import typing as t

from .. import errors
from ..errors import PATH_LIMIT, AirlockError, clean, quote
from ..guests import _abi
from . import advice, refusals, vmdk_refusals
from .wording import Wording, names_of

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
    return _error(header, path, name)


def _error(
    header: ResultHeader,
    path: str,
    name: str,
    texts: t.Sequence[str] = (),
    written: str = " The image was written to before this. {state_kept} {list_snapshots}",
) -> AirlockError:
    """name: what it is about. texts: as the operator gave them. written: what to say of an operation that had begun to
    write."""
    refusal = names_of("refusal", "REFUSAL_").get(header.code, "")
    if refusal == "write_failed" and header.arguments[0] in (errno.ENOSPC, errno.EDQUOT):
        refusal = "no_space"
    wording = refusals.WORDINGS.get(refusal)
    if wording is None:
        return errors.GuestProtocolError(
            f"{clean(path, PATH_LIMIT)}: the guest refused with the unknown code {header.code}."
        )
    fields = _fields(header, refusal, path, name, texts)
    fields["message"] = wording.message.format_map(fields)
    message = f"{fields['path']}: {fields['message']}"
    if _is_about_bitmaps(header, wording):
        message += f" If it is the bitmaps alone: {fields['remove_damaged']}"
    if header.modified:
        message += written.format_map(fields)
    elif wording.kind in ("ImageWriteError", "NoSpaceError", "InconsistentImageError"):
        message += " Nothing was changed."
    kind: type[AirlockError] = getattr(errors, wording.kind)
    error = kind(message, refusal, **fields)
    error.modified = bool(header.modified)
    if isinstance(error, errors.RefusalError):
        error.leaked_clusters = int(header.leaked_clusters)
    return error


def _is_about_bitmaps(header: ResultHeader, wording: Wording) -> bool:
    """Whether a table that the message names is one of bitmaps."""
    first, last = ("{entry}" in wording.message or "{table}" in wording.message), "{target}" in wording.message
    named = ({header.arguments[0]} if first else set()) | ({header.arguments[5]} if last else set())
    return not refusals.OF_BITMAPS.isdisjoint(_table(number) for number in named)


def _table(number: int) -> str:
    return names_of("table", "TABLE_").get(number, "")


def _header_of(refusal: str) -> ResultHeader:
    """A result's header with this refusal, as if a guest had looked."""
    return ResultHeader(_abi.load().integer_const(f"REFUSAL_{refusal.upper()}"))


def snapshot_not_found(path: str, name: str) -> AirlockError:
    """The exception for a snapshot that cannot be in any image, worded as the guest's refusal."""
    return from_refusal(_header_of("snapshot_not_found"), path, name)


def from_bitmap_refusal(header: ResultHeader, paths: t.Sequence[str], names: t.Sequence[str]) -> AirlockError:
    """The exception for a list of actions on a bitmap, or a list of bitmaps, that was refused.

    paths: of the disks of the call. names: that the operator gave; the first is that of the bitmap, the others those of
    merges' sources.
    """
    return _of_disk(header, paths) or _error(header, paths[header.disk], names[0], names)


def from_commit_refusal(header: ResultHeader, paths: t.Sequence[str]) -> AirlockError:
    """The exception for a commit that was refused. paths: of the disks of the call."""
    written = " The commit had begun. Nothing is lost, for what the top shows is the same as before: run it again."
    return _of_disk(header, paths) or _error(header, paths[header.disk], "", written=written)


def from_rebase_refusal(header: ResultHeader, paths: t.Sequence[str], name: str) -> AirlockError:
    """The exception for a rebase that was refused. paths: of the disks of the call. name: the new backing file's."""
    written = " The rebase had begun. Nothing is lost, for the image shows the same as before: run it again."
    return _of_disk(header, paths) or _error(header, paths[header.disk], name, written=written)


def _of_disk(header: ResultHeader, paths: t.Sequence[str]) -> AirlockError | None:
    """The exception for a guest that names a disk which it does not have."""
    if header.disk < len(paths):
        return None
    return errors.GuestProtocolError(f"The guest refused because of disk {int(header.disk)} of {len(paths)}.")


def bitmaps_damage(fault: int, value: int, name: bytes) -> str:
    """What is wrong with the bitmaps of an image that can be read all the same. fault: enum bitmaps_fault."""
    return _bitmaps_fault(fault).format(a=int(fault), b=int(value), b_hex=hex(int(value)), text=clean(name))


def _bitmaps_fault(number: int) -> str:
    return refusals.BITMAPS_FAULTS.get(names_of("bitmaps_fault", "BITMAPS_").get(number, ""), "unknown fault {a}")


def damaged_bitmaps(path: str, damage: str) -> errors.BitmapError:
    """The exception for bitmaps that are damaged. damage: as bitmaps_damage() has it."""
    way = advice.say("remove_damaged", {"image": quote(path)})
    message = f"{clean(path, PATH_LIMIT)}: The bitmaps are damaged: {damage}. {way}"
    return errors.BitmapError(message, "bitmaps_extension", file=path, damage=damage)


def encrypted(path: str) -> AirlockError:
    """The exception for an encrypted image whose data is wanted, worded as the guest's refusal."""
    return from_commit_refusal(_header_of("encrypted"), [path])


def _fields(header: ResultHeader, refusal: str, path: str, name: str, texts: t.Sequence[str]) -> advice.Fields:
    """What the texts in refusals.py can quote, and beside that, as they were given: file, the path; given, the name;
    bitmap, the one that is meant. texts: of bitmaps, as they were given."""
    arguments = [int(value) for value in header.arguments]
    shell_path = quote(path)
    fields = advice.Fields(zip("abcdef", arguments))
    fields.update({f"{letter}_hex": hex(value) for letter, value in zip("abcdef", arguments)})
    length = min(int(header.text_length), len(header.text))
    text = bytes(list(header.text[0:length]))
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
    fields.update(vmdk_refusals.fields(refusal, arguments, text, shell_path))
    enum, prefix, faults = vmdk_refusals.VMDK_FAULTS.get(refusal, ("refusal", "", {}))
    fault = faults.get(names_of(enum, prefix).get(arguments[0], ""), f"unknown fault {arguments[0]}")
    fields["fault"] = fault.format_map(fields)
    fields["a_id"], fields["b_id"] = (f"{value & 0xFFFFFFFF:08x}" for value in arguments[:2])
    fields["bitmaps"] = _bitmaps_fault(arguments[0]).format_map(fields)
    return fields


def _system_text(number: int) -> str:
    """What the system calls the errno; numbers out of a guest can be anything."""
    return os.strerror(number) if 0 < number < 4096 else f"error {number}"
