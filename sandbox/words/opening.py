# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why an image file could not be opened, in words."""

from __future__ import annotations

import errno
import os
import sys

from ..errors import PATH_LIMIT, ForceShareError, ImageOpenError, clean


def open_error(path: str, error: OSError, writable: bool) -> ImageOpenError:
    """The exception for an open(2), fstat(2) or size query of `path` that failed with `error`."""
    if not path:
        return ImageOpenError(
            "The path is empty. Name an image file.",
            "not_found",
            file=path,
            empty=True,
        )
    number = error.errno or 0
    reason = os.strerror(number)
    code, advice = {
        errno.ENOENT: ("not_found", "Check the path."),
        errno.ENOTDIR: ("not_found", "Check the path."),
        errno.EISDIR: ("is_directory", "Name the image file in it."),
        errno.ELOOP: ("symlink_loop", "Name the image file itself."),
        errno.ENAMETOOLONG: ("name_too_long", "Check the path."),
        errno.EROFS: ("read_only", "Remount the file system writable, or work on a copy."),
        errno.ETXTBSY: ("busy", "Stop whoever uses the file."),
        # The answer to O_NONBLOCK: without, it would be waited for.
        errno.EAGAIN: ("busy", "A program has a lease on the file, and was told to give it up. Run it again soon."),
        errno.EACCES: ("permission_denied", "Run it as a user who may, or change the file's permissions."),
        errno.EPERM: ("permission_denied", "Run it as a user who may, or change the file's attributes."),
    }.get(number, ("open_failed", ""))
    if not advice:
        from . import advice as ways  # words, and most failures need none

        advice = ways.of_errno(number)
    access = "for writing" if writable else "for reading"
    return ImageOpenError(
        f"{clean(path, PATH_LIMIT)} cannot be opened {access}: {reason}. {advice}",
        code,
        file=path,
        reason=reason,
        number=number,
    )


def impossible_name(path: str, error: ValueError, writable: bool) -> ImageOpenError:
    """The exception for a path that cannot be given to the system: it has a NUL, or is not in the locale's encoding."""
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        from . import advice

        return ImageOpenError(
            f"{clean(path, PATH_LIMIT)} has characters that the locale of this process does not have, so that it can "
            f"name no file. {advice.say('locale')}"
        )
    return open_error(path, FileNotFoundError(errno.ENOENT, "a NUL"), writable)  # no such file can exist


def not_regular(path: str, what: str, code: str = "not_regular", writable: bool = False) -> ImageOpenError:
    """The exception for a path that is neither a regular file nor a block device. what: "a FIFO", "a directory"."""
    reason = {"reason": os.strerror(errno.EISDIR)} if writable and code == "is_directory" else {}
    return ImageOpenError(
        f"{clean(path, PATH_LIMIT)} is {what}. Name a regular file or a block device.",
        code,
        file=path,
        kind=what,
        **reason,
    )


def force_share_error(path: str) -> ForceShareError:
    """The exception for force_share on an image that is to be written."""
    from . import advice

    return ForceShareError(
        f"{clean(path, PATH_LIMIT)} is in use, or said to be: it is only read then, and not changed. "
        f"{advice.say('no_force_share')}, and stop whoever uses the image.",
        file=path,
    )
