# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which snapshots the option `retention` of qcow2_snapshot lets go. Loaded by tasks that give it only."""

from __future__ import annotations

import re
import typing as t

from ...sandbox import errors
from ..arguments import image_text

if t.TYPE_CHECKING:
    from ...sandbox.images.snapshots import Snapshot

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}  # in seconds
SECOND = 1_000_000_000  # in nanoseconds


class Retention:
    """Whose names start with prefix, and of these, how many stay (keep, None: not by number), and which ages.

    max_age: in seconds, None: not by age.
    """

    def __init__(self, option: t.Mapping[str, t.Any], state: str, name: bytes, limit: int) -> None:
        """option: as the task gives it; state, name: the task's; limit: of a name, in bytes. Raises ArgumentError."""
        if state != "present":
            raise _bad(f"retention belongs to state 'present', not to '{state}'. Leave it out, or change the state.")
        if not option["prefix"]:
            raise _bad("retention.prefix is empty, all snapshots would be meant. Give the beginning of your names.")
        if option["keep"] is None and option["max_age"] is None:  # present, but null: Ansible lets that pass
            raise _bad("retention has neither keep nor max_age, nothing would stay. Give at least one of them.")
        self.prefix = image_text("retention.prefix", option["prefix"], limit)
        self.keep: int | None = option["keep"]
        if self.keep is not None and self.keep < 1:
            raise _bad(f"retention.keep is {self.keep}. It must be at least 1.")
        self.max_age = None if option["max_age"] is None else seconds(option["max_age"])
        self.named = name

    def outdated(self, snapshots: t.Sequence[Snapshot], creates: bool, now: tuple[int, int]) -> tuple[Snapshot, ...]:
        """Those that go, in their order.

        snapshots: of one image, in table order. creates: whether the named one comes behind them. now: seconds and
        nanoseconds.

        The last ones are those at the end of the table, where QEMU and this collection put a new one: no clock has a
        say in it. One whose date is in the future is young.
        """
        own = [snapshot for snapshot in snapshots if snapshot.name.startswith(self.prefix)]
        stay = 0
        if self.keep is not None:
            stay = self.keep - (creates and self.named.startswith(self.prefix))
        older = own[: max(len(own) - stay, 0)]
        return tuple(
            snapshot for snapshot in older if snapshot.name != self.named and not self._is_young(snapshot, now)
        )

    def _is_young(self, snapshot: Snapshot, now: tuple[int, int]) -> bool:
        if self.max_age is None:
            return False
        age = (now[0] - snapshot.date_seconds) * SECOND + now[1] - snapshot.date_nanoseconds
        return age < self.max_age * SECOND


def seconds(duration: str) -> int:
    """A time as 7d, 12h, 90s. Raises ArgumentError, also for a bare number: who writes 7 may mean days, and would
    lose all snapshots but those of the last seconds."""
    match = re.fullmatch(r"([0-9]{1,9})([smhdw])", duration.strip())
    length = int(match[1]) * UNITS[match[2]] if match else 0
    if not length:
        raise _bad(
            f"retention.max_age is '{errors.clean(duration, 80)}'. It is a number above 0 with its unit: s, m, h, d "
            "or w, as in 12h or 7d. For seconds write 90s."
        )
    return length


def _bad(message: str) -> errors.ArgumentError:
    return errors.ArgumentError(message, "bad_retention")
