# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests built for these tests, and what each test must leave behind: nothing."""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path

import pytest

from sandbox.host.disks import open_disk
from sandbox.vmm.doorbell_copies import MovingServer
from sandbox.vmm.machine import Run, run

sys.path.insert(0, str(Path(__file__).resolve().parent))

from guests import modes, program


@pytest.fixture(scope="session")
def mode_names():
    return list(modes())


def _run(guest, call, disks, writable=None, **options):
    """writable: None for all disks that were opened for writing."""
    if writable is None:
        writable = [index for index, disk in enumerate(disks) if disk.writable]
    return run(Run(guest, call, disks, writable, **options))


@pytest.fixture(scope="session")
def hostile():
    """hostile(mode, *arguments, disks=(), **fields of Run) runs a hostile guest."""
    guest = program("hostile")
    numbers = modes()

    def attack(mode, *arguments, disks=(), **options):
        call = struct.pack("<9Q", numbers[mode], *arguments, *[0] * (8 - len(arguments)))
        return _run(guest, call, disks, **options)

    return attack


@pytest.fixture(scope="session")
def worker():
    """worker(requests, disks=(), fill=0, payload=0, **options) -> (statuses, payload, answer)."""
    guest = program("worker")._replace(server=MovingServer)

    def work(requests, disks=(), fill=0, payload=0, **options):
        packed = b"".join(struct.pack("<IIQQQIIQqQ", *request) for request in requests)
        call = struct.pack("<4Q", len(requests), fill, payload, 0) + packed
        answer = _run(guest, call, disks, **options)
        size = 8 * len(requests)
        return struct.unpack(f"<{len(requests)}q", answer.payload[:size]), answer.payload[size:], answer

    return work


@pytest.fixture(autouse=True)
def _nothing_left():
    before = sorted(os.listdir("/proc/self/fd"))
    yield
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ChildProcessError) as caught:
        os.waitpid(-1, os.WNOHANG)
    assert caught.value.errno == errno.ECHILD


@pytest.fixture
def disk(tmp_path):
    """disk(content, writable=True) is an open disk that is closed at the end."""
    opened = []

    def make(content=b"", writable=True):
        path = tmp_path / f"disk{len(opened)}"
        path.write_bytes(content)
        opened.append(open_disk(str(path), writable))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
