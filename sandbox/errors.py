# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One exception for each kind of failure, each with a stable code and a sentence that says what to do next.

Text out of an image is cleaned and cut; `message` never exceeds MESSAGE_LIMIT bytes.
"""

from __future__ import annotations

import typing as t

MESSAGE_LIMIT = 4096
PATH_LIMIT = 1024
_TEXT_LIMIT = 512


class AirlockError(Exception):
    """Base of everything that sandbox raises on purpose.

    code: stable, snake_case. message: one sentence or more, printable, at most MESSAGE_LIMIT bytes of UTF-8.
    modified: whether the image was written to before the failure. facts: what the message was made of, by name, for who
    words it otherwise; paths and names that the operator gave stand there unchanged (surrogateescape).
    """

    code = "error"

    def __init__(self, message: str, code: str | None = None, /, **facts: t.Any) -> None:
        self.message = _cut(message, MESSAGE_LIMIT)
        self.facts = facts
        self.modified = False
        if code is not None:
            self.code = code
        super().__init__(self.message)


class NoKvmError(AirlockError):
    """There is no /dev/kvm."""

    code = "no_kvm"


class KvmPermissionError(AirlockError):
    """/dev/kvm is there, but may not be opened."""

    code = "kvm_permission"


class KvmError(AirlockError):
    """KVM refused something that it promised."""

    code = "kvm"


class NoCffiError(AirlockError):
    """The cffi backend is missing, or too old."""

    code = "no_cffi"


class HostError(AirlockError):
    """The system is out of processes, descriptors or memory."""

    code = "host"


class NotBuiltError(AirlockError):
    """A generated file is missing."""

    code = "not_built"


class JailError(AirlockError):
    """A layer of the jail that must be there could not be put up."""

    code = "jail"


class GuestCrashError(AirlockError):
    """The guest faulted, or broke a rule of the doorbell. exit_reason: KVM's; address: of the instruction, or 0."""

    code = "guest_crash"
    exit_reason = 0
    address = 0


class GuestProtocolError(AirlockError):
    """The guest's answer does not have the agreed form."""

    code = "guest_protocol"


class GuestMemoryError(AirlockError):
    """The image needs more guest memory than there is."""

    code = "no_memory"


class TimeLimitError(AirlockError):
    """The guest did not finish in time."""

    code = "time_limit"


class TooLongError(TimeLimitError):
    """The work cannot be done in the time given, as was seen before the first write."""

    code = "time_too_short"


class BudgetError(AirlockError):
    """The guest used up its exits or bytes."""

    code = "budget"


class ImageOpenError(AirlockError):
    """The image file could not be opened; `code` says why."""

    code = "open_failed"


class ChainError(AirlockError):
    """A file that an image names is not opened; `code` names the rule. docs/chain.md has all of them."""

    code = "chain"


class ImageInUseError(AirlockError):
    """Another process holds qemu's locks on the image. pids: the holders, as far as the kernel tells."""

    code = "in_use"

    def __init__(self, message: str, pids: t.Sequence[int] = (), **facts: t.Any) -> None:
        super().__init__(message, **facts)
        self.pids = tuple(pids)


class ForceShareError(AirlockError):
    """force_share was asked for together with a change."""

    code = "force_share"


class ArgumentError(AirlockError):
    """The caller asked for something impossible."""

    code = "argument"


class TransactionError(AirlockError):
    """Undoing a group of images failed: the message says which image is in which state."""

    code = "transaction"


class NoJournalError(AirlockError):
    """A journal for undoing changes could not be made; nothing was changed."""

    code = "no_journal"


class RefusalError(AirlockError):
    """The guest refused. leaked_clusters: what its verification counted until then."""

    code = "refused"
    leaked_clusters = 0


class ImageReadError(RefusalError):
    """Reading the image failed below us."""


class ImageWriteError(RefusalError):
    """Writing the image failed below us."""


class NoSpaceError(RefusalError):
    """The file system is full; nothing was changed."""


class NotQcow2Error(RefusalError):
    """The file is no qcow2 image."""


class HeaderError(RefusalError):
    """The header, or a table that it names, is not acceptable."""


class InconsistentImageError(RefusalError):
    """References and refcounts contradict each other."""


class SnapshotError(RefusalError):
    """The image is sound, but this cannot be done with its snapshots."""


class SnapshotNotFoundError(SnapshotError):
    """No snapshot has this id or name."""


class BitmapError(RefusalError):
    """The image is sound, but this cannot be done with its bitmaps."""


class BitmapNotFoundError(BitmapError):
    """No bitmap has this name."""


class CommitError(RefusalError):
    """The images are sound, but this cannot be committed."""


class RebaseError(RefusalError):
    """The images are sound, but this one cannot have that backing file."""


def clean(text: str | bytes, limit: int = _TEXT_LIMIT) -> str:
    """The text, printable: undecodable bytes and control characters (bidirectional ones too) become U+FFFD.

    limit: characters that are kept.
    """
    try:
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    except UnicodeEncodeError:  # half of a pair, which no file's name has, but JSON can hold
        data = str(text).encode("utf-8", "replace")
    decoded = data[: 4 * limit].decode("utf-8", "replace")[:limit]
    return decoded if decoded.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in decoded)


def quote(path: str) -> str:
    """The path as a shell takes it, printable."""
    text = clean(path, PATH_LIMIT)
    plain = text and all(c.isalnum() or c in "-_./+,:@%" for c in text)
    return text if plain else "'" + text.replace("'", "'\"'\"'") + "'"


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "..."
