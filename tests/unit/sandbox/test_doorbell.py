# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Serving batches from a buffer instead of a guest: results, failures below, odd file systems, undo and record."""

from __future__ import annotations

import contextlib
import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.host.disks import open_disk
from sandbox.vmm import doorbell_writes, journal, kvm
from sandbox.vmm.doorbell import BytesError, ForecastError, Server, UndoError, UndoTimeError
from sandbox.vmm.doorbell_copies import MovingServer
from sandbox.vmm.doorbell_rules import REQUEST, REQUEST_BYTES, DoorbellRuleError, File
from sandbox.vmm.journal import UndoJournal
from tests.support.recording import Recorder

FFI, LIBRARY = kvm.bindings()
HEAP = LIBRARY.HEAP_ADDRESS
READ, WRITE, COPY, ZERO = LIBRARY.DOORBELL_READ, LIBRARY.DOORBELL_WRITE, LIBRARY.DOORBELL_COPY, LIBRARY.DOORBELL_ZERO
DISCARD, RESIZE, RESERVE = LIBRARY.DOORBELL_DISCARD, LIBRARY.DOORBELL_RESIZE, LIBRARY.DOORBELL_RESERVE
FLUSH, PROGRESS, FINISH = LIBRARY.DOORBELL_FLUSH, LIBRARY.DOORBELL_PROGRESS, LIBRARY.DOORBELL_FINISH
PAGE = 4096


def request(operation, disk=0, offset=0, length=0, memory=HEAP, source=0, source_offset=0):
    return (operation, disk, offset, length, memory, source, 0, source_offset, 0, 0)


class Bench:
    """A server, its memory, and the disks, without a guest."""

    def __init__(
        self,
        directory,
        contents,
        budget=1 << 30,
        journaled=False,
        recorded=False,
        is_block=False,
        seconds=None,
        progress=None,
        foresees=False,
    ):
        self.disks = []
        for index, content in enumerate(contents):
            path = directory / f"disk{index}"
            path.write_bytes(content)
            self.disks.append(open_disk(str(path), True))
        self.files = [File(disk.descriptor, True, is_block, 1 << 40) for disk in self.disks]
        self.journal = UndoJournal(self.disks[0]) if journaled else None
        self.recorder = Recorder() if recorded else None
        self.address = kvm.map_memory(LIBRARY.MEMORY_SIZE, kvm.MAP_PRIVATE_ANONYMOUS_NORESERVE)
        more = {"foresees": foresees, **({} if seconds is None else {"seconds": seconds})}
        self.server = MovingServer(self.address, self.files, budget, progress, journal=self.journal, **more)
        if self.recorder:
            self.recorder.observe(self.server)

    def close(self):
        for one in (*self.disks, self.journal, self.recorder):
            if one:
                one.close()
        LIBRARY.munmap(self.address, LIBRARY.MEMORY_SIZE)

    def fill(self, data, at=HEAP):
        FFI.memmove(self.address + at, data, len(data))

    def memory(self, length, at=HEAP):
        return FFI.buffer(self.address + at, length)[:]

    def ring(self, *requests, count=None):
        """The statuses."""
        packed = struct.pack("<I60x", len(requests) if count is None else count)
        self.fill(packed + b"".join(REQUEST.pack(*one) for one in requests), LIBRARY.DOORBELL_ADDRESS)
        finish = self.server.serve()
        area = self.memory(len(requests) * REQUEST.size, LIBRARY.DOORBELL_ADDRESS + 64)
        statuses = [one[8] for one in REQUEST.iter_unpack(area)]
        return (statuses, finish) if finish else statuses

    def content(self, index=0):
        with open(self.disks[index].path, "rb") as file:
            return file.read()


