# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What qemu-img says of a failure, in the words of QEMU 10.0: the command line speaks like it.

Fields of the texts are the facts of the exception, see refused._fields() for those of the guest's refusals.
"""

from __future__ import annotations

import contextlib
import errno
import typing as t

from .. import errors
from ..facts.listing import escape_controls
from ..guests._limits import BITMAP_NAME_MAX
from ..host import ending

Facts = t.Mapping[str, t.Any]

# By the code of a refusal of the guest. Those in _OPEN are of opening an image, whatever was to be done with it; the
# others are of one operation. An entry "LINE|REST" is two reports.
# qemu names a node of its block graph in _NOT_STORED, by a number that it draws.
_NOT_STORED = "Can't make bitmap '{bitmap}' persistent in '{file}': "
_OPEN = {
    "not_qcow2": "Image is not in qcow2 format",
    "version": "Unsupported qcow2 version {a}",
    "cluster_size": "Unsupported cluster size: 2^{a}",
    "header_short": "qcow2 header too short",
    "header_long": "qcow2 header exceeds cluster size",
    "backing_offset": "Invalid backing file offset",
    "backing_name_long": "Backing file name too long",
    "incompatible_features": "Unsupported qcow2 feature(s): {features}",
    "compression_bit_set": "qcow2: Compression type incompatible feature bit must not be set",
    "compression_bit_clear": "qcow2: Compression type incompatible feature bit must be set",
    "compression_type": "qcow2: unknown compression type: {a}",
    "corrupt": "qcow2: Image is corrupt; cannot be opened read/write",
    "refcount_width": "Reference count entry width too large; may not exceed 64 bits",
    "no_refcount_table": "Image does not contain a reference count table",
    "refcount_table_large": "Reference count table too large",
    "refcount_table_offset": "Reference count table offset invalid",
    "l1_large": "Active L1 table too large",
    "l1_offset": "Active L1 table offset invalid",
    "l1_small": "L1 table is too small",
    "snapshot_table_large": "Snapshot table too large",
    "snapshot_table_offset": "Snapshot table offset invalid",
    "snapshot_extra": "Too much extra metadata in snapshot table entry {a}\n"
    "You can force-remove this extra metadata with qemu-img check -r all",
    "snapshot_table_big": "Snapshot table is too big\n"
    "You can force-remove all {a} overhanging snapshots with qemu-img check -r all",
    "extension_large": "Header extension too large",
    "data_file_missing": "'data-file' is required for this image",
    "raw_without_data_file": "data-file-raw requires a data file",
    "encryption_method": "Unsupported encryption method {a}",
    "no_crypto_header": "Missing CRYPTO header for crypt method 2",
    "bitmaps_extension": "{bitmaps}",
    "virtual_size": "Image is too big",
    "not_vmdk": "invalid VMDK image descriptor",
    "vmdk_version": "Unsupported VMDK version {a}",
    "vmdk_read_only": "VMDK version 3 must be read only",
}
_CREATE = {
    "read_failed": "{errno}",
    "write_failed": "{errno}",
    "no_space": "No space left on device",
    "too_many_snapshots": "File too large",
    "refcount_overflow": "Invalid argument\n{message}",
    "data_file": "Operation not supported",
    "file_too_big": "File too large",
    "snapshot_table_full": "File too large",
}
_APPLY = {
    "read_failed": "Failed to load snapshot: {errno}",
    "write_failed": "Failed to load snapshot: {errno}",
    "no_space": "Failed to load snapshot: No space left on device",
    "snapshot_not_found": "Failed to load snapshot: No such file or directory",
    "refcount_overflow": "Failed to load snapshot: Invalid argument\n{message}",
    "data_file": "Failed to load snapshot: Operation not supported",
    "has_bitmaps": "Device has active dirty bitmaps",
    "snapshot_l1_large": "Snapshot L1 table too large|Failed to load snapshot: File too large",
    "snapshot_l1_offset": "Snapshot L1 table offset invalid|Failed to load snapshot: Invalid argument",
    "resize_v2": "Can't resize a v2 image which has snapshots|Failed to load snapshot: Operation not supported",
    "file_too_big": "Failed to load snapshot: File too large",
}
_DELETE = {
    "read_failed": "{errno}",
    "write_failed": "{errno}",
    "no_space": "No space left on device",
    "snapshot_not_found": "snapshot not found",
    "data_file": "snapshot not found",
    "snapshot_l1_large": "Snapshot L1 table too large",
    "snapshot_l1_offset": "Snapshot L1 table offset invalid",
    "file_too_big": "File too large",
    "name_not_deletable": "Can't find the snapshot",
}
_BITMAP = {
    "bitmap_name_empty": "Bitmap name cannot be empty",
    "bitmap_granularity": "Granularity must be power of 2 and at least 512",
    "bitmap_exists": "Bitmap already exists: {bitmap}",
    "bitmap_version_2": _NOT_STORED + "Cannot store dirty bitmaps in qcow2 v2 files",
    "bitmap_too_large": _NOT_STORED + "Too much space will be occupied by the bitmap. Use larger granularity",
    "bitmap_name_long": _NOT_STORED + f"Name length exceeds maximum ({BITMAP_NAME_MAX} characters)",
    "too_many_bitmaps": _NOT_STORED + "Maximum number of persistent bitmaps is already reached",
    "bitmap_directory_full": _NOT_STORED + "Not enough space in the bitmap directory",
    "bitmap_not_found": "Dirty bitmap '{bitmap}' not found",
    "bitmap_inconsistent": "Bitmap '{bitmap}' is inconsistent and cannot be used\n"
    "Try block-dirty-bitmap-remove to delete this bitmap from disk",
    "bitmap_sizes": "Bitmaps are of different sizes (destination size is {a}, source size is {b}) and can't be merged",
}
_COMMIT = {
    "read_failed": "{errno}",
    "write_failed": "{errno}",
    "no_space": "No space left on device",
    "file_too_big": "File too large",
    "compressed_cluster": "Input/output error",
    "base_resize_v2": "Operation not supported",
    "vmdk_parent_changed": "Invalid argument",
    "vmdk_full": "Input/output error",
    "base_vmdk_resize": "Operation not supported",
}
_REBASE = {
    "read_failed": "{errno}",
    "write_failed": "{errno}",
    "no_space": "No space left on device",
    "file_too_big": "File too large",
    "backing_name_room": "No space left in the file header",
    "compress_data_file": "Operation not supported",
    "backing_raw_data": "Invalid argument",
}

# Of locks, see docs/interop/qemu-img and block/file-posix.c: by what a lock on a byte stands for.
_PERMISSIONS = {0: "consistent read", 1: "write", 3: "resize"}
_USES, _KEEPS = 100, 200

# By the code of what was found out before there was a guest; given: what the operator gave.
_AHEAD = {
    "no_backing_file": "Image does not have a backing file",
    "base_not_found": "Did not find '{given}' in the backing chain of '{top}'",
    "base_device_small": "Block job failed: Invalid argument",
    "backing_name_long": "Could not change the backing file to '{given}': Invalid argument",
    "backing_format_missing": "Could not change the backing file to '{given}': backing format must be specified",
    "unknown_format": "Invalid format name: '{given}'",
}

_FILES = ("file", "top", "new_backing")  # facts that are names of files, out of images some of them


class ReportedError(Exception):
    """A failure in words. lines: what is printed, without the program's name in front of each. error: what it was."""

    def __init__(self, error: errors.AirlockError, lines: t.Sequence[str]) -> None:
        super().__init__(*lines)
        self.error = error
        self.lines = tuple(lines)


