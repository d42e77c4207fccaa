# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each refusal of the guest that is about vmdk images means in words; a part of refusals.py.

qemu-img's texts: block/vmdk.c of QEMU 10.0.
"""

from __future__ import annotations

from .wording import COMMIT, OPEN, RESTORE, Wording

_CONVERT = 'Convert a copy of it with "qemu-img convert -O vmdk" or "-O qcow2".'


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
        "{fault}. Of vmdk only monolithicSparse is known, where all is in one file: other files are never opened. "
        + _CONVERT,
    ),
    242: _header(
        "vmdk_version",
        "vmdk version {a} is not known, only 1 to 3 are. " + _CONVERT,
        "Unsupported VMDK version {a}",
    ),
    243: _header(
        "vmdk_read_only",
        "An image of version 3 is not written to: another program notes changed blocks in it. " + _CONVERT,
        "VMDK version 3 must be read only",
    ),
    244: _header("vmdk_header", "The header is not sound: {fault} ({b}). " + RESTORE),
    245: _header("vmdk_descriptor", "The descriptor is not sound: {fault}. Edit it, or restore the image."),
    246: _header(
        "vmdk_extent",
        "The descriptor says that the data is in '{text}', which is not this file. Nothing was opened there. "
        "Restore the image; if its descriptor is merely out of date, correct the name in it.",
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
        "set parentCID in the image's descriptor to {b_id}.",
        {COMMIT: "Invalid argument"},
    ),
    252: Wording(
        "vmdk_full",
        "CommitError",
        "The file has {a} bytes, and the format has no numbers for {b} more. " + _CONVERT,
        {COMMIT: "Input/output error"},
    ),
    253: Wording(
        "base_vmdk_resize",
        "CommitError",
        "The base has a disk of {a} bytes, the top one of {b}, and a vmdk image does not grow. Make a copy of that "
        'size with "qemu-img convert", or commit to another base.',
        {COMMIT: "Operation not supported"},
    ),
}

# enum vmdk_subformat
SUBFORMATS: dict[int, str] = {
    1: "The image is of the type '{text}'",
    2: "The image has an extent of the type '{text}'",
    3: "The image is compressed (streamOptimized)",
    4: "The image has its grain directory at its end (streamOptimized)",
    5: "The image has no descriptor: it is one extent of several",
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
