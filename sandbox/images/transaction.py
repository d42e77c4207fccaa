# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes of several images, all or none."""

from __future__ import annotations

import contextlib
import errno
import os
import typing as t

from .. import errors
from ..host import ending
from ..vmm import journal
from .image import Image


class Transaction:
    """Changes of several images, all or none: every change is undone unless keep() was called.

        with Transaction(images) as transaction:
            for image in images: create_snapshot(image, name, date)
            transaction.keep()

    An exception inside undoes everything and propagates. A signal that ends the process (ending.py) makes the
    operations fail, and interrupts nothing else: neither undo() nor keep() stops half way.
    """

    def __init__(self, images: t.Sequence[Image]) -> None:
        self.images = tuple(images)

    def __enter__(self) -> Transaction:
        self._uninterrupted = contextlib.ExitStack()
        self._uninterrupted.enter_context(ending.held())
        for image in self.images:
            try:
                image.journal = journal.UndoJournal(image.disk, image.place.directory)
            except OSError as error:
                self._disarm()
                self._uninterrupted.close()
                raise _no_journal(image.path, error.errno or 0) from error
        return self

    def __exit__(self, kind: object, _exception: object, _traceback: object) -> None:
        try:
            if any(image.journal for image in self.images):
                self.undo()
        finally:
            self._uninterrupted.close()

    def keep(self) -> None:
        """The changes stay; what the operations freed is given back to the file system, as far as that can be done."""
        try:
            for image in self.images:
                if image.journal is not None:
                    # Nothing refers to it any more. qemu ignores a discard that fails as well, and no journal that is
                    # not what it should be keeps the others from theirs.
                    with contextlib.suppress(Exception):
                        image.journal.keep()
        finally:
            self._disarm()  # whatever stops it: what was given back is gone, and there is no way back to it
        ending.hold()

    def undo(self) -> None:
        """Every image becomes what it was, to the byte and to its length.

        Raises TransactionError, after all were tried, when one could not be restored; it names each such image.
        """
        failures = []
        for image in self.images:
            if image.journal is None:
                continue
            try:
                image.journal.undo()
            except Exception as error:  # whatever it is, the others of the group shall be what they were
                failures.append(f"{errors.clean(image.path, 256)} ({errors.clean(str(error), 256)})")
        self._disarm()
        if failures:
            raise errors.TransactionError(
                f"These images were changed and could not be restored: {', '.join(failures)}. The others of the group "
                "are as they were. Restore each of these from a backup."
            )

    def _disarm(self) -> None:
        for image in self.images:
            if image.journal is not None:
                image.journal.close()
                image.journal = None


def _no_journal(path: str, number: int) -> errors.NoJournalError:
    """The exception for a journal that cannot be made. number: errno."""
    from ..words import advice

    if number in (errno.ENOSPC, errno.EDQUOT):
        way = "Make room in its directory, or in the one for temporary files."
    else:
        way = advice.of_errno(number, advice.say("temporary"))
    return errors.NoJournalError(
        f"There is no place to note what {errors.clean(path)} was like before the change: {os.strerror(number)}. {way}"
    )