@pytest.fixture
def bench(tmp_path):
    made = []

    def make(*contents, **options):
        made.append(Bench(tmp_path, contents, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_finish(bench):
    one = bench(b"content")
    statuses, finish = one.ring(request(READ, 0, 0, 7), request(FINISH, 0, 0, 7))
    assert statuses[0] == 7
    assert finish == (HEAP, 7)


def test_a_server_for_readers_knows_no_other_request(bench):
    """What the rules let through when no file is writable, and nothing that would change one."""
    one = bench(b"content")
    one.server = Server(one.address, [one.files[0]._replace(writable=False)], 1 << 20)
    assert one.ring(request(READ, 0, 0, 7), request(PROGRESS)) == [7, 0]
    assert one.memory(7) == b"content"
    for operation in (WRITE, COPY, ZERO, DISCARD, RESIZE, RESERVE, FLUSH):
        with pytest.raises(DoorbellRuleError):
            one.ring(request(operation, 0, 0, 7))
    assert one.content() == b"content"


def test_finish_behind_a_failure_is_canceled(bench):
    one = bench(b"x" * 100)
    assert one.ring(request(COPY, 0, 0, 10, 0, 0, 5), request(FINISH)) == [-errno.EINVAL, -errno.ECANCELED]


@pytest.mark.parametrize("count", [0, 256, 1 << 31])
def test_count(bench, count):
    with pytest.raises(DoorbellRuleError, match=str(count)):
        bench().ring(count=count)


def test_rule_broken_by_the_last_request_stops_all(bench):
    one = bench(b"old")
    with pytest.raises(DoorbellRuleError):
        one.ring(request(WRITE, 0, 0, 3), request(WRITE, 1, 0, 3))
    assert one.content() == b"old"


def test_byte_budget(bench):
    one = bench(b"x" * 10000, budget=25000)
    assert one.ring(request(READ, 0, 0, 10000), request(COPY, 0, 20000, 5000, 0, 0, 0)) == [10000, 5000]
    assert one.ring(request(READ, 0, 0, 10000)) == [10000]
    with pytest.raises(BytesError):
        one.ring(request(READ, 0, 0, 1))
    assert (one.server.bytes_read, one.server.bytes_written) == (25000, 5000)


@pytest.mark.parametrize("operation", [READ, WRITE, COPY, ZERO, DISCARD, RESIZE, RESERVE, FLUSH, PROGRESS])
def test_no_request_is_free(bench, operation):
    one = bench(b"x", budget=255 * REQUEST_BYTES)
    one.ring(*[request(operation, 0, 0, 0)] * 255)
    with pytest.raises(BytesError):
        one.ring(request(operation, 0, 0, 0))


def test_zeros_cost_what_writing_them_would(bench):
    one = bench(b"x", budget=1 << 20)
    with pytest.raises(BytesError):
        one.ring(request(ZERO, 0, 0, (1 << 20) + 1))
    assert one.content() == b"x"


class Library:
    """The C library, with some functions replaced."""

    def __init__(self, **replaced):
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(LIBRARY, name)


def failing(number):
    """A function of the C library that fails with this errno."""

    def fail(*_arguments):
        FFI.errno = number
        return -1

    return fail


def test_transfers_in_pieces(bench):
    """The kernel may move less than it was asked to."""
    data = os.urandom(10000)
    one = bench(data)
    one.server._library = Library(
        pread=lambda fd, buffer, count, offset: LIBRARY.pread(fd, buffer, min(count, 777), offset),
        pwrite=lambda fd, buffer, count, offset: LIBRARY.pwrite(fd, buffer, min(count, 777), offset),
    )
    assert one.ring(request(READ, 0, 1, 9999), request(WRITE, 0, 20000, 9999)) == [9999, 9999]
    assert one.content() == data + bytes(10000) + data[1:]


@pytest.mark.parametrize("operation", [READ, WRITE])
def test_transfer_that_is_interrupted(bench, operation):
    one = bench(b"x" * 100)
    calls = []

    def interrupted(name):
        def call(*arguments):
            calls.append(name)
            return failing(errno.EINTR)() if len(calls) == 1 else getattr(LIBRARY, name)(*arguments)

        return call

    one.server._library = Library(pread=interrupted("pread"), pwrite=interrupted("pwrite"))
    assert one.ring(request(operation, 0, 0, 100)) == [100]
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("function", "one"),
    [
        ("pread", request(READ, 0, 0, 100)),
        ("pwrite", request(WRITE, 0, 0, 100)),
        ("copy_file_range", request(COPY, 0, 200, 100, 0, 0, 0)),
        ("fallocate", request(ZERO, 0, 0, 100)),
        ("fallocate", request(DISCARD, 0, 0, 100)),
        ("fallocate", request(RESERVE, 0, 0, 100)),
        ("ftruncate", request(RESIZE, 0, 0, 100)),
        ("fdatasync", request(FLUSH, 0)),
    ],
)
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_failure_below(bench, function, one, number):
    table = bench(b"x" * 100)
    table.server._library = Library(**{function: failing(number)})
    assert table.ring(one, request(READ, 0, 0, 1)) == [-number, -errno.ECANCELED]


def test_write_that_makes_no_progress(bench):
    one = bench(b"")
    one.server._library = Library(pwrite=lambda *_arguments: 0)
    assert one.ring(request(WRITE, 0, 0, 100)) == [-errno.EIO]


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_copy_that_the_kernel_leaves_to_us(bench, number):
    data = os.urandom(3 << 20)
    one = bench(data, b"")
    one.server._library = Library(copy_file_range=failing(number))
    assert one.ring(request(COPY, 1, 7, 3 << 20, 0, 0, 0)) == [3 << 20]
    assert one.content(1) == bytes(7) + data


def test_copy_that_says_nothing(bench):
    """0 before the end of the source: some file systems do."""
    one = bench(b"source", b"")
    one.server._library = Library(copy_file_range=lambda *_arguments: 0)
    assert one.ring(request(COPY, 1, 0, 6, 0, 0, 0)) == [6]
    assert one.content(1) == b"source"


def test_copy_whose_fallback_fails(bench):
    one = bench(b"source", b"")
    one.server._library = Library(copy_file_range=failing(errno.EXDEV), pwrite=failing(errno.ENOSPC))
    assert one.ring(request(COPY, 1, 0, 6, 0, 0, 0)) == [-errno.ENOSPC]
    one.server._library = Library(copy_file_range=failing(errno.EXDEV), pread=failing(errno.EIO))
    assert one.ring(request(COPY, 1, 0, 6, 0, 0, 0)) == [-errno.EIO]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_zeros_where_the_file_system_has_no_call_for_them(bench, number):
    one = bench(b"x" * 100)
    one.server._library = Library(fallocate=failing(number))
    assert one.ring(request(ZERO, 0, 50, (2 << 20) + 5)) == [0]
    assert one.content() == b"x" * 50 + bytes((2 << 20) + 5)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_discard_and_reserve_where_the_file_system_cannot(bench, number):
    one = bench(b"x" * 100)
    one.server._library = Library(fallocate=failing(number))
    assert one.ring(request(DISCARD, 0, 0, 100), request(RESERVE, 0, 0, 1000)) == [0, 0]
    assert one.content() == b"x" * 100


def test_nothing_to_do(bench):
    """fallocate(2) refuses a length of 0; the doorbell does not."""
    one = bench(b"x")
    statuses = one.ring(*(request(operation, 0, 0, 0) for operation in (READ, WRITE, ZERO, DISCARD, RESERVE, COPY)))
    assert statuses == [0] * 6


def test_discard_keeps_the_length_and_frees_blocks(bench):
    one = bench(b"x" * (1 << 20))
    blocks = os.stat(one.disks[0].path).st_blocks
    assert one.ring(request(DISCARD, 0, 65536, 1 << 20)) == [0]
    assert one.content() == b"x" * 65536 + bytes((1 << 20) - 65536)
    assert os.stat(one.disks[0].path).st_blocks < blocks


def test_reserve_keeps_the_length_and_takes_blocks(bench):
    one = bench(b"")
    assert one.ring(request(RESERVE, 0, 0, 1 << 20)) == [0]
    assert one.content() == b""
    assert os.stat(one.disks[0].path).st_blocks * 512 >= 1 << 20


@pytest.mark.parametrize("journaled", [False, True])
def test_block_device(bench, journaled):
    """Its length is fixed, which is enough for less of it, and what it says of a discard does not matter."""
    one = bench(b"x" * 100, is_block=True, journaled=journaled)
    one.server._library = Library(fallocate=failing(errno.EIO))
    assert one.ring(request(DISCARD, 0, 0, 100)) == [0]
    assert one.ring(request(RESIZE, 0, 0, 10)) == [0]
    assert one.ring(request(RESIZE, 0, 0, 100)) == [0]
    assert one.ring(request(RESIZE, 0, 0, 101)) == [-errno.EINVAL]
    one.server._library = Library(fallocate=failing(errno.EINVAL))  # no whole sectors
    assert one.ring(request(RESERVE, 0, 1, 99)) == [0]
    assert one.ring(request(RESERVE, 0, 1, 100)) == [-errno.ENOSPC]
    assert one.content() == b"x" * 100


def test_failed_record_fails_the_request(bench):
    one = bench(b"x" * 100, recorded=True)
    one.recorder._size = 8 + Recorder.HEADER.size
    assert one.ring(request(WRITE, 0, 0, 1)) == [-errno.ENOSPC]
    assert list(one.recorder.events()) == []


def test_failed_journal_leaves_the_disk_alone(bench):
    one = bench(b"x" * 100, journaled=True)
    one.server._library = Library(write=failing(errno.ENOSPC))
    for change in (request(WRITE, 0, 0, 1), request(RESIZE, 0, 0, 1), request(DISCARD, 0, 0, 1)):
        assert one.ring(change) == [-errno.ENOSPC]
    assert one.content() == b"x" * 100


OFFSETS = st.integers(0, 5 * PAGE)
LENGTHS = st.integers(0, 3 * PAGE)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([WRITE, ZERO, DISCARD, RESERVE]), OFFSETS, LENGTHS, st.just(0)),
        st.tuples(st.just(RESIZE), st.just(0), st.integers(0, 8 * PAGE), st.just(0)),
        st.tuples(st.just(COPY), OFFSETS, LENGTHS, OFFSETS),
    ),
    max_size=12,
)


