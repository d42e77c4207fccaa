# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest/qcow2/counters.h: counters of 8, 16 and 32 bits, and windows of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.native import Guest

MORE = 32 << 20  # bytes of counters besides one for each cluster
LIMITS = {1: 15, 2: 4095, 4: (1 << 28) - 1}


def counted(guest: Guest, clusters: int, width: int, first: int, cluster: int, value: int) -> tuple[int, int, bool]:
    """(value got back, room, overflowed)."""
    kept = guest.ffi.new("uint32_t *", value)
    room = guest.ffi.new("uint64_t *")
    overflowed = guest.ffi.new("uint32_t *")
    assert guest.probe("counters", clusters, width, first, cluster, kept, room, overflowed).refusal == ""
    return kept[0], room[0], overflowed[0] != 0


@pytest.mark.parametrize("width", LIMITS)
@pytest.mark.parametrize("clusters", [0, 1, 1000, 1 << 24, 1 << 25, 1 << 26, 1 << 45])
def test_room(guest: Guest, clusters: int, width: int) -> None:
    """All, if a byte for each and MORE are enough for it; the guest's memory leaves 102 MiB in any case."""
    room = counted(guest, clusters, width, 0, 0, 0)[1]
    assert room == min(max(clusters, 1), min(clusters + MORE, 102 << 20) // width)


def test_room_in_more_memory(guest: Guest) -> None:
    guest.host.memory = 3 << 30
    try:
        assert [counted(guest, 1 << 30, width, 0, 0, 0)[1] for width in LIMITS] == [
            1 << 30,
            (1 << 29) + MORE // 2,
            (1 << 28) + MORE // 4,
        ]
    finally:
        guest.host.memory = 128 << 20
        guest.rest()


@settings(max_examples=100)
@given(
    count=st.one_of(st.integers(0, 32), st.integers(0, (1 << 28) - 1)),
    flags=st.integers(0, 15),
    width=st.sampled_from(sorted(LIMITS)),
    place=st.integers(0, 99),
)
def test_a_counter_keeps_flags_and_count(library: Guest, count: int, flags: int, width: int, place: int) -> None:
    value, _room, overflowed = counted(library, 1000, width, 500, 500 + place, flags << 28 | count)
    assert overflowed is (count > LIMITS[width])
    assert value == flags << 28 | min(count, LIMITS[width])


@pytest.mark.parametrize("cluster", [499, 1000, (1 << 64) - 1])
def test_outside_the_window_is_nothing(guest: Guest, cluster: int) -> None:
    assert counted(guest, 1000, 1, 500, cluster, 77)[0] == 77
