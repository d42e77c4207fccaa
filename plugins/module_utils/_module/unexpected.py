# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What nobody thought of, told like any other failure. Loaded only when it has come to that."""

from __future__ import annotations

import errno
import sys
import traceback

from ..sandbox import errors
from ..sandbox.words import advice

_WHERE = (
    "Run with -vvv, since ansible-core 2.19 with ANSIBLE_DISPLAY_TRACEBACK=error as well, the task shows where; please "
    "report it."
)


class InternalError(errors.AirlockError):
    """A fault of ours. traceback: of what was raised."""

    code = "internal_error"

    def __init__(self, message: str, shown: str) -> None:
        super().__init__(message)
        self.traceback = shown


def told(error: BaseException, done: bool = False) -> errors.AirlockError:
    """An exception of any kind as one of ours. done: what the task was to change, is changed."""
    if isinstance(error, errors.AirlockError):
        return error
    what = errors.clean(f"{type(error).__name__}: {error}")
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        return errors.HostError(f"A name has characters that the locale does not have: {what}. {advice.say('locale')}")
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None) or 0
    way = advice.of_errno(number, "")
    after = " All images were changed as the task says; only its result is lost." if done else ""
    if way and isinstance(error, (OSError, MemoryError)):
        return errors.HostError(f"The system refused something: {what}. {way}{after}")
    return InternalError(
        f"A fault of airlock.images itself: {what}. {_WHERE}{after}",
        "".join(traceback.format_exception(type(error), error, error.__traceback__)),
    )