def copied(content, offset, length, source_offset):
    """What a copy within a disk writes."""
    if abs(source_offset - offset) < length:
        return b""
    data = bytes(content[source_offset : source_offset + length])
    # A copy that makes the file longer finds zeros where its source had ended.
    return data.ljust(length, b"\0") if data and source_offset < offset else data


def apply(content, changes, fill, discards):
    """The model: what a disk holds after doorbell_writes. discards: whether they are done."""
    content = bytearray(content)

    def put(offset, data):
        if data:
            content.extend(bytes(max(0, offset + len(data) - len(content))))
            content[offset : offset + len(data)] = data

    for operation, offset, length, source_offset in changes:
        if operation == WRITE:
            put(offset, fill[:length])
        elif operation == ZERO:
            put(offset, bytes(length))
        elif operation == DISCARD and discards:
            end = min(len(content), offset + length)
            content[offset:end] = bytes(max(0, end - offset))
        elif operation == RESIZE:
            del content[length:]
            content.extend(bytes(length - len(content)))
        elif operation == COPY:
            put(offset, copied(content, offset, length, source_offset))
    return bytes(content)


def change(bench, changes, fill):
    bench.fill(fill)
    for operation, offset, length, source_offset in changes:
        bench.ring(request(operation, 0, offset, length, HEAP, 0, source_offset))


