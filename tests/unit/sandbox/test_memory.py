# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest gets of the host's memory: what it asks for, by what its files hold and never by what they claim, and
with all others no more than there may be."""

from __future__ import annotations

import os
import pathlib
import struct
import subprocess
import types
import typing as t

import pytest

from sandbox import errors
from sandbox.cli.main import main
from sandbox.host.disks import open_disk
from sandbox.images.image import Image
from sandbox.operations import Report, Selector, create_snapshot, delete_snapshot, list_snapshots
from sandbox.vmm import boot, kvm, machine, memory

from .guest_answers import Guest

MIB = 1 << 20
STEP = 2 * MIB
HOST = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
MUCH = 1 << 60
NAME = b"before"


def disk(held: int, size: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(held=held, size=size, is_block=False)


def size_of(wanted: int, *disks: t.Any) -> int:
    with memory.reserved(disks, [one.held for one in disks], wanted) as size:
        return size


@pytest.fixture(autouse=True)
def _much_is_free(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[None]:
    monkeypatch.setattr(memory, "_available", lambda _page: 1 << 40)
    yield
    memory.set_limit(0)
    memory.short.clear()
    assert memory._taken == []


def test_a_guest_that_does_not_ask_gets_the_least() -> None:
    assert kvm.bindings()[1].MEMORY_SIZE == memory.LEAST
    assert size_of(0) == memory.LEAST
    assert size_of(0, disk(MUCH, MUCH)) == memory.LEAST


def test_no_more_than_a_byte_for_each_entry_that_can_be_in_the_files() -> None:
    memory.set_limit(1 << 40)
    assert size_of(MUCH, disk(4096, MUCH)) == memory.LEAST
    assert size_of(MUCH, disk(1 << 20, 1 << 20), disk(4 << 30, 1 << 44)) == memory.LEAST + 512 * MIB
    # Nor more clusters than sectors.
    assert size_of(MUCH, disk(1 << 40, 64 << 30)) == memory.LEAST + 128 * MIB
    assert size_of(MUCH, disk(MUCH, MUCH)) == boot.MEMORY_MAX


@pytest.mark.parametrize("wanted", [memory.LEAST + 1, 300 * MIB, 300 * MIB + 1])
def test_no_less_than_was_asked_for(wanted: int) -> None:
    memory.set_limit(1 << 30)
    assert wanted <= size_of(wanted, disk(MUCH, MUCH)) <= wanted + STEP


def test_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert size_of(MUCH, disk(MUCH, MUCH)) <= max(HOST // 4, memory.LEAST)
    memory.set_limit(memory.LEAST)
    assert size_of(MUCH, disk(MUCH, MUCH)) == memory.LEAST
    memory.set_limit(201 * MIB)
    assert size_of(MUCH, disk(MUCH, MUCH)) == 200 * MIB
    memory.set_limit(1 << 40)
    monkeypatch.setattr(memory, "_available", lambda _page: 300 * MIB)
    assert size_of(MUCH, disk(MUCH, MUCH)) == 236 * MIB
    monkeypatch.setattr(memory, "_available", lambda _page: 0)
    assert size_of(MUCH, disk(MUCH, MUCH)) == memory.LEAST
    with pytest.raises(ValueError):
        memory.set_limit(memory.LEAST - 1)


def test_guests_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third one waits until there is enough for all that run; with a limit of what one has, they run in turn."""
    memory.set_limit(1 << 30)
    waits = []
    many = disk(MUCH, MUCH)
    with memory.reserved([many], [MUCH], 500 * MIB):
        second = memory.reserved([many], [MUCH], 300 * MIB)
        second.__enter__()

        def sleep(_seconds: float) -> None:
            waits.append(sum(memory._taken) // MIB)
            second.__exit__(None, None, None)

        monkeypatch.setattr(memory.time, "sleep", sleep)
        assert 400 * MIB <= size_of(400 * MIB, many) <= 402 * MIB
    assert waits == [804]


def test_what_other_guests_may_still_use_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_available", lambda _page: 600 * MIB)
    memory.set_limit(1 << 30)
    with memory.reserved([disk(MUCH, MUCH)], [MUCH], 300 * MIB):
        assert size_of(500 * MIB, disk(MUCH, MUCH)) == (600 - 302 - 64) * MIB


def test_a_hole_is_nothing_that_is_held(tmp_path: pathlib.Path) -> None:
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 1 << 40)
    with open_disk(str(tmp_path / "hole"), writable=False) as hole:
        assert memory.held(hole) == 0


class Short(Guest):
    """A stand-in that gives up for lack of memory each time."""

    def __init__(self, **fields: t.Any) -> None:
        super().__init__()
        code = kvm.bindings()[0].integer_const("REFUSAL_NO_MEMORY")
        self.answers("snapshot_list", header_code=code, **{f"header_{key}": value for key, value in fields.items()})


