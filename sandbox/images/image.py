# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image, opened and locked, and the way to ask a guest about it: what all operations have in common.

Nothing of an image's content is looked at here. The operations themselves are in a file for each family, those that
change an image apart from those that read it: most tasks find that there is nothing to change, and a managed host
compiles for each task what it loads.
"""

from __future__ import annotations

import os
import typing as t

from .. import errors
from ..host import disks, locks
from ..host.places import Key, Place, file_key, find_place
from ..vmm import kvm, machine, memory
from ..vmm.machine import Limits, Loader, Report, Run
from ..words import opening
from . import calls

if t.TYPE_CHECKING:
    from ..vmm.journal import UndoJournal

__all__ = ["Image", "Limits", "Progress", "Report", "memory", "run_guest"]

Progress = t.Optional[t.Callable[[int, int], None]]
"""What an operation tells how far it is, as of Run."""


class Image:
    """An opened and locked image. Closing it drops the locks.

    path: as given. place: its directory, its name there, and the file itself. disk: the same, open for I/O. lock: what
    is held. journal: set while a Transaction runs.
    """

    def __init__(self, place: Place, disk: disks.Disk, lock: locks.Lock) -> None:
        """Takes over the place and the disk."""
        self.path = place.path
        self.place = place
        self.disk = disk
        self.lock = lock
        self.journal: UndoJournal | None = None

    @classmethod
    def open(
        cls, path: str | bytes | Place, writable: bool = False, force_share: bool = False, use: str = "qcow2"
    ) -> Image:
        """Opens the file and takes qemu's locks before anything is read.

        path: a Place is taken over, and closed on failure too. force_share: reads even what a virtual machine holds,
        and forbids nothing to others. use: as of locks.lock_image().
        Raises ImageOpenError, ImageInUseError, ForceShareError.
        """
        place = path if isinstance(path, Place) else find_place(path, writable=writable)
        try:
            if writable and force_share:
                raise opening.force_share_error(place.path)
            image = cls(place, disks.disk_of_place(place, writable), locks.Lock(()))
        except BaseException:
            place.close()
            raise
        try:
            image.lock = locks.lock_image(image.disk.descriptor, place.path, writable, force_share, use)
        except BaseException:
            image.close()
            raise
        return image

    @property
    def key(self) -> Key:
        """Tells files apart, see places.file_key()."""
        return file_key(os.fstat(self.disk.descriptor))

    def close(self) -> None:
        self.disk.close()
        self.place.close()

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def get_ready_for_threads() -> None:
    """To be called before several threads run guests. Raises NoCffiError, NotBuiltError."""
    kvm.realize()


def run_guest(
    images: t.Sequence[Image],
    guest: Loader,
    operation: str,
    fields: t.Mapping[str, t.Any],
    limits: Limits | None,
    refuse: t.Callable[[t.Any], errors.AirlockError],
    writable: t.Collection[int] = (),
    progress: Progress = None,
) -> tuple[t.Any, bytes, Report]:
    """One guest: (result struct, payload, report). images: the first is what the operation is about.

    fields: of the call. refuse: makes the exception for a result's header with a refusal in it. guest, writable,
    progress: as of Run. Raises ArgumentError for one that is to be written to and was opened for reading.
    """
    for index in writable:
        if not images[index].disk.writable:
            raise errors.ArgumentError(
                f"{errors.clean(images[index].path)} was opened for reading. Open it writable to change it."
            )
    sizes = [image.disk.size for image in images]
    limits = limits or Limits()
    run = Run(
        guest,
        calls.build(operation, sizes, fields, may_ask=True),
        [image.disk for image in images],
        writable,
        limits,
        images[0].journal if writable else None,
        progress,
    )
    try:
        answer = machine.run(run)
        result = calls.result(operation, answer.result)
        header = result.header
        # That nothing was written, the guest may only claim.
        if header.memory_wanted and not header.modified and not answer.report.bytes_written:
            left = limits.seconds and max(limits.seconds - answer.report.milliseconds / 1000, 0.001)
            call = calls.build(operation, sizes, fields)
            answer = machine.run(
                run._replace(call=call, limits=limits._replace(seconds=left), memory=header.memory_wanted)
            )
            result = calls.result(operation, answer.result)
            header = result.header
    except OSError as error:
        from ..words import advice  # it is hardly ever wanted

        way = advice.of_errno(error.errno or 0, "Look at its limits of processes and memory (ulimit -a).")
        raise errors.HostError(
            f"The system has no means to start a guest: {os.strerror(error.errno or 0)}. {way}"
        ) from error
    if header.modified and not writable:
        raise errors.GuestProtocolError("The guest says that it wrote to an image which it was to read.")
    if header.code:
        raise refuse(header)
    if header.windows > 1:
        memory.short[images[0].path] = header.windows, answer.report.memory
    return result, answer.payload, answer.report._replace(windows=max(1, header.windows))