@given(content=st.binary(max_size=4 * PAGE), changes=CHANGES)
def test_changes(tmp_path, content, changes):
    fill = bytes(range(1, 256)) * 50
    one = Bench(tmp_path, [content])
    try:
        change(one, changes, fill)
        assert one.content() == apply(content, changes, fill, discards=True)
    finally:
        one.close()


@given(content=st.binary(max_size=4 * PAGE), changes=CHANGES)
def test_undo(tmp_path, content, changes):
    fill = bytes(range(1, 256)) * 50
    one = Bench(tmp_path, [content], journaled=True)
    try:
        change(one, changes, fill)
        done, wanted = one.content(), apply(content, changes, fill, discards=False)
        assert done[: len(wanted)] == wanted
        longest = max(len(apply(content, changes[:n], fill, discards=False)) for n in range(len(changes) + 1))
        assert len(wanted) <= len(done) <= longest, "an end that was cut off waits for keep()"
        assert one.ring(request(READ, 0, 0, 16 * PAGE)) == [len(wanted)], "but not to the guest"
        one.journal.undo()
        assert one.content() == content
        assert one.journal.empty
    finally:
        one.close()


@given(content=st.binary(max_size=4 * PAGE), changes=CHANGES)
def test_keep(tmp_path, content, changes):
    """What is kept is what was done, but for bytes that were discarded and that no request has named since: these
    become zeros."""
    fill = bytes(range(1, 256)) * 50
    one = Bench(tmp_path, [content], journaled=True)
    try:
        change(one, changes, fill)
        done = apply(content, changes, fill, discards=False)
        one.journal.keep()
        discarded = set()
        for operation, offset, count, _unused in changes:
            if operation == DISCARD:
                discarded |= set(range(offset, offset + count))
            elif operation in (WRITE, ZERO, COPY):
                discarded -= set(range(offset, offset + count))
        expected = bytes(0 if index in discarded else byte for index, byte in enumerate(done))
        assert one.content() == expected
        assert one.journal.empty
    finally:
        one.close()


