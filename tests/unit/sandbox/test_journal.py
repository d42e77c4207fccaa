# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The journal's file; what is in it is tested with the doorbell."""

from __future__ import annotations

import errno
import os
import random

import pytest

from sandbox import errors
from sandbox.host.disks import FALLOCATE_RESERVE, open_disk
from sandbox.vmm import journal, kvm
from sandbox.vmm.journal import DISCARD, RESERVE, RESIZE, WRITE, UndoJournal


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"0123456789")
    with open_disk(str(path), True) as disk:
        yield disk


def content(disk):
    with open(disk.path, "rb") as file:
        return file.read()


def append(kept, operation, offset, length, saved=b"", cut=None):
    record = saved + kept.TRAILER.pack(operation, offset, length, len(saved), kept.mark)
    os.write(kept.descriptor, record[:cut])


def test_the_file_has_no_name(disk, tmp_path):
    with UndoJournal(disk) as kept:
        assert os.fstat(kept.descriptor).st_nlink == 0
        assert os.fstat(kept.descriptor).st_dev == os.stat(tmp_path).st_dev
        assert not os.get_inheritable(kept.descriptor)
        assert os.listdir(tmp_path) == ["disk"]
        assert kept.empty
        kept.close()
        kept.close()


def test_directory_that_cannot_hold_it(disk, monkeypatch):
    real = os.open

    def refuse(path, flags, *arguments):
        if flags & os.O_TMPFILE == os.O_TMPFILE and path == os.path.dirname(disk.path):
            raise OSError(errno.EROFS, "read-only")
        return real(path, flags, *arguments)

    monkeypatch.setattr(journal.os, "open", refuse)
    with UndoJournal(disk) as kept:
        assert os.fstat(kept.descriptor).st_nlink == 0
        assert not os.get_inheritable(kept.descriptor)


def test_undo_goes_backwards(disk):
    with UndoJournal(disk) as kept:
        append(kept, WRITE, 0, 3, b"012")
        append(kept, WRITE, 2, 3, b"x34")
        append(kept, RESIZE, 5, 5, b"56789")
        os.pwrite(disk.descriptor, b"abxyz", 0)
        os.ftruncate(disk.descriptor, 5)
        kept.undo()
        assert kept.empty
    assert content(disk) == b"0123456789"


@pytest.mark.parametrize("cut", [1, 2, 3, 33, 34, 49])
def test_record_that_was_cut_off(disk, cut):
    """The change behind it had not begun; the next run's records come where it began."""
    with UndoJournal(disk) as kept:
        append(kept, WRITE, 0, 1, b"0")
        append(kept, WRITE, 5, 2, b"56", cut=cut)
        assert len(list(kept.notes())) == 1
        kept.trim()
        append(kept, WRITE, 8, 1, b"8")
        assert [note.offset for note in kept.notes()] == [8, 0]
        os.pwrite(disk.descriptor, b"x", 0)
        os.pwrite(disk.descriptor, b"x", 8)
        kept.undo()
    assert content(disk) == b"0123456789"


