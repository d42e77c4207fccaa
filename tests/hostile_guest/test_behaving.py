# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A guest that behaves, in the whole sandbox: every request, failures of the file system, and what is reported."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sandbox.host import ending
from sandbox.host.disks import Disk
from sandbox.vmm import kvm
from sandbox.vmm.doorbell_rules import OFFSET_MAX
from sandbox.vmm.journal import UndoJournal
from sandbox.vmm.machine import Limits
from tests.support.recording import recording

LIBRARY = kvm.bindings()[1]
HEAP = LIBRARY.HEAP_ADDRESS
MIB = 1 << 20
CANCELED = -errno.ECANCELED


def request(operation, disk=0, offset=0, length=0, memory=0, source=0, source_offset=0):
    number = getattr(LIBRARY, f"DOORBELL_{operation}")
    return (number, disk, offset, length, memory, source, 0, source_offset, 0, 0)


def content(disk):
    with open(disk.path, "rb") as file:
        return file.read()


def test_every_layer_is_up(worker):
    *_unused, answer = worker([request("PROGRESS")])
    layers = set(answer.report.layers)
    assert {"user_mode_guest", "descriptors", "no_new_privs", "rlimits", "seccomp", "timer"} <= layers
    assert ("credentials" in layers) == (os.geteuid() == 0)


def test_read_write_copy_and_the_rest(worker, disk):
    source = disk(bytes(range(256)) * 4096, writable=False)
    target = disk(b"t" * 3 * MIB)
    statuses, payload, answer = worker(
        [
            request("READ", 0, 4096, 8192, HEAP + MIB),
            request("WRITE", 1, 100, 8192, HEAP + MIB),
            request("COPY", 1, MIB, 65536, 0, 0, 10),
            request("ZERO", 1, 2 * MIB, 4096),
            request("DISCARD", 1, 2 * MIB + 65536, 65536),
            request("RESERVE", 1, 3 * MIB, MIB),
            request("FLUSH", 1),
            request("PROGRESS", 0, 1, 2),
            request("RESIZE", 1, 0, 4 * MIB + 1),
        ],
        [source, target],
        fill=7,
        payload=4096,
    )
    assert statuses == (8192, 8192, 65536, 0, 0, 0, 0, 0, 0)
    assert payload == bytes([7]) * 4096
    expected = bytearray(b"t" * 3 * MIB + bytes(MIB + 1))
    origin = content(source)
    expected[100:8292] = origin[4096:12288]
    expected[MIB : MIB + 65536] = origin[10 : 10 + 65536]
    expected[2 * MIB : 2 * MIB + 4096] = bytes(4096)
    expected[2 * MIB + 65536 : 2 * MIB + 2 * 65536] = bytes(65536)
    assert content(target) == bytes(expected)
    assert answer.report.exits == 2
    assert answer.report.bytes_read == 8192 + 65536
    assert answer.report.bytes_written == 8192 + 65536
    # The pages that a child shares with its parent count as its own.
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    assert 0 < answer.report.peak_memory < resident + 16 * MIB
    assert answer.report.milliseconds > 0
    assert len(answer.result) == 8192


def test_short_read_at_the_end(worker, disk):
    statuses, payload, _unused = worker(
        [request("READ", 0, 90, 100, HEAP), request("READ", 0, 100, 100, HEAP), request("READ", 0, 1 << 60, 100, HEAP)],
        [disk(b"e" * 100)],
        payload=20,
    )
    assert statuses == (10, 0, 0)
    assert payload == b"e" * 10 + bytes(10)


def test_after_a_failure_the_rest_is_canceled(worker, disk):
    target = disk(b"x" * 4096)
    statuses, *_unused = worker(
        [
            request("WRITE", 0, 0, 1, HEAP),
            request("COPY", 0, 10, 100, 0, 0, 20),  # overlaps itself
            request("WRITE", 0, 1, 1, HEAP),
            request("FLUSH", 0),
        ],
        [target],
    )
    assert statuses == (1, -errno.EINVAL, CANCELED, CANCELED)
    assert content(target) == b"\0" + b"x" * 4095