@given(content=st.binary(max_size=4 * PAGE), changes=CHANGES)
def test_record(tmp_path, content, changes):
    """The events are the changes in their order: done again, they give the same file."""
    fill = bytes(range(1, 256)) * 50
    one = Bench(tmp_path, [content], recorded=True)
    try:
        change(one, changes, fill)
        replayed = bytearray(content)
        for event in one.recorder.events():
            step = (event.operation, event.offset, event.length, 0)
            replayed = bytearray(apply(replayed, [step], event.data, discards=True))
        assert bytes(replayed) == one.content()
    finally:
        one.close()


def test_chunks_larger_than_the_buffer(tmp_path):
    """A change of more than one chunk is saved and undone whole."""
    content = os.urandom(3 * doorbell_writes.CHUNK + 17)
    one = Bench(tmp_path, [content], journaled=True, recorded=True)
    try:
        assert one.ring(request(WRITE, 0, 5, len(content))) == [len(content)]
        assert [len(event.data) for event in one.recorder.events()] == [len(content)]
        one.journal.undo()
        assert one.content() == content
    finally:
        one.close()


@pytest.mark.parametrize("operation", [WRITE, COPY, ZERO, DISCARD, RESIZE, RESERVE])
def test_records_of_the_journal_are_budgeted(tmp_path, monkeypatch, operation):
    """A guest that does next to nothing, again and again, is stopped, and what it did is undone."""
    monkeypatch.setattr(journal, "RECORDS_MIN", 100)
    content = bytes(range(100))
    one = Bench(tmp_path, [content, b"x"], journaled=True)
    many = [request(operation, 0, 0, index % 2, HEAP, 1) for index in range(250)]
    try:
        with pytest.raises(UndoError):
            one.ring(*many)
        assert sum(1 for _note in one.journal.notes()) == 100
        one.journal.undo()
        assert one.content() == content
    finally:
        one.close()


def test_bytes_of_the_journal_are_budgeted(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "BYTES_MIN", 3 * PAGE)
    content = os.urandom(2 * PAGE)
    one = Bench(tmp_path, [content], journaled=True)
    try:
        assert one.ring(*[request(ZERO, 0, 0, 2 * PAGE)] * 2) == [0, 0]
        # What the file did not have when the journal was made need not be put back, so it costs nothing.
        assert one.ring(*[request(ZERO, 0, 2 * PAGE, 100 * PAGE)] * 9) == [0] * 9
        with pytest.raises(UndoError):
            one.ring(request(WRITE, 0, 0, 2 * PAGE))
        one.journal.undo()
        assert one.content() == content
    finally:
        one.close()


def test_time_is_left_for_putting_back(tmp_path, monkeypatch):
    """Noting takes time from the guest: three times what it took, with the putting back."""
    now = [100.0]
    monkeypatch.setattr(doorbell_writes.time, "monotonic", lambda: now[0])
    content = os.urandom(PAGE)
    one = Bench(tmp_path, [content], journaled=True, seconds=10.0)
    real = one.server._append

    def slow(*arguments):
        now[0] += 1.0
        return real(*arguments)

    monkeypatch.setattr(one.server, "_append", slow)
    try:
        # Two appends each: 2 seconds of 10 for noting, 4 kept back; the next 2 and 4 are too many.
        assert one.ring(request(WRITE, 0, 0, PAGE)) == [PAGE]
        with pytest.raises(UndoTimeError):
            one.ring(request(WRITE, 0, 0, PAGE))
        one.journal.undo()
        assert one.content() == content
    finally:
        one.close()


def test_nothing_is_changed_behind_a_record_that_is_not_whole(tmp_path, monkeypatch):
    """On a full disk: the journal has half a record, and what came behind it would not be found."""
    content = os.urandom(PAGE)
    one = Bench(tmp_path, [content], journaled=True)
    real = LIBRARY.write
    calls = []

    def write(descriptor, address, length):
        calls.append(length)
        return real(descriptor, address, 100) if len(calls) == 1 else failing(errno.ENOSPC)()

    try:
        assert one.ring(request(RESIZE, 0, 0, 2 * PAGE)) == [0]
        with monkeypatch.context() as patch:
            patch.setattr(one.server, "_library", Library(write=write))
            assert one.ring(request(WRITE, 0, 0, PAGE)) == [-errno.ENOSPC]
        for operation in (WRITE, ZERO, DISCARD, RESERVE, RESIZE):
            assert one.ring(request(operation, 0, 0, 5)) == [-errno.ENOSPC]
        # But the length that the file has lets go of what is reserved behind it.
        assert one.ring(request(RESIZE, 0, 0, 2 * PAGE)) == [0]
        one.journal.undo()
        assert one.content() == content
    finally:
        one.close()