def test_all_runs_together_are_budgeted(disk, monkeypatch):
    """By what the disk holds, and not by the length that it claims."""
    monkeypatch.setattr(journal, "TOTAL_MIN", 1000)
    os.truncate(disk.path, 1 << 40)
    with UndoJournal(disk) as kept:
        most = os.stat(disk.path).st_blocks * 512 + 1000
        assert kept.budget() == (most, most // kept.TRAILER.size)
        append(kept, WRITE, 0, 4, b"abcd")
        assert kept.budget()[0] == most - 4 - kept.TRAILER.size
        os.ftruncate(kept.descriptor, most + 1)
        assert kept.budget() == (0, 0)


def test_undo_of_nothing_writes_nothing(disk):
    before = os.stat(disk.path).st_mtime_ns
    with UndoJournal(disk) as kept:
        kept.undo()
        kept.keep()
    assert os.stat(disk.path).st_mtime_ns == before


def test_undo_that_fails_can_be_tried_again(disk, monkeypatch):
    with UndoJournal(disk) as kept:
        append(kept, WRITE, 0, 3, b"012")
        os.pwrite(disk.descriptor, b"xxx", 0)

        def fail(*_arguments):
            raise OSError(errno.EIO, "broken")

        with monkeypatch.context() as patch:
            patch.setattr(journal.os, "pwrite", fail)
            with pytest.raises(OSError, match="broken"):
                kept.undo()
        kept.undo()
    assert content(disk) == b"0123456789"


def test_discards_wait_for_keep(disk):
    with UndoJournal(disk) as kept:
        append(kept, DISCARD, 0, 10)
        append(kept, WRITE, 2, 3, b"234")
        append(kept, WRITE, 7, 1, b"7")
        kept.keep()
    assert content(disk) == b"\0\x00234\0\x007\0\0"


@pytest.mark.parametrize("size", [1, journal.CHUNK, journal.CHUNK + UndoJournal.TRAILER.size - 1])
def test_longest_record_that_was_cut_off(disk, size):
    with UndoJournal(disk) as kept:
        append(kept, WRITE, 3, 1, b"3")
        os.write(kept.descriptor, b"x" * size)
        os.pwrite(disk.descriptor, b"xx", 2)
        assert [note.offset for note in kept.notes()] == [3]
        kept.undo()
    assert content(disk) == b"01x3456789"


def test_nothing_but_a_record_that_was_cut_off(disk):
    with UndoJournal(disk) as kept:
        os.write(kept.descriptor, b"x" * journal.CHUNK)
        assert list(kept.notes()) == []
        kept.trim()
        assert kept.empty


def test_many_records_take_no_memory(disk, monkeypatch):
    """They are read in windows of a fixed size, from the end: the first note is there after one of them."""
    reads = []
    real = os.pread

    def pread(descriptor, length, offset):
        reads.append(length)
        return real(descriptor, length, offset)

    with UndoJournal(disk) as kept:
        trailer = kept.TRAILER.pack(DISCARD, 5, 1, 0, kept.mark)
        os.write(kept.descriptor, trailer * 100_000)
        monkeypatch.setattr(journal.os, "pread", pread)
        notes = kept.notes()
        next(notes)
        assert sum(reads) <= len(trailer) + journal._WINDOW
        assert sum(1 for _note in notes) == 99_999
        assert max(reads) <= journal._WINDOW
        assert sum(reads) < 2 * 100_000 * len(trailer)


BROKEN = {
    "offset that no file has": lambda mark: b"x" + UndoJournal.TRAILER.pack(WRITE, 1 << 63, 1, 1, mark),
    "sum that no file has": lambda mark: UndoJournal.TRAILER.pack(DISCARD, (1 << 63) - 1, 1, 0, mark),
    "behind the end": lambda mark: b"x" + UndoJournal.TRAILER.pack(WRITE, 10, 1, 1, mark),
    "more saved than there is": lambda mark: UndoJournal.TRAILER.pack(WRITE, 0, 1, 1, mark),
    "more saved than is read at once": lambda mark: (
        bytes(journal.CHUNK + 1) + UndoJournal.TRAILER.pack(WRITE, 0, 1, journal.CHUNK + 1, mark)
    ),
    "no mark below": lambda mark: b"0" * 100 + UndoJournal.TRAILER.pack(WRITE, 0, 1, 1, mark),
    "no mark anywhere": lambda _mark: b"x" * (journal.CHUNK + UndoJournal.TRAILER.size + 1),
    "a mark without a trailer": lambda mark: mark,
}


@pytest.mark.parametrize("name", BROKEN)
def test_journal_that_the_sandbox_did_not_write(disk, name):
    with UndoJournal(disk) as kept:
        os.write(kept.descriptor, BROKEN[name](kept.mark))
        for reader in (kept.undo, kept.keep):
            with pytest.raises(errors.GuestProtocolError):
                reader()
    assert content(disk) == b"0123456789"


def test_blocks_reserved_behind_the_end_are_given_back(disk):
    before = os.stat(disk.path)
    with UndoJournal(disk) as kept:
        append(kept, RESERVE, 0, 64 << 20)
        _ffi, library = kvm.bindings()
        assert library.fallocate(disk.descriptor, FALLOCATE_RESERVE, 0, 64 << 20) == 0
        assert os.stat(disk.path).st_blocks * 512 >= 64 << 20
        kept.undo()
    assert os.stat(disk.path).st_size == before.st_size
    assert os.stat(disk.path).st_blocks <= before.st_blocks + 8


def test_keep_gives_back_what_there_is_time_for(disk):
    with UndoJournal(disk) as kept:
        append(kept, DISCARD, 0, 3)
        append(kept, DISCARD, 7, 3)
        kept.seconds = -1.0
        kept.keep()
        assert kept.empty
    assert content(disk) == b"0123456\0\0\0"


def test_keep_holds_no_more_ranges_than_it_may(disk, monkeypatch):
    monkeypatch.setattr(journal, "RANGES_MAX", 2)
    with UndoJournal(disk) as kept:
        append(kept, DISCARD, 9, 1)
        for offset in (0, 2, 4):
            append(kept, WRITE, offset, 1, b"x")
        append(kept, DISCARD, 8, 1)
        kept.keep()
        assert kept.empty
    assert content(disk) == b"01234567\x009"


def test_ranges_against_a_set():
    """The arithmetic of keep(): thousands of random ranges beside a plain set of bytes."""
    source = random.Random(7)
    for _unused in range(300):
        ranges, plain = journal._Ranges(), set()
        for _unused in range(12):
            start = source.randrange(60)
            end = start + source.randrange(12)
            missing = {byte for first, last in ranges.missing(start, end) for byte in range(first, last)}
            assert missing == set(range(start, end)) - plain
            ranges.add(start, end)
            plain |= set(range(start, end))


def test_file_that_ends_early(tmp_path):
    descriptor = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        with pytest.raises(OSError, match="Input/output error"):
            journal._read_exactly(descriptor, 1, 0)
    finally:
        os.close(descriptor)
