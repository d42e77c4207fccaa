# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each refusal of the guest that is about vmdk images means in words; a part of chain_refusals.py."""

from __future__ import annotations

from ..errors import clean
from . import advice
from .wording import RESTORE, Wording, names_of

_ELSEWHERE = "Its data is in other files, first in '{extent}'; none of them was opened. {convert_extents}"


def _header(message: str) -> Wording:
    return Wording("HeaderError", message)


def _broken(message: str) -> Wording:
    return Wording("InconsistentImageError", message + " " + RESTORE)


# {fault}: of the tables below, by argument a.
VMDK_WORDINGS: dict[str, Wording] = {
    "not_vmdk": Wording(
        "HeaderError",
        "This is not a vmdk image. Name one, or state the format that it has.",
    ),
    "vmdk_subformat": _header(
        "{fault} Name an image of the type monolithicSparse, where all is in one file: other files are never opened.",
    ),
    "vmdk_version": _header(
        "vmdk version {a} is not known, only 1 to 3 are. {newer}",
    ),
    "vmdk_read_only": _header(
        "An image of version 3 is not written to: another program notes changed blocks in it. {convert_vmdk}",
    ),
    "vmdk_header": _header("The header is not sound: {fault} ({b}). " + RESTORE),
    "vmdk_descriptor": _header(
        "The descriptor is not sound: {fault}. Restore the image. If you know what it "
        "must say, correct it: it is text, at byte 512 of the file.",
    ),
    "vmdk_extent": _header(
        "The descriptor says that the data is in '{text}', which is not this file. Nothing was opened there. "
        "Restore the image; if its descriptor is merely out of date, correct the name in it: {edit}",
    ),
    "vmdk_extent_size": _header(
        "The header says that the disk has {a} sectors, the descriptor {b}. " + RESTORE,
    ),
    "vmdk_outside": _broken("{entry} points to {e_hex}, where this file has nothing of the kind."),
    "vmdk_overlap": _broken("{entry} points to {e_hex}, which is in use for something else already."),
    "vmdk_no_table": _broken("{entry} names no grain table. Programs make all of them together with the image."),
    "vmdk_parent_changed": Wording(
        "CommitError",
        "The image was made on a backing file with the content id {a_id}; the one that there is has {b_id}, so "
        "somebody has written to it since. Restore the one that it was made on. If you know that both fit together, "
        "set parentCID in the image's descriptor to {b_id}: {edit}",
    ),
    "vmdk_full": Wording(
        "CommitError",
        "The file has {a} bytes, and the format has no numbers for {b} more. {convert_vmdk}",
    ),
    "base_vmdk_resize": Wording(
        "CommitError",
        "The base has a disk of {a} bytes, the top one of {b}, and a vmdk image does not grow. "
        "Commit to another base, or, if you trust all images of the chain, make one of them: "
        '"qemu-img convert -f FORMAT -O qcow2 TOP NEW", with the format that the top has.',
    ),
}

# enum vmdk_subformat
SUBFORMATS: dict[str, str] = {
    "other_type": "The image is of the type '{type}'. " + _ELSEWHERE,
    "other_extent": "The image has an extent of the type '{type}'. " + _ELSEWHERE,
    "compressed": "The image is compressed (streamOptimized). {convert_vmdk}",
    "directory_at_end": "The image has its grain directory at its end (streamOptimized). {convert_vmdk}",
    "no_descriptor": "The image has no descriptor: it is one extent of several. The descriptor is in a file of "
    'its own, and names all of them; if you trust it and them, convert that with "qemu-img convert -f vmdk -O qcow2".',
    "alone": "The file is a descriptor of the type '{type}', without any data. " + _ELSEWHERE,
    "cowd": "The image is of the type 'vmfsSparse'. {convert_vmdk}",
}

# enum vmdk_fault
FAULTS: dict[str, str] = {
    "newlines": "a program has changed the ends of its lines, as transfers in text mode do",
    "capacity": "an impossible number of sectors",
    "grain_size": "an impossible grain size",
    "table_entries": "an impossible size of grain tables",
    "tables": "too many grain tables",
    "descriptor_place": "the descriptor is not in the second sector",
    "descriptor_size": "an impossible size of the descriptor",
    "directory": "the grain directory is outside the file",
    "redundant_directory": "the redundant grain directory is outside the file",
    "data": "the file is cut off before its data begins",
}

# enum vmdk_line
LINES: dict[str, str] = {
    "end": "the text has no end",
    "type": "createType is missing, or has no quotation marks: '{text}'",
    "cid": "CID or parentCID is missing, or no number: '{text}'",
    "parent": "parentFileNameHint has no quotation marks: '{text}'",
    "extent": "there is no line for the extent, or a wrong one: '{text}'",
    "extents": "there is more than one extent: '{text}'",
    "twice": "a line is there twice: '{text}'",
    "hidden": "'{text}' stands where it does not begin a line first, and programs disagree on what counts",
}

# By the name of the refusal: the enum that its argument a is of, the prefix of the names there, and what they mean.
VMDK_FAULTS: dict[str, tuple[str, str, dict[str, str]]] = {
    "vmdk_subformat": ("vmdk_subformat", "VMDK_", SUBFORMATS),
    "vmdk_header": ("vmdk_fault", "VMDK_", FAULTS),
    "vmdk_descriptor": ("vmdk_line", "VMDK_LINE_", LINES),
}


def fields(refusal: str, text: bytes, fields: advice.Fields) -> dict[str, str]:
    """What these texts can quote, beside what all can. refusal: its name; text: its own. fields: what all can quote."""
    own: dict[str, str] = {}
    arguments = [fields[letter] for letter in "abcdef"]
    own["a_id"], own["b_id"] = (f"{value & 0xFFFFFFFF:08x}" for value in arguments[:2])
    if refusal == "vmdk_subformat":
        length = min(arguments[1], len(text))
        own.update(type=clean(text[:length]), extent=clean(text[length:]))
    if refusal in ("vmdk_extent", "vmdk_parent_changed"):
        own["edit"] = edit_descriptor(fields["image"], arguments[1 if refusal == "vmdk_extent" else 2] & 0xFF)
    if refusal in VMDK_FAULTS:
        enum, prefix, faults = VMDK_FAULTS[refusal]
        fault = faults.get(names_of(enum, prefix).get(arguments[0], ""), "unknown fault {a}")
        own["fault"] = fault.format_map(advice.Fields(fields, **own))
    return own


def edit_descriptor(image: str, sectors: int) -> str:
    """How the descriptor of a vmdk image is corrected. image: its path, for a shell. sectors: of the descriptor.

    Not in the working directory: that may be the image's, whose owner can have a link of that name there.
    """
    text = "$HOME/descriptor.txt"
    return (
        f'"dd if={image} of={text} bs=512 skip=1 count={sectors}" takes it out; when it is corrected, '
        f'"truncate -s {512 * sectors} {text}" and '
        f'"dd if={text} of={image} bs=512 seek=1 conv=notrunc oflag=nofollow" put it back.'
    )