def test_copy_ends_with_its_source(worker, disk):
    statuses, *_unused = worker([request("COPY", 1, 0, 1000, 0, 0, 50)], [disk(b"s" * 100), disk()])
    assert statuses == (50,)


def test_copy_within_a_disk(worker, disk):
    target = disk(b"a" * 4096 + b"b" * 4096)
    statuses, *_unused = worker([request("COPY", 0, 4096, 4096, 0, 0, 0)], [target])
    assert statuses == (4096,)
    assert content(target) == b"a" * 8192


def test_full_batch(worker, disk):
    target = disk()
    count = LIBRARY.DOORBELL_BATCH
    statuses, *_unused = worker([request("WRITE", 0, i * 4096, 4096, HEAP + i * 4096) for i in range(count)], [target])
    assert statuses == (4096,) * count
    assert content(target) == b"".join(bytes([i]) * 4096 for i in range(count))


def test_64_disks(worker, disk):
    disks = [disk(bytes([i])) for i in range(64)]
    statuses, payload, _unused = worker([request("READ", i, 0, 1, HEAP + i) for i in range(64)], disks, payload=64)
    assert statuses == (1,) * 64
    assert payload == bytes(range(64))
    with pytest.raises(ValueError, match="too many disks"):
        worker([], [*disks, disk()])


@pytest.mark.parametrize("writable", [False, True])
def test_file_as_long_as_one_can_be(writable, worker):
    """There is nothing that it could grow by."""
    descriptor = os.memfd_create("long", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, OFFSET_MAX)
    with Disk("long", descriptor, writable) as long:
        statuses, *_unused = worker([request("READ", 0, OFFSET_MAX - 4096, 4096, HEAP)], [long])
    assert statuses == (4096,)


def test_full_file_system(worker, disk):
    """The size limit of the process stands in for a full disk: both end a write early with an errno."""
    target = disk()
    statuses, *_unused = worker([request("RESERVE", 0, 0, 1 << 50)], [target], limits=Limits(file_growth=1 << 50))
    assert statuses[0] in (-errno.ENOSPC, -errno.EFBIG)
    assert content(target) == b""


def test_progress_is_told_once_a_thousandth(worker):
    told = []
    requests = [request("PROGRESS", 0, done, 100000) for done in range(255)]
    worker(requests, progress=lambda *numbers: told.append(numbers))
    assert told == [(0, 100000), (100, 100000), (200, 100000)]


def test_a_guest_goes_before_a_virtual_machine(worker):
    """Where memory runs out. The parent stays what it was."""
    told = []

    def tell(*_numbers):
        for process in (*ending.children, "self"):
            told.append(int(Path(f"/proc/{process}/oom_score_adj").read_text()))

    own = int(Path("/proc/self/oom_score_adj").read_text())
    worker([request("PROGRESS", 0, 1, 2)], progress=tell)
    assert told == [1000, own]


def test_progress_that_makes_no_sense(worker):
    told = []
    huge = (1 << 64) - 1
    worker([request("PROGRESS", 0, huge, 0), request("PROGRESS", 0, huge, 1)], progress=lambda *n: told.append(n))
    assert told == [(huge, 0), (huge, 1)]