def runs_of(guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> list[machine.Run]:
    monkeypatch.setattr(machine, "run", guest.run)
    (tmp_path / "image").write_bytes(b"opaque")
    with Image.open(str(tmp_path / "image")) as image, pytest.raises(errors.AirlockError):
        list_snapshots(image, limits=machine.Limits.within(20))
    return guest.calls


def test_who_asks_is_run_again_once(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """In what is left of its time, and told that it may not ask again."""
    guest = Short(memory_wanted=1 << 40)
    guest.report = guest.report._replace(milliseconds=5000.0)
    first, second = runs_of(guest, monkeypatch, tmp_path)
    asks = [kvm.bindings()[0].from_buffer("struct call_header *", run.call).may_ask for run in (first, second)]
    assert asks == [1, 0]
    assert (first.memory, second.memory) == (0, 1 << 40)
    assert (first.limits.seconds, second.limits.seconds) == (20, 15)


@pytest.mark.parametrize("what", ["nothing", "modified", "written"])
def test_who_may_not_ask_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, what: str) -> None:
    """What was written, the host has counted itself."""
    guest = Short(memory_wanted=0 if what == "nothing" else 1 << 40, modified=what == "modified")
    guest.report = guest.report._replace(bytes_written=what == "written")
    assert len(runs_of(guest, monkeypatch, tmp_path)) == 1


def claiming(path: pathlib.Path) -> None:
    """A file of 15 TiB whose last clusters are counted, of a disk of 64 TiB: it holds a few hundred KiB."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "64T"], check=True)
    size = 15 << 40
    index = (size >> 16) // 32768 - 1
    with open(path, "r+b") as file:
        header = struct.unpack(">4sIQIIQIIQQI", file.read(60))
        table, clusters = header[9], header[10]
        assert index < clusters * 8192
        block = (file.seek(0, 2) + 65535) // 65536
        file.truncate((block + 1) * 65536)
        file.seek(table)
        (first,) = struct.unpack(">Q", file.read(8))
        file.seek(first + 2 * block)
        file.write(b"\0\1")  # the new block is counted in the first one
        file.seek(table + 8 * index)
        file.write(struct.pack(">Q", block << 16))
        file.truncate(size)


def changed(path: pathlib.Path) -> tuple[list[Report], bytes]:
    """An image that claims much, after a snapshot was created in it and another deleted; and its first MiB."""
    claiming(path)
    with Image.open(str(path), writable=True) as image:
        reports = [create_snapshot(image, name, (1_700_000_000, 0)).report for name in (NAME, b"other")]
        reports.append(delete_snapshot(image, Selector.by_name(NAME)).report)
    with open(path, "rb") as file:
        return reports, file.read(MIB)


@pytest.mark.kvm
def test_a_claim_takes_nothing(tmp_path: pathlib.Path) -> None:
    reports, _bytes = changed(tmp_path / "disk")
    assert os.stat(tmp_path / "disk").st_blocks * 512 < 8 * MIB
    for report in reports:
        assert report.memory <= memory.LEAST + STEP
        assert report.windows > 1
        assert report.exits < 200
        assert report.bytes_read < 64 * MIB


@pytest.mark.kvm
def test_windows_leave_the_same_bytes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """With room for all counters, and within a limit: the same image, and a warning of what the limit costs."""
    monkeypatch.setattr(memory, "held", lambda _disk: 1 << 40)  # as if the file held all that it claims
    memory.set_limit(1 << 30)
    roomy, wanted = changed(tmp_path / "roomy")
    assert {report.windows for report in roomy} == {1}
    assert min(report.memory for report in roomy) > 240 * MIB  # a byte for each cluster
    assert memory.short == {}
    memory.set_limit(memory.LEAST)
    narrow, found = changed(tmp_path / "narrow")
    assert {report.memory for report in narrow} == {memory.LEAST}
    assert min(report.windows for report in narrow) > 1
    assert found == wanted
    assert set(memory.short) == {str(tmp_path / "narrow")}
    assert main([b"--memory-limit", b"128M", b"snapshot", b"-c", b"more", os.fsencode(tmp_path / "narrow")]) == 0
    error = capfdbinary.readouterr().err
    assert b"in 128 MiB of memory its guest read the tables" in error
    assert b"--memory-limit" in error


@pytest.mark.parametrize("value", [b"127M", b"0", b"-1", b"", b"many"])
def test_the_command_line_refuses_what_is_no_limit(value: bytes, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main([b"--memory-limit", value, b"snapshot", b"-l", b"disk"]) == 1
    assert b"--memory-limit expects a size of 128M or more" in capfdbinary.readouterr().err