class Voice(t.NamedTuple):
    """How qemu-img tells of a refusal during an operation. texts: by code. prefix: what it has in front of them, made
    of the exception. files: facts that are names of files."""

    texts: t.Mapping[str, str]
    prefix: t.Callable[[errors.AirlockError], str]
    files: tuple[str, ...] = _FILES


def reading() -> Voice:
    """Of what only reads."""
    return Voice({}, lambda error: _opening(error.facts))


def snapshot(verb: str) -> Voice:
    """verb: create, apply or delete."""
    texts = {"create": _CREATE, "apply": _APPLY, "delete": _DELETE}[verb]
    return Voice(texts, lambda error: f"Could not {verb} snapshot '{error.facts['given']}': ")


def bitmap(verbs: t.Sequence[str]) -> Voice:
    """verbs: of the actions in the list; only "list" for what reads."""

    def prefix(error: errors.AirlockError) -> str:
        facts = error.facts
        if isinstance(error, errors.BitmapError) and facts["f"] < len(verbs):
            return f"Operation {verbs[facts['f']]} on bitmap {facts['given']} failed: "
        return (
            _opening(facts) if facts["disk"] or verbs == ["list"] else f"Could not change bitmap '{facts['given']}': "
        )

    return Voice(_BITMAP, prefix)