def test_record_of_all_changes(worker, disk, monkeypatch):
    """What the crash tests learn of a guest, though the jail has nothing to tell it with."""
    first, second = disk(b"1" * 8192), disk(b"2" * 8192)
    with recording(monkeypatch) as recorder:
        statuses, *_unused = worker(
            [
                request("READ", 0, 0, 100, HEAP + 8192),
                request("WRITE", 0, 10, 3, HEAP),
                request("COPY", 1, 4096, 2, 0, 0, 9),
                request("FLUSH", 1),
                request("ZERO", 0, 0, 4096),
                request("DISCARD", 0, 4096, 4096),
                request("RESIZE", 1, 0, 5),
            ],
            [first, second],
            fill=65,
        )
        events = list(recorder.events())
    assert min(statuses) >= 0
    assert [tuple(event) for event in events] == [
        (LIBRARY.DOORBELL_WRITE, 0, 10, 3, b"AAA"),
        (LIBRARY.DOORBELL_WRITE, 1, 4096, 2, b"1A"),
        (LIBRARY.DOORBELL_FLUSH, 1, 0, 0, b""),
        (LIBRARY.DOORBELL_ZERO, 0, 0, 4096, b""),
        (LIBRARY.DOORBELL_DISCARD, 0, 4096, 4096, b""),
        (LIBRARY.DOORBELL_RESIZE, 1, 0, 5, b""),
    ]


CHANGES = [
    request("WRITE", 0, 5000, 3000, HEAP),
    request("ZERO", 0, 0, 100),
    request("DISCARD", 0, 8192, 8192),
    request("WRITE", 0, 12288, 10, HEAP),
    request("COPY", 0, 30000, 20000, 0, 1, 0),
    request("RESIZE", 0, 0, 20000),
    request("WRITE", 0, 100000, 1, HEAP),
]


def test_undo(worker, disk):
    before = os.urandom(40000)
    target = disk(before)
    with UndoJournal(target) as journal:
        worker(CHANGES, [target, disk(b"s" * 20000)], fill=1, journal=journal)
        assert len(content(target)) == 100001
        journal.undo()
        assert journal.empty
    assert content(target) == before


def test_keep(worker, disk):
    before = os.urandom(40000)
    target, plain = disk(before), disk(before)
    source = disk(b"s" * 20000)
    with UndoJournal(target) as journal:
        worker(CHANGES, [target, source], fill=1, journal=journal)
        assert content(target)[8192:12288] == before[8192:12288], "a discard waits for keep()"
        journal.keep()
        assert journal.empty
    worker(CHANGES, [plain, source], fill=1)
    assert content(target)[:12288] == content(plain)[:12288]
    assert content(target)[8192:12288] == bytes(4096)
    assert content(target)[12288:12298] == bytes([1]) * 10, "what was written later is not discarded"


def test_a_file_that_is_cut_keeps_its_room(worker, disk):
    """Until it is kept: who fills the file system meanwhile would have what undoing it needs."""
    before = os.urandom(40000)
    target = disk(before)
    with UndoJournal(target) as journal:
        blocks = os.fstat(target.descriptor).st_blocks
        statuses, *_unused = worker(
            [request("RESIZE", 0, 0, 5000), request("READ", 0, 4000, 4096, HEAP)], [target], journal=journal
        )
        assert statuses == (0, 1000)
        assert (content(target), os.fstat(target.descriptor).st_blocks) == (before, blocks)
        journal.undo()
        assert content(target) == before
        worker([request("RESIZE", 0, 0, 5000)], [target], journal=journal)
        journal.keep()
    assert content(target) == before[:5000]


def test_a_file_that_is_cut_and_written_to_by_the_next_run(worker, disk):
    """Which sees it as it is."""
    before = os.urandom(40000)
    target = disk(before)
    with UndoJournal(target) as journal:
        worker([request("RESIZE", 0, 0, 5000)], [target], journal=journal)
        worker([request("WRITE", 0, 20000, 100, HEAP)], [target], fill=1, journal=journal)
        journal.keep()
    assert content(target) == before[:20000] + bytes([1]) * 100


def test_undo_after_several_runs(worker, disk):
    target = disk(b"o" * 10000)
    with UndoJournal(target) as journal:
        for offset in range(5):
            worker([request("WRITE", 0, offset * 3000, 3001, HEAP)], [target], journal=journal)
        journal.undo()
    assert content(target) == b"o" * 10000


def test_journal_of_another_disk(worker, disk):
    with UndoJournal(disk()) as journal, pytest.raises(ValueError, match="none of the disks"):
        worker([], [disk()], journal=journal)
