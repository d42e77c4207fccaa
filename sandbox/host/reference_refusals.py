# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a file that an image names is not opened: the rule, and the option that would allow it, where one may.

A message has the name as it stands in the image, made printable, and nothing of what was found on the way.
"""

from __future__ import annotations

import errno
import os

from ..errors import PATH_LIMIT, ChainError, clean, quote
from ..guests._limits import BACKING_NAME_MAX
from ..words import advice
from ..words.vmdk_refusals import edit_descriptor
from .reference_rules import NameRuleError, Reference

_ROLES = {"backing": "backing file", "data_file": "data file"}

# {reason} and {of_errno}: of a system call. {relink}: how another file is named. Any other field is a way of advice.py.
WORDINGS = {
    "name_empty": "The name is empty.",
    "name_nul": "There is a NUL in the name, which no file's name has. {relink}",
    "protocol": "What stands in front of the colon is a protocol to QEMU. Protocols, URLs and json: are never opened. "
    "{relink} One with a colon is written with ./ in front.",
    "name_long": f"The name has more than {BACKING_NAME_MAX} bytes, or a part of it more than 255. {{relink}}",
    "absolute": "An absolute name must lead into the directory of the image, or into one of {roots}. If you "
    "trust the image, and know that file or device, {allow}.",
    "outside": "The name leads out of the directory of the image, and into none of {roots}. If you trust the "
    "image, and know that file or device, {allow}.",
    "symlink": "A symbolic link on the way leads out of the directory of the image and of {roots}. If you trust "
    "the link, and know the file or device that it leads to, {allow}.",
    "symlink_loop": "There are more than 40 symbolic links on the way. Name the file itself.",
    "not_found": "There is no such file. Put it there. {relink}",
    "permission": "It may not be opened. Run this as a user who may, or change the file's permissions.",
    "not_regular": "That is no regular file. Directories, FIFOs, sockets and character devices are never opened. "
    "{relink}",
    "block_device": "That is a block device, which an image alone may not choose. If you trust the image, and "
    "know the device, {allow}.",
    "loop": "That is a file which the chain has already: a chain that returns to itself has no end. {relink}",
    "open_failed": "It cannot be opened: {reason}. {of_errno}",
}
_RULES_OF_ERRORS = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.ESTALE: "not_found",
    errno.ENAMETOOLONG: "name_long",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
}


def refusal(reference: Reference, error: NameRuleError | OSError, path: str) -> ChainError:
    """The exception for a name that breaks a rule, or that cannot be opened. Its code is the role and the rule.

    path: as qemu would have it.
    """
    facts = {}
    fields = advice.Fields(image=quote(reference.image), file=quote(path), reason="", of_errno=advice.of_errno(0))
    if isinstance(error, NameRuleError):
        rule = str(error)
    else:
        rule = _RULES_OF_ERRORS.get(error.errno or 0, "open_failed")
        reason = os.strerror(error.errno or 0)
        fields.update(reason=reason, of_errno=advice.of_errno(error.errno or 0))
        facts = {"file": path, "reason": reason}
    fields["relink"] = _relink(reference)
    message = f"{_subject(reference)} is not opened. {WORDINGS[rule].format_map(fields)}"
    return ChainError(message, f"{reference.role}_{rule}", **facts)


def format_missing(reference: Reference) -> ChainError:
    """The exception for an overlay that does not say what its backing file is."""
    return ChainError(
        f"{_subject(reference)} has no format recorded. A format is never guessed, for the content of a disk could "
        f"make it any. {advice.say('state_format')}: qcow2, raw or vmdk.",
        "backing_format_missing",
    )


def format_unknown(reference: Reference, name: bytes) -> ChainError:
    """The exception for a recorded format that is none of ours."""
    return ChainError(
        f"{_subject(reference)} is recorded as of the format '{clean(name, 32)}'. Known are qcow2, raw and vmdk. If "
        f"it is one of them, record that. {_relink(reference)}",
        "backing_format_unknown",
    )


def too_deep(top: str, limit: int) -> ChainError:
    """The exception for a chain of more layers than there may be."""
    return ChainError(
        f"{clean(top, PATH_LIMIT)} has a chain of more than {limit} layers. {advice.say('shorten')}",
        "chain_too_deep",
    )


def hard_links(path: str, is_data_file: bool) -> ChainError:
    """The exception for a file of several names, or one that has lost its name, see chain.check_hard_links()."""
    role = "data_file" if is_data_file else "backing"
    allow = advice.say("allow", {"file": quote(path)})
    return ChainError(
        f"{clean(path, PATH_LIMIT)} is a {_ROLES[role]} that only an image names, and the file has, or had, "
        "other names (hard links): it may belong to something else, so nothing is written to it or copied from it. If "
        f"you know the file, {allow}.",
        f"{role}_hard_links",
    )


def elsewhere(path: str, is_data_file: bool) -> ChainError:
    """The exception for a file that would be written to in an allowed root, see chain.check_written()."""
    role = "data_file" if is_data_file else "backing"
    allow = advice.say("allow", {"file": quote(path)})
    return ChainError(
        f"{clean(path, PATH_LIMIT)} is a {_ROLES[role]} that only an image names, and it is neither in that image's "
        "directory nor below: it may belong to something else, so nothing is written to it. If you know the file, "
        f"{allow}.",
        f"{role}_elsewhere",
    )


def _relink(reference: Reference) -> str:
    """How another file is named: nothing is opened for it, so that the image must be known."""
    image = quote(reference.image)
    if reference.descriptor_sectors:
        edit = edit_descriptor(image, reference.descriptor_sectors)
        return advice.say("relink_vmdk", {"edit": edit})
    if reference.role == "data_file":
        return advice.say("restore_both")
    return advice.say("relink", {"image": image})


def _subject(reference: Reference) -> str:
    role = _ROLES[reference.role]
    return f"{clean(reference.image, PATH_LIMIT)} names the {role} '{clean(reference.name)}', which"
