# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIGTERM, SIGHUP and SIGINT end a task or a command as an error does: guests are stopped, a group is undone, and it is
said.

Without this, the default action ends the process between two images of a group, and Ctrl-C in the middle of undoing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import typing as t

from .. import errors

_DEFAULTS: dict[int, t.Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}
_FOR_GOOD = 1 << 20  # more than any program holds at a time

children: set[int] = (
    set()
)  # process ids of guests that run: whoever starts one, adds it, and takes it out before reaping


class _State:
    """number: of the signal that has come, or 0. held: how many parts of the program are not to be interrupted."""

    number = 0
    held = 0


class EndedError(errors.AirlockError):
    """The process was told to end. number: of the signal."""

    code = "terminated"

    def __init__(self, number: int) -> None:
        super().__init__(f"Ended by {signal.Signals(number).name} before all was done.")
        self.number = number


def check(modified: bool = False) -> None:
    """Raises EndedError when it is time to end. modified: whether an image may have been written to before."""
    if _State.number:
        error = EndedError(_State.number)
        error.modified = modified
        raise error


@contextlib.contextmanager
def by_signals() -> t.Iterator[None]:
    """Within it, the signals raise EndedError in the main thread, and every guest ends.

    One that is ignored, as nohup does it, stays so, and one that the program around us handles is left to it. Handlers
    are put back behind it.
    """
    _State.number = _State.held = 0
    before: dict[int, t.Any] = {}
    try:
        for one, default in _DEFAULTS.items():
            if signal.getsignal(one) == default:
                before[one] = signal.signal(one, _end)
    except ValueError:
        pass  # not the main thread: the program around us decides
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.number = _State.held = 0


@contextlib.contextmanager
def held() -> t.Iterator[None]:
    """Within it nothing is interrupted; but guests end, and none is started any more."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held = max(0, _State.held - 1)


def hold() -> None:
    """Nothing is interrupted from here on: what was asked for is done, and only to be told."""
    _State.held += _FOR_GOOD


def is_done() -> bool:
    """Whether it has come to that."""
    return _State.held >= _FOR_GOOD


def _end(number: int, _frame: object) -> None:
    first = not _State.number
    _State.number = _State.number or number
    for child in list(children):
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
    if first and not _State.held:
        raise EndedError(number)
