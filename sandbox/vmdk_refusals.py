# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each refusal of the guest that is about vmdk images means in words; a part of refusals.py.

qemu-img's texts: block/vmdk.c of QEMU 10.0.
"""

from __future__ import annotations

import typing as t

from .errors import clean
from .wording import COMMIT, OPEN, RESTORE, Wording, edit_descriptor

_ELSEWHERE = "Its data is in other files, first in '{extent}'; none of them was opened. {convert_extents}"


def _header(code: str, message: str, qemu: str = "") -> Wording:
    return Wording(code, "HeaderError", message, {OPEN: qemu} if qemu else {})


def _broken(code: str, message: str) -> Wording:
    return Wording(code, "InconsistentImageError", message + " " + RESTORE)


# {fault}: of the tables below, by argument a.
VMDK_WORDINGS: dict[int, Wording] = {
    240: Wording(
        "not_vmdk",
        "HeaderError",
        "This is not a vmdk image. Name one, or state the format that it has.",
        {OPEN: "invalid VMDK image descriptor"},
    ),
    241: _header(
        "vmdk_subformat",
        "{fault} Name an image of the type monolithicSparse, where all is in one file: other files are never opened.",
    ),
    242: _header(
        "vmdk_version",
        "vmdk version {a} is not known, only 1 to 3 are. {newer}",
        "Unsupported VMDK version {a}",
    ),
    243: _header(
        "vmdk_read_only",
        "An image of version 3 is not written to: another program notes changed blocks in it. {convert_vmdk}",
        "VMDK version 3 must be read only",
    ),
    244: _header("vmdk_header", "The header is not sound: {fault} ({b}). " + RESTORE),
    245: _header(
        "vmdk_descriptor",
        "The descriptor is not sound: {fault}. Restore the image. If you know what it "
        "must say, correct it: it is text, at byte 512 of the file.",
    ),
    246: _header(
        "vmdk_extent",
        "The descriptor says that the data is in '{text}', which is not this file. Nothing was opened there. "
        "Restore the image; if its descriptor is merely out of date, correct the name in it: {edit}",
    ),
    247: _header(
        "vmdk_extent_size",
        "The header says that the disk has {a} sectors, the descriptor {b}. " + RESTORE,
    ),
    248: _broken("vmdk_outside", "{entry} points to {e_hex}, where this file has nothing of the kind."),
    249: _broken("vmdk_overlap", "{entry} points to {e_hex}, which is in use for something else already."),
    250: _broken("vmdk_no_table", "{entry} names no grain table. Programs make all of them together with the image."),
    251: Wording(
        "vmdk_parent_changed",
        "CommitError",
        "The image was made on a backing file with the content id {a_id}; the one that there is has {b_id}, so "
        "somebody has written to it since. Restore the one that it was made on. If you know that both fit together, "
        "set parentCID in the image's descriptor to {b_id}: {edit}",
        {COMMIT: "Invalid argument"},
    ),
    252: Wording(
        "vmdk_full",
        "CommitError",
        "The file has {a} bytes, and the format has no numbers for {b} more. {convert_vmdk}",
        {COMMIT: "Input/output error"},
    ),
    253: Wording(
        "base_vmdk_resize",
        "CommitError",
        "The base has a disk of {a} bytes, the top one of {b}, and a vmdk image does not grow. "
        "Commit to another base, or, if you trust all images of the chain, make one of them: "
        '"qemu-img convert -O qcow2".',
        {COMMIT: "Operation not supported"},
    ),
}

# enum vmdk_subformat
SUBFORMATS: dict[int, str] = {
    1: "The image is of the type '{type}'. " + _ELSEWHERE,
    2: "The image has an extent of the type '{type}'. " + _ELSEWHERE,
    3: "The image is compressed (streamOptimized). {convert_vmdk}",
    4: "The image has its grain directory at its end (streamOptimized). {convert_vmdk}",
    5: "The image has no descriptor: it is one extent of several. The descriptor is in a file of its own, and names "
    'all of them; if you trust it and them, convert that with "qemu-img convert -f vmdk -O qcow2".',
    6: "The file is a descriptor of the type '{type}', without any data. " + _ELSEWHERE,
    7: "The image is of the type 'vmfsSparse'. {convert_vmdk}",
}

# enum vmdk_fault
FAULTS: dict[int, str] = {
    1: "a program has changed the ends of its lines, as transfers in text mode do",
    2: "an impossible number of sectors",
    3: "an impossible grain size",
    4: "an impossible size of grain tables",
    5: "too many grain tables",
    6: "the descriptor is not in the second sector",
    7: "an impossible size of the descriptor",
    8: "the grain directory is outside the file",
    9: "the redundant grain directory is outside the file",
    10: "the file is cut off before its data begins",
}

# enum vmdk_line
LINES: dict[int, str] = {
    1: "the text has no end",
    2: "createType is missing, or has no quotation marks: '{text}'",
    3: "CID or parentCID is missing, or no number: '{text}'",
    4: "parentFileNameHint has no quotation marks: '{text}'",
    5: "there is no line for the extent, or a wrong one: '{text}'",
    6: "there is more than one extent: '{text}'",
    7: "a line is there twice: '{text}'",
    8: "'{text}' stands where it does not begin a line first, and programs disagree on what counts",
}

# By code.
VMDK_FAULTS: dict[int, dict[int, str]] = {241: SUBFORMATS, 244: FAULTS, 245: LINES}


def fields(code: int, arguments: t.Sequence[int], text: bytes, image: str) -> dict[str, str]:
    """What these texts can quote, beside what all can. text: of the refusal. image: its path, for a shell."""
    if code == 241:
        length = min(arguments[1], len(text))
        return {"type": clean(text[:length]), "extent": clean(text[length:])}
    if code in (246, 251):
        return {"edit": edit_descriptor(image, arguments[1 if code == 246 else 2] & 0xFF)}
    return {}
