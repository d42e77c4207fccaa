# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rules of the doorbell against a second wording of them, at the edges and at random."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.vmm import doorbell_rules, kvm
from sandbox.vmm.doorbell_rules import REQUEST, Checker, DoorbellRuleError, File

FFI, LIBRARY = kvm.bindings()
FIRST, END = LIBRARY.DATA_ADDRESS, LIBRARY.MEMORY_SIZE
LIMIT = 1 << 30
FILES = [File(3, True, False, LIMIT), File(4, False, False, LIMIT), File(5, True, True, 1 << 62)]
CHECK = Checker(LIBRARY, FILES, copies=True)
READ, WRITE, COPY = LIBRARY.DOORBELL_READ, LIBRARY.DOORBELL_WRITE, LIBRARY.DOORBELL_COPY
RESIZE, FLUSH, PROGRESS = LIBRARY.DOORBELL_RESIZE, LIBRARY.DOORBELL_FLUSH, LIBRARY.DOORBELL_PROGRESS
FINISH = LIBRARY.DOORBELL_FINISH
EXTENTS = (LIBRARY.DOORBELL_ZERO, LIBRARY.DOORBELL_DISCARD, LIBRARY.DOORBELL_RESERVE)


def request(operation, disk=0, offset=0, length=0, memory=FIRST, source=0, source_offset=0):
    return (operation, disk, offset, length, memory, source, 0, source_offset, 0, 0)


def allowed(operation, disk, offset, length, memory, source, source_offset):
    """guest/abi/doorbell.h in other words: everything that must hold, in one expression each."""
    in_memory = memory >= FIRST and memory + length <= END
    readable = disk < 3 and offset + length < 1 << 63
    writable = disk in (0, 2) and offset + length <= FILES[disk].limit
    return {
        READ: in_memory and readable,
        WRITE: in_memory and writable,
        COPY: writable and source < 3 and source_offset + length < 1 << 63,
        **dict.fromkeys(EXTENTS, writable),
        RESIZE: disk in (0, 2) and length <= FILES[disk].limit,
        FLUSH: disk in (0, 2),
        PROGRESS: True,
        FINISH: length == 0 or (in_memory and length <= 64 << 20),
    }.get(operation, False)


def cost(one):
    """No request is free, and one that moves bytes costs as many."""
    return max(4096, one[3]) if one[0] in (READ, WRITE, COPY, LIBRARY.DOORBELL_ZERO) else 4096


def around(*values):
    return [max(0, value + step) for value in values for step in (-1, 0, 1)]


U32 = st.one_of(st.integers(0, 3), st.integers(0, (1 << 32) - 1))
U64 = st.integers(0, (1 << 64) - 1)
OFFSETS = st.one_of(st.sampled_from(around(0, LIMIT, 1 << 62, 1 << 63, (1 << 64) - 2)), U64)
LENGTHS = st.one_of(st.sampled_from(around(0, 4096, END - FIRST, LIMIT, 1 << 62, 1 << 63, (1 << 64) - 2)), U64)
MEMORY = st.one_of(st.sampled_from(around(0, 0x1000, FIRST, END, (1 << 64) - 2)), st.integers(FIRST, END), U64)
OPERATIONS = st.one_of(st.integers(0, 12), st.integers(0, (1 << 32) - 1))
REQUESTS = st.builds(request, OPERATIONS, U32, OFFSETS, LENGTHS, MEMORY, U32, OFFSETS)


@given(REQUESTS)
@example(request(READ, 0, 0, END - FIRST, FIRST))
@example(request(READ, 0, (1 << 63) - 513, 512, FIRST))
@example(request(WRITE, 0, LIMIT - 512, 512, FIRST))
@example(request(WRITE, 0, LIMIT - 511, 512, FIRST))
@example(request(COPY, 0, 0, 512, 0, 1, (1 << 63) - 513))
@example(request(RESIZE, 2, 0, 1 << 62))
@example(request(FINISH, 0, 0, 0, 0))
@example(request(FINISH, 0, 0, 64 << 20, FIRST))
@example(request(FINISH, 0, 0, (64 << 20) + 1, FIRST))
def test_one_request(one):
    try:
        charged = CHECK([one])
    except DoorbellRuleError as error:
        assert not allowed(*one[:6], one[7])
        rule, index, value = error.args
        assert 0 <= rule < len(doorbell_rules.RULES)
        assert index == 0
        assert 0 <= value < 1 << 64
    else:
        assert allowed(*one[:6], one[7])
        assert charged == cost(one)


@given(st.lists(REQUESTS, min_size=1, max_size=8))
def test_batch(batch):
    fine = all(allowed(*one[:6], one[7]) for one in batch)
    ends = FINISH in [one[0] for one in batch[:-1]]
    if fine and not ends:
        assert CHECK(batch) == sum(map(cost, batch))
    else:
        with pytest.raises(DoorbellRuleError):
            CHECK(batch)


def test_the_struct_is_the_abis():
    """The format that unpacks a request agrees with the struct that the guest fills."""
    assert FFI.sizeof("struct doorbell_request") == REQUEST.size
    one = FFI.new("struct doorbell_request *")
    names = ["operation", "disk", "offset", "length", "memory", "source_disk", "reserved", "source_offset", "status"]
    for number, name in enumerate([*names, "reserved2"], 1):
        setattr(one, name, number << 24)
    assert REQUEST.unpack(FFI.buffer(one)[:]) == tuple(number << 24 for number in range(1, 11))
