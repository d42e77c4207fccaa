# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options mode, owner and group of new files: as in ansible.builtin.file, but numbers of permission bits only."""

from __future__ import annotations

import grp
import pwd
import re
import typing as t

from ...sandbox import errors
from ...sandbox.host.drafts import Access
from ...sandbox.images.image import Image
from ...sandbox.words import opening

_MODE = re.compile(r"0?o?[0-7]{3}", re.ASCII)
_ID_MAX = (1 << 32) - 2


class WantedAccess:
    """mode, owner, group: what the task states of new files, None: as what they stand on."""

    def __init__(self, params: t.Mapping[str, t.Any]) -> None:
        """Raises ArgumentError."""
        self.mode = _mode(params["mode"])
        self.owner = _id("owner", params["owner"], lambda name: pwd.getpwnam(name).pw_uid)
        self.group = _id("group", params["group"], lambda name: grp.getgrnam(name).gr_gid)

    def of_file_on(self, image: Image) -> Access:
        """For a new file that stands on an open image. Raises ImageOpenError."""
        try:
            access = Access.of(image.disk.descriptor)
        except OSError as error:
            raise opening.open_error(image.path, error, writable=False) from error
        if self.mode is not None:  # an ACL would have another say in it
            access = access._replace(mode=self.mode, attributes=access.without_acl())
        if self.owner is not None:
            access = access._replace(owner=self.owner)
        if self.group is not None:
            access = access._replace(group=self.group)
        return access


def _mode(value: object) -> int | None:
    if value is None:
        return None
    # YAML has made the number of one with a leading zero; without one, a decimal number came of what was meant octal.
    bits = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if isinstance(value, str) and _MODE.fullmatch(value):
        bits = int(value.replace("o", ""), 8)
    if not 0 <= bits <= 0o777:
        raise errors.ArgumentError(
            f"mode is '{errors.clean(str(value), 32)}'. Write the permission bits as a quoted octal number, such as "
            "'0640'.",
            "bad_mode",
        )
    return bits


def _id(option: str, value: str | None, look_up: t.Callable[[str], int]) -> int | None:
    if value is None:
        return None
    if value.isascii() and value.isdigit() and int(value[:12]) <= _ID_MAX:
        return int(value)
    try:
        return look_up(value)
    except (KeyError, ValueError) as error:
        raise errors.ArgumentError(
            f"{option} is '{errors.clean(value, 64)}', and there is no such {'user' if option == 'owner' else 'group'} "
            "on this host. Make it first, or name another one.",
            f"bad_{option}",
        ) from error