def commit() -> Voice:
    return Voice(_COMMIT, lambda _error: "Block job failed: ", (*_FILES, "given"))


def rebase() -> Voice:
    def prefix(error: errors.AirlockError) -> str:
        if error.code == "compress_data_file":
            return "Error while writing to COW image: "  # it finds out there
        return f"Could not change the backing file to '{error.facts['given']}': "

    return Voice(_REBASE, prefix, (*_FILES, "given"))


@contextlib.contextmanager
def speaking(voice: Voice) -> t.Iterator[None]:
    """Raises ReportedError in the place of an AirlockError, but for an EndedError."""
    try:
        yield
    except ending.EndedError:
        raise
    except errors.AirlockError as error:
        raise ReportedError(error, reports(error, voice)) from error


def reports(error: errors.AirlockError, voice: Voice) -> list[str]:
    """What qemu-img prints in the same place; the exception's own message where it has no such case.

    Names of files are without control characters: whoever made an image or a file chose them, and a newline in one
    makes a report of its own. What else the operator gave is as it was given.
    """
    facts = error.facts
    for key in voice.files:
        if key in facts:
            facts[key] = _printable(facts[key])
    if "message" in facts:
        return _of_refusal(error, voice)
    text = _of_opening(error)
    if text:
        return [_opening(facts) + text]
    template = _AHEAD.get(error.code, "")
    if "{given}" in template and "given" not in facts:
        template = ""  # another refusal of that code, which qemu-img has not
    return [template.format_map(facts) or error.message]


def _printable(name: str) -> str:
    return escape_controls(name.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def _of_refusal(error: errors.AirlockError, voice: Voice) -> list[str]:
    """Of the guest. Its own message stands behind qemu-img's prefix where qemu-img would go on."""
    facts = error.facts
    if error.code == "encrypted" and "top" in facts:
        return [_opening(facts) + error.message]  # which qemu-img finds out when it opens the chain
    template, prefix = _OPEN.get(error.code), _opening(facts)
    if template is None:
        template, prefix = voice.texts.get(error.code, "{message}"), voice.prefix(error)
    *others, last = (part.format_map(facts) for part in template.split("|"))
    return [*others, prefix + last]


def _of_opening(error: errors.AirlockError) -> str:
    """Of a file that could not be opened or locked; "" for what is nothing of the kind."""
    facts = error.facts
    if isinstance(error, errors.ImageInUseError):
        return _of_lock(facts)
    if isinstance(error, errors.ForceShareError) and facts:
        return "force-share=on can only be used with read-only images"
    if facts.get("number") == errno.EMFILE:
        return ""  # qemu-img's words leave a person alone with it
    for fact, text in (
        ("reason", "Could not open '{file}': {reason}"),
        ("kind", "'file' driver requires '{file}' to be a regular file"),
        ("driver", "Unknown driver '{driver}'"),
        ("damage", "{damage}"),
        ("options", "{options}"),
        ("empty", "The 'file' block driver requires a file name"),
    ):
        if fact in facts:
            return text.format(**facts)
    return ""


def _of_lock(facts: Facts) -> str:
    byte = facts["byte"]
    if facts["taking"]:
        return f"Failed to lock byte {byte}"
    kept = byte >= _KEEPS
    permission = _PERMISSIONS[byte - (_KEEPS if kept else _USES)]
    lock = f'"{permission}"' if kept else f'shared "{permission}"'
    return f"Failed to get {lock} lock\nIs another process using the image [{facts['file']}]?"


def _opening(facts: Facts) -> str:
    """What stands in front of what is wrong with a file that is opened. top, depth: of the chain that it is in."""
    if facts.get("opened"):
        return ""  # qemu-img has all files open by then, and names none
    prefix: str
    if "new_backing" in facts:
        prefix = f"Could not open new backing file '{facts['new_backing']}': "
    else:
        prefix = f"Could not open '{facts.get('top', facts['file'])}': "
    return prefix + "Could not open backing file: " * int(facts.get("depth", 0))
