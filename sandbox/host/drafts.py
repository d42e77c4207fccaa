# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""New files: whole or not there, and no more open than what they stand on."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import typing as t

from .. import errors
from ..words import opening
from .disks import beyond_standard
from .places import Place

_DESCRIPTORS = "/proc/self/fd"
_LABEL = "security.selinux"
_ACL = "system.posix_acl_access"
_NOT_KNOWN = (errno.ENODATA, errno.EOPNOTSUPP)  # there is none, or the file system knows none


class Access(t.NamedTuple):
    """Who may do what with a new file. mode: permission bits, whatever the umask is. owner, group: ids, None: of who
    runs this. attributes: extended attributes, an ACL and a security label."""

    mode: int = 0o600
    owner: int | None = None
    group: int | None = None
    attributes: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def of(cls, descriptor: int) -> Access:
        """That of an open file. The right to execute does not go along. Raises OSError."""
        status = os.fstat(descriptor)
        found = []
        for name in (_LABEL, _ACL):
            try:
                found.append((name, os.getxattr(descriptor, name)))
            except OSError as error:
                if error.errno not in _NOT_KNOWN:
                    raise
        return cls(stat.S_IMODE(status.st_mode) & 0o666, status.st_uid, status.st_gid, tuple(found))

    def without_acl(self) -> tuple[tuple[str, bytes], ...]:
        """The attributes, for a mode that is all that counts."""
        return tuple((name, value) for name, value in self.attributes if name != _ACL)

    def give_to(self, descriptor: int) -> None:
        """Who may not give a file away keeps it, and leaves out what would then open it to a group that is not meant.
        Raises OSError."""
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, -1 if self.owner is None else self.owner, -1)
        mode, names = self.mode, dict(self.attributes)
        try:
            os.fchown(descriptor, -1, -1 if self.group is None else self.group)
        except PermissionError:
            mode &= ~stat.S_IRWXG
            names.pop(_ACL, None)
        for name in (_LABEL, _ACL):
            try:
                if name in names:
                    os.setxattr(descriptor, name, names[name])
                elif name == _ACL:
                    os.removexattr(descriptor, name)  # what the directory gives to new files
            except OSError as error:
                # A label is the system's to give where the caller may not; an ACL that is wanted is not left
                # out, but where the file system has none.
                if error.errno not in (_NOT_KNOWN if name == _ACL else (*_NOT_KNOWN, errno.EPERM, errno.EACCES)):
                    raise
                if name == _ACL and name in names:
                    mode &= ~stat.S_IRWXG  # beside an ACL, that is the most that anybody in it may, and not the group
        os.fchmod(descriptor, mode)


class Draft:
    """A file in the directory of a place that gets the place's name when it is whole.

    Until then it is unlinked (O_TMPFILE), so that nothing is left of it when this process is killed; on a file system
    without O_TMPFILE it has a hidden temporary name. Raises ImageOpenError.
    """

    def __init__(self, place: Place, access: Access) -> None:
        """The place stays the caller's."""
        self._place = place
        self._access = access
        self._directory = place.directory.descriptor
        self._name: str | None = None
        try:
            try:
                if not os.path.isdir(_DESCRIPTORS):  # where publish() would find it
                    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
                flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
                descriptor = os.open(b".", flags, 0o600, dir_fd=self._directory)
            except OSError:
                self._name = f".airlock-{secrets.token_hex(8)}"
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                descriptor = os.open(self._name, flags, 0o600, dir_fd=self._directory)
        except OSError as error:
            raise opening.open_error(place.path, error, writable=True) from error
        self.descriptor = beyond_standard(descriptor)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_exception: object) -> None:
        os.close(self.descriptor)
        if self._name:
            with contextlib.suppress(OSError):
                os.unlink(self._name, dir_fd=self._directory)

    def publish(self) -> None:
        """Raises ImageOpenError. Unlike rename(2), link(2) replaces nothing."""
        path = self._place.path
        try:
            self._access.give_to(self.descriptor)
            os.fsync(self.descriptor)
            if self._name:
                self._link(self._name, self._directory, follow=False)
            else:
                descriptors = os.open(_DESCRIPTORS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    # With a directory, Python follows the link there; without, it does not.
                    self._link(str(self.descriptor), descriptors, follow=True)
                finally:
                    os.close(descriptors)
            with contextlib.suppress(OSError):  # where the file system can make the name lasting
                self._place.directory.sync()
        except FileExistsError as error:
            raise errors.ImageOpenError(
                f"{errors.clean(path, errors.PATH_LIMIT)} is there already, and is not replaced.", "exists"
            ) from error
        except OSError as error:
            raise opening.open_error(path, error, writable=True) from error

    def _link(self, name: str, directory: int, follow: bool) -> None:
        place = self._place.name
        os.link(name, place, src_dir_fd=directory, dst_dir_fd=self._directory, follow_symlinks=follow)
