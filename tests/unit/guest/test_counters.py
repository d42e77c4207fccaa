# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest/qcow2/counters.h: narrow and wide counters, and windows of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.native import Guest

WIDEST = 64 << 20  # bytes of counters


def counted(guest: Guest, clusters: int, wide: bool, first: int, cluster: int, value: int) -> tuple[int, int, bool]:
    """(value got back, room, overflowed)."""
    kept = guest.ffi.new("uint32_t *", value)
    room = guest.ffi.new("uint64_t *")
    overflowed = guest.ffi.new("uint32_t *")
    assert guest.probe("counters", clusters, wide, first, cluster, kept, room, overflowed).refusal == ""
    return kept[0], room[0], overflowed[0] != 0


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("clusters", [0, 1, 1000, 1 << 24, 1 << 25, 1 << 26, 1 << 45])
def test_room(guest: Guest, clusters: int, wide: bool) -> None:
    room = counted(guest, clusters, wide, 0, 0, 0)[1]
    assert room == min(max(clusters, 1), WIDEST // (4 if wide else 2))


@settings(max_examples=100, deadline=None)
@given(count=st.integers(0, (1 << 28) - 1), flags=st.integers(0, 15), wide=st.booleans(), place=st.integers(0, 99))
def test_a_counter_keeps_flags_and_count(library: Guest, count: int, flags: int, wide: bool, place: int) -> None:
    value, _room, overflowed = counted(library, 1000, wide, 500, 500 + place, flags << 28 | count)
    assert overflowed is (not wide and count > 4095)
    assert value == flags << 28 | (4095 if overflowed else count)


@pytest.mark.parametrize("cluster", [499, 1000, (1 << 64) - 1])
def test_outside_the_window_is_nothing(guest: Guest, cluster: int) -> None:
    assert counted(guest, 1000, False, 500, cluster, 77)[0] == 77
