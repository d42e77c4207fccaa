# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to say of a run that did not end with an answer."""

from __future__ import annotations

import os
import signal

from .. import errors
from ..words import advice
from . import answers, kvm
from .answers import Limits, Message
from .doorbell_rules import RULES

_EXIT_REASONS = {
    kvm.EXIT_IO: "access to a port that is not the doorbell's",
    kvm.EXIT_SHUTDOWN: "fault (bad address, forbidden instruction, or the like)",
}


def failure(message: Message, text: bytes, limits: Limits) -> errors.AirlockError:
    """The exception for a message that is neither PROGRESS nor a whole FINISHED. text: what followed it."""
    error = _failure(message, text, limits)
    error.modified = message.bytes_written > 0
    return error


def _failure(message: Message, text: bytes, limits: Limits) -> errors.AirlockError:
    written = f" The image was written to before this. {advice.say('look_at_copy')}" if message.bytes_written else ""
    report = advice.say("report")
    if message.kind == answers.CRASHED:
        return crash(message.a, message.b, written)
    if message.kind == answers.RULE_BROKEN:
        rule = RULES[message.a] if message.a < len(RULES) else "unknown"
        return errors.GuestProtocolError(
            f"The guest broke a rule of the doorbell and was stopped: {rule} (request {message.b}: {message.c:#x}). "
            + report
            + written
        )
    if message.kind == answers.BUDGET_EXITS:
        return errors.BudgetError(
            f"The guest rang the doorbell more than {limits.exits} times and was stopped. {report}{written}"
        )
    if message.kind == answers.BUDGET_BYTES:
        return errors.BudgetError(
            f"The guest wanted to move more than {limits.bytes} bytes and was stopped. {report}{written}"
        )
    if message.kind == answers.BUDGET_UNDO:
        return errors.BudgetError(
            f"The guest changed more than any change of this image needs, or a task may undo, and was stopped. Where "
            f"it was to delete many snapshots, have it delete fewer at a time. {report}{written}"
        )
    if message.kind == answers.TOO_LONG:
        return too_long(limits, message.a)
    if message.kind == answers.TIME_OVER:
        return time_over(limits, written)
    if message.kind == answers.IDLE:
        return errors.TimeLimitError(
            f"The guest ran for {limits.idle:g} seconds without asking for anything and was stopped. {report}{written}"
        )
    if message.kind == answers.FINISHED:
        return errors.GuestProtocolError(f"The sandbox process sent an answer without a result. {report}{written}")
    what = errors.clean(text, answers.TEXT_LIMIT)
    if not message.layers & 1:
        return errors.KvmError(f"The guest could not be started: {what}. {advice.say('again')}")
    return errors.JailError(f"The sandbox could not be put up, or failed: {what}. {advice.say('again')}{written}")


def crash(exit_reason: int, address: int, written: str) -> errors.GuestCrashError:
    """The exception for a guest that left in any other way than by its doorbell. address: of the instruction."""
    why = _EXIT_REASONS.get(exit_reason, "unexpected exit")
    error = errors.GuestCrashError(
        f"The guest was stopped by a {why}: exit reason {exit_reason}, instruction at {address:#x}. "
        + advice.say("report")
        + written
    )
    error.exit_reason = exit_reason
    error.address = address
    return error


def time_over(limits: Limits, written: str = "") -> errors.TimeLimitError:
    return errors.TimeLimitError(
        f"The guest did not finish within {limits.seconds:g} seconds and was stopped. {advice.say('more_time')}"
        + written
    )


def too_long(limits: Limits, seconds: int) -> errors.TooLongError:
    """seconds: that the whole run would take at least."""
    return errors.TooLongError(
        f"This would take {seconds} seconds or more, and there are {limits.seconds:.1f}. Nothing was changed. "
        + advice.say("more_time")
    )


def vanished(wait_status: int) -> errors.AirlockError:
    """The exception for a child that ended without a message. wait_status: of waitpid(2), or -1."""
    if wait_status >= 0 and os.WIFSIGNALED(wait_status):
        number = os.WTERMSIG(wait_status)
        if number == signal.SIGSYS:
            return errors.JailError(
                f"The sandbox process made a forbidden system call and was killed. {advice.say('report')}"
            )
        way = advice.say("killed" if number == signal.SIGKILL else "again")
        return errors.JailError(f"The sandbox process was killed by signal {number}. {way}")
    return errors.JailError(f"The sandbox process ended without an answer. {advice.say('again')}")
