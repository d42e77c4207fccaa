# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run is, what it may cost, what it answers, and how the answer comes through the pipe from the jailed child.

The child sends numbers and opaque bytes; the words for what went wrong are in faults.py. Named tuples and not data
classes: those take 12 ms to import.
"""

from __future__ import annotations

import struct
import typing as t

if t.TYPE_CHECKING:
    from ..host.disks import Disk
    from .journal import UndoJournal

RESULT_SIZE = 8192  # bytes of the result area that are handed over; every struct result_* fits
TEXT_LIMIT = 1024

# Kinds of messages; all but PROGRESS are the last one.
PROGRESS, FINISHED, CRASHED, RULE_BROKEN, BUDGET_EXITS, BUDGET_BYTES, TIME_OVER, FAILED = range(8)
BUDGET_UNDO, IDLE, TOO_LONG = range(8, 11)

# Layers of the jail, by the bit that the child sets once each is up.
LAYERS = (
    "user_mode_guest",
    "descriptors",
    "namespaces",
    "credentials",
    "no_new_privs",
    "landlock",
    "rlimits",
    "seccomp",
    "timer",
)


IDLE_SECONDS = 60.0
WHOLE_SECONDS = 300.0
TOGETHER_SECONDS = 3600.0  # of all runs that one journal can undo, unless a single one may take longer
_LEAST_SECONDS = 0.001
SLOWEST = 4 << 20  # bytes a second: no storage that images live on is slower


class Limits(t.NamedTuple):
    """What a run may use up.

    seconds: from the fork; None: as long as it makes headway, which is at most as long as the slowest storage takes for
    all that the disks hold. idle: seconds that the guest may run from one doorbell to the next; what the host does for
    it in between is not counted. exits: doorbells. bytes: read, written, copied and
    zeroed, REQUEST_BYTES of doorbell_rules.py at least for each request.
    file_growth: bytes that a disk may grow beyond the length it has at the start. rate: bytes a second that are written
    and copied, 0: as fast as it goes. flushes: False: the guest's flush requests are ignored. Both are for guests that
    copy, see Program. foresees: whether a change is refused that will take longer, as far as can be told before its
    first write."""

    seconds: float | None = None
    idle: float = IDLE_SECONDS
    exits: int = 2_000_000
    bytes: int = 1 << 42
    file_growth: int = 1 << 34
    rate: int = 0
    flushes: bool = True
    foresees: bool = False

    @classmethod
    def within(cls, seconds: float | None) -> Limits:
        """What somebody who gave a time means: all of it, whatever happens in it. None: nobody did."""
        return cls() if seconds is None else cls(seconds, idle=seconds, foresees=True)

    def time(self, held: int, spent: float = 0.0) -> float:
        """Seconds that a run may take. held: bytes that its disks have allocated; it moves no more than `bytes`. spent:
        seconds that runs before it took, which the same journal undoes."""
        if self.seconds is not None:
            return self.seconds
        own = WHOLE_SECONDS + min(held, self.bytes) / SLOWEST
        return max(_LEAST_SECONDS, min(own, max(own, TOGETHER_SECONDS) - spent))


class Program(t.NamedTuple):
    """A guest: what lies at TEXT_ADDRESS and at DATA_ADDRESS when it starts. server: serves it when it writes:
    doorbell_copies.MovingServer for one that copies from disk to disk; None: doorbell_writes.ChangingServer."""

    text: bytes
    data: bytes
    server: t.Callable[..., t.Any] | None = None


Loader = t.Callable[[], t.Union[Program, tuple[bytes, bytes]]]
"""load() of a generated file _guest_FAMILY.py, which it imports: so the file travels with who has the import."""


class Run(t.NamedTuple):
    """What one guest is to do, with what, and at what cost; made by the operation, and nobody changes it.

    guest: a program, or what loads it. call: the bytes of a struct call_*. disks: in the order of their indexes.
    writable: indexes of the disks that the guest may change; the others it only reads, however they were opened.
    journal: records the old content of its disk, which is one of disks. progress: is told (done, total) while the guest
    works; what it raises stops the guest. memory: bytes that the guest has asked for.
    """

    guest: Loader | Program
    call: bytes
    disks: t.Sequence[Disk] = ()
    writable: t.Collection[int] = ()
    limits: Limits = Limits()
    journal: UndoJournal | None = None
    progress: t.Callable[[int, int], None] | None = None
    memory: int = 0


class Report(t.NamedTuple):
    """How a run went. layers: what held the guest in. peak_memory: bytes resident in the child, at most. memory: bytes
    that the guest might have used. windows: how often it went over all tables, because not all counters had room."""

    layers: tuple[str, ...]
    exits: int
    bytes_read: int
    bytes_written: int
    milliseconds: float
    peak_memory: int
    memory: int = 0
    windows: int = 1


class Answer(t.NamedTuple):
    """result: the first RESULT_SIZE bytes of the result area; payload: what FINISH named. Both untrusted."""

    result: bytes
    payload: bytes
    report: Report


class Message(t.NamedTuple):
    """The fixed part of a message. a, b, c: as the kind has it. layers: bits; landlock: its ABI version. length:
    bytes that follow."""

    kind: int
    layers: int
    landlock: int
    exits: int
    bytes_read: int
    bytes_written: int
    a: int
    b: int
    c: int
    length: int


MESSAGE = struct.Struct("<IIIQQQQQQQ")


def layer_names(message: Message) -> tuple[str, ...]:
    """The layers that were up when the message was sent; Landlock's with its version."""
    names = (name for bit, name in enumerate(LAYERS) if message.layers >> bit & 1)
    return tuple(f"landlock_abi_{message.landlock}" if name == "landlock" else name for name in names)
