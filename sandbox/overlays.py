# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""New overlays: images that hold nothing and show what they stand on."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import typing as t

from . import disks, errors, images, locks
from .images import Image, Limits, Report
from .rebases import check_name

if t.TYPE_CHECKING:
    from . import _guest_chain  # noqa: F401  so it travels with this

SECTOR = 512

_FAMILY = "chain"
_DESCRIPTORS = "/proc/self/fd"


def create_overlay(
    path: str,
    virtual_size: int,
    backing_name: bytes,
    backing_format: str,
    cluster_size: int = 65536,
    limits: Limits | None = None,
) -> Report:
    """A new qcow2 image, byte for byte as qemu-img create makes it.

    virtual_size: bytes; what is no multiple of SECTOR is rounded up. backing_name: as it is recorded; the file is not
    looked at. cluster_size: a power of two from 512 bytes to 2 MiB.
    The file is there whole, or not at all. Raises ArgumentError for a bad name, ImageOpenError for a path where there
    is a file already, or where none can be made, RefusalError.
    """
    check_name(backing_name, backing_format)
    with _Draft(path) as draft:
        try:
            disk = disks.Disk(path, os.dup(draft.descriptor), writable=True)
        except OSError as error:
            raise errors.open_error(path, error, writable=True) from error
        with Image(path, disk, locks.Lock(())) as image:
            image.lock = locks.lock_image(image.disk.descriptor, path, writable=True)
            report = _fill(image, virtual_size, backing_name, backing_format, cluster_size, limits)
            draft.publish()
    _sync_directory(path)
    return report


class _Draft:
    """A file in the directory of `path` that gets that name when it is whole.

    It has none before, so that nothing is left of it when this process is killed; only where the file system knows no
    such files, it has one that nobody looks for. Raises ImageOpenError.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._name: str | None = None
        directory = os.path.dirname(path) or "."
        # qemu-img makes files that all may read, as far as the umask lets it.
        mode = 0o644
        try:
            if not os.path.isdir(_DESCRIPTORS):  # where publish() would find it
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)
        except OSError:
            self._name = os.path.join(directory, f".airlock-{secrets.token_hex(8)}")
            try:
                descriptor = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            except OSError as error:
                raise errors.open_error(path, error, writable=True) from error
        self.descriptor = disks.beyond_standard(descriptor)

    def __enter__(self) -> _Draft:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self.descriptor)
        if self._name:
            with contextlib.suppress(OSError):
                os.unlink(self._name)

    def publish(self) -> None:
        """Raises ImageOpenError. Unlike rename(2), link(2) replaces nothing."""
        try:
            os.fsync(self.descriptor)
            if self._name:
                os.link(self._name, self._path)
                return
            descriptors = os.open(_DESCRIPTORS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # With a directory, Python follows the link there; without, it does not.
                os.link(str(self.descriptor), self._path, src_dir_fd=descriptors, follow_symlinks=True)
            finally:
                os.close(descriptors)
        except FileExistsError as error:
            raise errors.ImageOpenError(
                f"{errors.clean(self._path, errors.PATH_LIMIT)} is there already, and is not replaced.", code="exists"
            ) from error
        except OSError as error:
            raise errors.open_error(self._path, error, writable=True) from error


def _fill(
    image: Image, virtual_size: int, name: bytes, format_name: str, cluster_size: int, limits: Limits | None
) -> Report:
    recorded = os.fsencode(format_name)
    fields = {
        "virtual_size": -(-virtual_size // SECTOR) * SECTOR,
        "cluster_bits": cluster_size.bit_length() - 1,
        "backing_length": len(name),
        "format_length": len(recorded),
        "backing_name": name,
        "backing_format": recorded,
    }
    refuse = functools.partial(_refusal, image.path, os.fsdecode(name))
    result, payload, report = images.run_guest([image], _FAMILY, "overlay", fields, limits, refuse, read_only=False)
    if payload or result.file_size != image.disk.size:
        raise errors.GuestProtocolError("The guest's answer about a new overlay contradicts itself.")
    return report


def _sync_directory(path: str) -> None:
    """Makes the new name lasting, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _refusal(path: str, name: str, header: t.Any) -> errors.AirlockError:
    from . import refused  # words, and most runs need none

    return refused.from_rebase_refusal(header, [path], name)
