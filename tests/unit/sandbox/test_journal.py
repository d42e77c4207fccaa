# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The journal's and the recorder's files; what is in them is tested with the doorbell."""

from __future__ import annotations

import errno
import os
import random

import pytest

from sandbox import journal
from sandbox.disks import open_disk
from sandbox.journal import DISCARD, RESIZE, WRITE, Recorder, UndoJournal


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"0123456789")
    with open_disk(str(path), True) as disk:
        yield disk


def content(disk):
    with open(disk.path, "rb") as file:
        return file.read()


def append(kept, operation, offset, length, saved=b"", before=10, cut=None):
    record = kept.HEADER.pack(operation, offset, length, len(saved), before) + saved
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
        append(kept, RESIZE, 5, 5, b"56789", 10)
        os.pwrite(disk.descriptor, b"abxyz", 0)
        os.ftruncate(disk.descriptor, 5)
        kept.undo()
        assert kept.empty
    assert content(disk) == b"0123456789"


@pytest.mark.parametrize("cut", [1, 39, 40, 41])
def test_record_that_was_cut_off(disk, cut):
    """The change behind it had not begun; the next run's records come where it began."""
    with UndoJournal(disk) as kept:
        append(kept, WRITE, 0, 1, b"0")
        append(kept, WRITE, 5, 2, b"56", cut=cut)
        assert len(kept.records()) == 1
        kept.trim()
        append(kept, WRITE, 8, 1, b"8")
        assert [record[1] for record in kept.records()] == [0, 8]
        os.pwrite(disk.descriptor, b"x", 0)
        os.pwrite(disk.descriptor, b"x", 8)
        kept.undo()
    assert content(disk) == b"0123456789"


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


def test_recorder_starts_empty(tmp_path):
    path = tmp_path / "record"
    path.write_bytes(b"old")
    with Recorder(str(path)) as recorder:
        assert list(recorder.events()) == []
        recorder.close()
        recorder.close()


def test_file_that_ends_early(tmp_path):
    descriptor = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        with pytest.raises(OSError, match="Input/output error"):
            journal._read_exactly(descriptor, 1, 0)
    finally:
        os.close(descriptor)
