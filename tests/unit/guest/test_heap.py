# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest/start/heap.c: a piece can grow while it is the last one, and never over another."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.native import Guest

HEAP = 128 << 20  # bytes, and more than there is


def extended(guest: Guest, size: int, between: int, more: int) -> tuple[str, int]:
    """(refusal, where the new bytes begin) for a piece of `size` bytes."""
    distance = guest.ffi.new("uint64_t *")
    return guest.probe("heap", size, between, more, distance).refusal, distance[0]


@pytest.mark.parametrize("more", [0, 1, 63, 64, 65, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096])
def test_a_piece_grows_in_its_place(guest: Guest, size: int, more: int) -> None:
    assert extended(guest, size, 0, more) == ("", size)


@pytest.mark.parametrize("more", [HEAP, (1 << 64) - 1])
def test_more_than_there_is_is_refused(guest: Guest, more: int) -> None:
    assert extended(guest, 100, 0, more)[0] == "NO_MEMORY"


@pytest.mark.parametrize("more", [0, 1, 4096, HEAP])
def test_a_piece_that_something_follows_does_not_grow(guest: Guest, more: int) -> None:
    child = os.fork()
    if child == 0:  # pragma: no cover
        signal.signal(signal.SIGILL, signal.SIG_DFL)  # no traceback of pytest's
        extended(guest, 100, 1, more)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGILL
