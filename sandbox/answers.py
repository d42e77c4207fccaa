# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run may cost, what it answers, and how the answer comes through the pipe from the jailed child.

The child sends numbers and opaque bytes; the words are found here, in the parent. Named tuples and not data classes:
those take 12 ms to import.
"""

from __future__ import annotations

import os
import signal
import struct
import typing as t

from . import errors, kvm
from .rules import RULES

RESULT_SIZE = 8192  # bytes of the result area that are handed over; every struct result_* fits
TEXT_LIMIT = 1024

# Kinds of messages; all but PROGRESS are the last one.
PROGRESS, FINISHED, CRASHED, RULE_BROKEN, BUDGET_EXITS, BUDGET_BYTES, TIME_OVER, FAILED = range(8)

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

_EXIT_REASONS = {
    kvm.EXIT_IO: "access to a port that is not the doorbell's",
    kvm.EXIT_SHUTDOWN: "fault (bad address, forbidden instruction, or the like)",
}


class Limits(t.NamedTuple):
    """What a run may use up. seconds: from the fork. exits: doorbells. bytes: read, written and copied.
    file_growth: bytes that a disk may grow beyond the length it has at the start."""

    seconds: float = 60.0
    exits: int = 2_000_000
    bytes: int = 1 << 42
    file_growth: int = 1 << 34


class Report(t.NamedTuple):
    """How a run went. layers: what held the guest in. peak_memory: bytes resident in the child, at most."""

    layers: tuple[str, ...]
    exits: int
    bytes_read: int
    bytes_written: int
    milliseconds: float
    peak_memory: int


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


def failure(message: Message, text: bytes, limits: Limits) -> errors.AirlockError:
    """The exception for a message that is neither PROGRESS nor a whole FINISHED. text: what followed it."""
    error = _failure(message, text, limits)
    error.modified = message.bytes_written > 0
    return error


def _failure(message: Message, text: bytes, limits: Limits) -> errors.AirlockError:
    written = (
        ' The image was written to before this; look at it with "qemu-img check".' if message.bytes_written else ""
    )
    if message.kind == CRASHED:
        return crash(message.a, message.b, written)
    if message.kind == RULE_BROKEN:
        rule = RULES[message.a] if message.a < len(RULES) else "unknown"
        return errors.GuestProtocolError(
            f"The guest broke a rule of the doorbell and was stopped: {rule} (request {message.b}: {message.c:#x})."
            + written
        )
    if message.kind == BUDGET_EXITS:
        return errors.BudgetError(
            f"The guest rang the doorbell more than {limits.exits} times and was stopped.{written}"
        )
    if message.kind == BUDGET_BYTES:
        return errors.BudgetError(f"The guest wanted to move more than {limits.bytes} bytes and was stopped.{written}")
    if message.kind == TIME_OVER:
        return time_over(limits, written)
    if message.kind == FINISHED:
        return errors.GuestProtocolError("The sandbox process sent an answer without a result." + written)
    what = errors.clean(text, TEXT_LIMIT)
    if not message.layers & 1:
        return errors.KvmError(f"The guest could not be started: {what}.")
    return errors.JailError(f"The sandbox could not be put up, or failed: {what}.{written}")


def crash(exit_reason: int, address: int, written: str) -> errors.GuestCrashError:
    """The exception for a guest that left in any other way than by its doorbell. address: of the instruction."""
    why = _EXIT_REASONS.get(exit_reason, "unexpected exit")
    error = errors.GuestCrashError(
        f"The guest was stopped by a {why}: exit reason {exit_reason}, instruction at {address:#x}. "
        "A damaged or hostile image, or a fault of ours: please report it." + written
    )
    error.exit_reason = exit_reason
    error.address = address
    return error


def time_over(limits: Limits, written: str = "") -> errors.TimeLimitError:
    return errors.TimeLimitError(
        f"The guest did not finish within {limits.seconds:g} seconds and was stopped. Allow more time, or look into "
        "what keeps the storage busy." + written
    )


def vanished(wait_status: int) -> errors.AirlockError:
    """The exception for a child that ended without a message. wait_status: of waitpid(2), or -1."""
    if wait_status >= 0 and os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        if number == signal.SIGSYS:
            return errors.JailError("The sandbox process made a forbidden system call and was killed.")
        return errors.JailError(f"The sandbox process was killed by signal {number}.")
    return errors.JailError("The sandbox process ended without an answer.")