def test_what_is_reserved_is_noted(tmp_path):
    content = os.urandom(PAGE)
    one = Bench(tmp_path, [content], journaled=True)
    try:
        blocks = os.stat(one.disks[0].path).st_blocks
        assert one.ring(request(RESERVE, 0, PAGE, 1 << 24)) == [0]
        assert os.stat(one.disks[0].path).st_blocks >= 1 << 15
        one.journal.undo()
        assert one.content() == content
        assert os.stat(one.disks[0].path).st_blocks == blocks
    finally:
        one.close()


# ---- forecast --------------------------------------------------------------------------------------------------------

MEGA = 1 << 20
CHANGES = [(WRITE, 8), (ZERO, 8), (DISCARD, 8), (RESIZE, 100), (RESERVE, 8), (COPY, 8)]


class Clock:
    """Stands in for time: goes on when a test says so."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(doorbell_writes, "time", made)
    return made


def go_over(one, clock, seconds=10.0, first=0, done=100 * MEGA, total=200 * MEGA):
    """Half of the work takes the first half of so many seconds, and something before it."""
    clock.now += 1
    one.ring(request(READ, 0, 0, 8), request(PROGRESS, 0, first, total))
    clock.now += seconds
    one.ring(request(PROGRESS, 0, done, total))


@pytest.mark.parametrize(("change", "length"), CHANGES)
def test_what_will_take_too_long_ends_before_the_first_change(bench, clock, change, length):
    one = bench(b"content!", seconds=20, foresees=True)
    go_over(one, clock)
    with pytest.raises(ForecastError) as raised:
        one.ring(request(READ, 0, 0, 8), request(change, 0, 0, length, source_offset=100))
    assert raised.value.args == (21,)
    assert one.content() == b"content!"


@pytest.mark.parametrize(("change", "length"), CHANGES)
@pytest.mark.parametrize(
    ("options", "work"),
    [
        ({"seconds": 21}, {}),  # just enough
        ({"seconds": 20}, {"done": 106 * MEGA}),
        ({"seconds": 2}, {"done": 4 * MEGA - 1}),  # of so little nothing can be told
        ({"seconds": 2}, {"first": 100 * MEGA}),
        ({"seconds": 2}, {"first": 150 * MEGA}),  # which no honest guest says
        ({"seconds": 12}, {"total": 100 * MEGA}),
        ({"seconds": 12}, {"total": 0}),
        ({"seconds": 2, "foresees": False}, {}),  # nobody gave a time
    ],
)
def test_what_may_be_done_in_time_is_done(bench, clock, change, length, options, work):
    one = bench(b"content!", **{"foresees": True, **options})
    go_over(one, clock, **work)
    assert one.ring(request(change, 0, 0, length, source_offset=100))[0] >= 0


def test_what_was_begun_is_not_given_up(bench, clock):
    """It is the time limit that ends it, and it may be that it does not."""
    one = bench(b"content!", seconds=20, foresees=True)
    assert one.ring(request(WRITE, 0, 0, 8)) == [8]
    go_over(one, clock, seconds=100)
    assert one.ring(request(WRITE, 0, 0, 8)) == [8]


def test_progress_that_comes_with_the_first_change(bench, clock):
    """In front of it, it counts: what is left may be less than was thought."""
    one = bench(b"content!", seconds=20, foresees=True)
    go_over(one, clock)
    assert one.ring(request(PROGRESS, 0, 100 * MEGA, 150 * MEGA), request(WRITE, 0, 0, 8)) == [0, 8]


def test_progress_is_told_on(bench, clock):
    told = []
    one = bench(b"content!", seconds=20, foresees=True, progress=lambda *numbers: told.append(numbers))
    go_over(one, clock, seconds=1)
    one.ring(request(WRITE, 0, 0, 8), request(PROGRESS, 0, 7, 8))
    assert told == [(0, 200 * MEGA), (100 * MEGA, 200 * MEGA), (7, 8)]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_any_progress_is_taken(begun, done, total):
    """Of a guest that was taken over: no number of it is too large to be told."""
    server = MovingServer.__new__(MovingServer)
    server._started, server._seconds = 0.0, 1.0
    enough = (
        contextlib.suppress(ForecastError) if done - begun >= 4 * MEGA and total > done else contextlib.nullcontext()
    )
    with enough:
        server._check_forecast(0.5, begun, done, total)
