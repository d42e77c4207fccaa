# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Waits for what will be so, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 600  # seconds; only what never comes takes so long


def until(look: Callable[[], T]) -> T:
    """The first answer that is true. Raises AssertionError when there is none for ten minutes."""
    end = time.monotonic() + PATIENCE
    while not (answer := look()):
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.02)
    return answer
