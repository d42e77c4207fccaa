# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every way in which a guest that was taken over may try to get out, and how it ends."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import errors
from sandbox.vmm import answers, kvm
from sandbox.vmm.doorbell import Server
from sandbox.vmm.doorbell_rules import PAYLOAD_MAX
from sandbox.vmm.journal import UndoJournal
from sandbox.vmm.machine import Limits

LIBRARY = kvm.bindings()[1]
TEXT, DATA, HEAP, SIZE = LIBRARY.TEXT_ADDRESS, LIBRARY.DATA_ADDRESS, LIBRARY.HEAP_ADDRESS, LIBRARY.MEMORY_SIZE
GUARD = LIBRARY.STACK_BOTTOM - 4096
READ, WRITE, COPY, ZERO = LIBRARY.DOORBELL_READ, LIBRARY.DOORBELL_WRITE, LIBRARY.DOORBELL_COPY, LIBRARY.DOORBELL_ZERO
DISCARD, RESIZE, RESERVE = LIBRARY.DOORBELL_DISCARD, LIBRARY.DOORBELL_RESIZE, LIBRARY.DOORBELL_RESERVE
FLUSH, PROGRESS, FINISH = LIBRARY.DOORBELL_FLUSH, LIBRARY.DOORBELL_PROGRESS, LIBRARY.DOORBELL_FINISH
HUGE = (1 << 64) - 1

CRASHES = [
    ("WRITE_CODE",),
    ("RUN_DATA",),
    ("RUN_STACK",),
    ("OVERRUN_STACK",),
    ("OTHER_PORT",),
    ("PORT_BEYOND_BITMAP",),
    ("WIDE_DOORBELL",),
    ("READ_DOORBELL",),
    ("READ_CR3",),
    ("WRITE_CR0",),
    ("SYSCALL",),
    ("SYSENTER",),
    ("INT80",),
    ("WRMSR",),
    ("RDMSR",),
    ("HLT",),
    ("CLI",),
    ("LIDT",),
    ("LGDT",),
    ("LTR",),
    ("INVLPG",),
    ("FAR_JUMP",),
    ("INTERRUPT_RETURN",),
    ("DIVIDE",),
    ("UNDEFINED",),
    ("BREAKPOINT",),
    ("SINGLE_STEP",),
    ("NON_CANONICAL",),
    # Unmapped: zero, the page tables, the task state segment, the end of what is hidden, the guard page, the end of
    # memory and far behind it.
    *(("TOUCH_ADDRESS", address) for address in (0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, TEXT - 1, GUARD)),
    *(("TOUCH_ADDRESS", address) for address in (SIZE, 0x40000000, 1 << 39, 1 << 46)),
    *(("WRITE_ADDRESS", address) for address in (0x1000, 0x2000, 0x3000, 0x4000, 0x5000, DATA - 1, GUARD + 4095, SIZE)),
]


@pytest.mark.parametrize("attack", CRASHES, ids=lambda attack: "-".join(map(str, attack)))
def test_crash(hostile, attack):
    with pytest.raises(errors.GuestCrashError) as caught:
        hostile(*attack)
    assert caught.value.code == "guest_crash"
    assert caught.value.exit_reason in (kvm.EXIT_IO, kvm.EXIT_SHUTDOWN)


@pytest.mark.parametrize("mode", ["CPUID", "VMMCALL", "VMCALL", "RDTSC", "SIDT", "XGETBV", "WRFSBASE"])
def test_unprivileged_instruction(hostile, mode):
    """The processor or the hypervisor decides whether these fault; neither way do they lead anywhere."""
    try:
        answer = hostile(mode)
    except errors.GuestCrashError:
        return
    assert answer.payload == b"survived"
    result = struct.unpack_from("<Q", answer.result)[0]
    if mode in ("VMMCALL", "VMCALL"):
        assert result == HUGE, "a hypercall from user mode is refused with -EPERM"


def test_io_privilege_cannot_be_raised(hostile):
    flags = struct.unpack_from("<Q", hostile("INTERRUPT_FLAG").result)[0]
    assert flags & 0x3000 == 0


def test_string_instruction_on_the_doorbell(hostile):
    """However the hypervisor cuts it up: more than one byte at once is no doorbell, and an empty batch no batch."""
    with pytest.raises((errors.GuestCrashError, errors.GuestProtocolError)):
        hostile("STRING_DOORBELL")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits.within(0.2), r"did not finish within 0\.2 seconds"),
        (Limits(seconds=0.2), r"did not finish within 0\.2 seconds"),
        (Limits(idle=0.2), r"ran for 0\.2 seconds without asking"),
        (Limits(seconds=60, idle=0.2), r"ran for 0\.2 seconds without asking"),
    ],
)
def test_endless_loop(hostile, limits, message):
    with pytest.raises(errors.TimeLimitError, match=message):
        hostile("SPIN", limits=limits)


def test_runs_of_one_journal_share_their_time(hostile, disk):
    """A task can have a run for each of 65,536 snapshots."""
    with UndoJournal(disk(b"x")) as journal:
        hostile("TOUCH_ALL_MEMORY", disks=[journal.disk], journal=journal)
        assert 0 < journal.spent < answers.TOGETHER_SECONDS
        journal.spent = answers.TOGETHER_SECONDS
        with pytest.raises(errors.TimeLimitError):
            hostile("SPIN", disks=[journal.disk], journal=journal)


def test_what_the_host_takes_is_not_the_guests_time(hostile, disk, monkeypatch):
    """A flush that takes long is no guest that hangs; though the time for all together goes on."""
    serve = Server.serve

    def slowly(server):
        end = time.monotonic() + 0.8  # no sleep: the jail has none
        while time.monotonic() < end:
            pass
        return serve(server)

    monkeypatch.setattr(Server, "serve", slowly)
    target = disk(b"x")
    assert hostile("REQUEST", READ, 0, 0, 1, HEAP, disks=[target], limits=Limits(idle=0.5)).report.exits == 2
    with pytest.raises(errors.TimeLimitError, match=r"within 0\.5 seconds"):
        hostile("REQUEST", READ, 0, 0, 1, HEAP, disks=[target], limits=Limits.within(0.5))


def test_doorbell_storm(hostile):
    with pytest.raises(errors.BudgetError, match="1000 times"):
        hostile("STORM", limits=Limits(exits=1000))


def test_doorbell_storm_of_progress(hostile):
    """It costs the parent one message, not a thousand."""
    told = []
    with pytest.raises(errors.BudgetError):
        hostile("STORM", limits=Limits(exits=1000), progress=lambda *numbers: told.append(numbers))
    assert told == [(1, 2)]


def test_disk_filler_meets_the_size_limit(hostile, disk):
    target = disk(b"x" * 1000)
    with pytest.raises(errors.GuestProtocolError, match="size limit"):
        hostile("FILL_DISK", 65536, disks=[target], limits=Limits(file_growth=1 << 20))
    assert os.path.getsize(target.path) == 1 << 20


def test_disk_filler_meets_the_byte_budget(hostile, disk):
    target = disk()
    with pytest.raises(errors.BudgetError, match=str(1 << 20)):
        hostile("FILL_DISK", 65536, disks=[target], limits=Limits(bytes=1 << 20))
    assert os.path.getsize(target.path) == 1 << 20


@pytest.mark.parametrize("operation", [READ, DISCARD, RESERVE, FLUSH, PROGRESS])
def test_small_requests_meet_the_byte_budget(hostile, disk, operation):
    """Those that move nothing as well: each is work for the kernel."""
    with pytest.raises(errors.BudgetError, match=str(1 << 22)):
        hostile(
            "FULL_BATCHES", operation, 0, 1, 2, 4096, 1 << 40, disks=[disk(bytes(4096))], limits=Limits(bytes=1 << 22)
        )


JOURNALED = {
    "writes of one byte": (WRITE, 0, 1, 2, 4096),
    "the file zeroed again and again": (ZERO, 0, 1 << 20, 0, 1),
    "discards of one byte": (DISCARD, 0, 1, 2, 4096),
    "reserves of one byte": (RESERVE, 0, 1, 2, 4096),
}


@pytest.mark.parametrize("name", JOURNALED)
def test_what_can_be_undone_is_budgeted(hostile, disk, name):
    """A guest cannot make the journal, and so the work of who undoes it, larger than an honest change may."""
    content = os.urandom(1 << 20)
    target = disk(content)
    with UndoJournal(target) as journal:
        size, records = journal.budget()
        with pytest.raises((errors.BudgetError, errors.TimeLimitError)):
            hostile("FULL_BATCHES", *JOURNALED[name], 1 << 40, disks=[target], journal=journal)
        assert os.fstat(journal.descriptor).st_size <= size + records * journal.TRAILER.size
        journal.undo()
    with open(target.path, "rb") as file:
        assert file.read() == content


@pytest.mark.parametrize("mode", ["REQUEST", "CHANGE_AND_STAY"])
def test_nothing_stays_reserved(hostile, disk, mode):
    """Neither by who was stopped, nor by who said that all is well."""
    target = disk(b"x" * 1000)
    before = os.stat(target.path).st_blocks
    limits = Limits(seconds=60 if mode == "REQUEST" else 0.5, file_growth=64 << 20)
    if mode == "REQUEST":
        assert hostile(mode, RESERVE, 0, 0, 64 << 20, disks=[target], limits=limits).result[:8] == bytes(8)
    else:
        with pytest.raises(errors.TimeLimitError):
            hostile(mode, RESERVE, 0, 0, 64 << 20, disks=[target], limits=limits)
    with open(target.path, "rb") as file:
        assert file.read() == b"x" * 1000
    assert os.stat(target.path).st_blocks <= before + 8


def test_a_run_that_reserves_nothing_leaves_the_times_alone(hostile, disk):
    target = disk(b"x" * 1000)
    before = os.stat(target.path)
    hostile("REQUEST", READ, 0, 0, 1000, HEAP, disks=[target])
    assert os.stat(target.path).st_mtime_ns == before.st_mtime_ns


def test_all_memory(hostile):
    """The child of a program of ordinary size stays small even when the guest uses all that it has."""
    assert hostile("TOUCH_ALL_MEMORY").payload == b"survived"
    here = Path(__file__).parent
    script = f"""if True:
        import struct, sys
        sys.path[:0] = [{str(here.parents[1])!r}, {str(here)!r}]
        from guests import modes, program
        from sandbox.vmm.machine import Run, run
        call = struct.pack("<Q", modes()["TOUCH_ALL_MEMORY"])
        print(run(Run(program("hostile"), call)).report.peak_memory)
    """
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert 128 << 20 <= int(done.stdout) < 160 << 20


BAD_REQUESTS = {
    "no operation": ("operation", 0, 0, 0, 0, HEAP),
    "unknown operation": ("operation", 99, 0, 0, 0, HEAP),
    "copy by a guest that has none to make": ("operation", COPY, 0, 0, 4, 0, 1, 0),
    "disk index": ("disk index", READ, 2, 0, 512, HEAP),
    "largest disk index": ("disk index", WRITE, 0xFFFFFFFF, 0, 512, HEAP),
    "source disk index": ("disk index", COPY, 0, 0, 512, 0, 2, 0),
    "write to a disk opened for reading": ("opened for reading", WRITE, 1, 0, 512, HEAP),
    "copy to a disk opened for reading": ("opened for reading", COPY, 1, 0, 512, 0, 0, 0),
    "zero on a disk opened for reading": ("opened for reading", ZERO, 1, 0, 512),
    "discard on a disk opened for reading": ("opened for reading", DISCARD, 1, 0, 512),
    "resize of a disk opened for reading": ("opened for reading", RESIZE, 1, 0, 512),
    "reserve on a disk opened for reading": ("opened for reading", RESERVE, 1, 0, 512),
    "flush of a disk opened for reading": ("opened for reading", FLUSH, 1),
    "read behind the largest offset": ("file range", READ, 0, 1 << 63, 512, HEAP),
    "read whose end overflows": ("file range", READ, 0, HUGE - 10, 512, HEAP),
    "copy whose source overflows": ("file range", COPY, 0, 0, 512, 0, 1, HUGE),
    "write whose end overflows": ("file range", WRITE, 0, HUGE, 512, HEAP),
    "discard of everything": ("file range", DISCARD, 0, HUGE, HUGE),
    "zero of everything": ("file range", ZERO, 0, 1, HUGE),
    "resize beyond off_t": ("file range", RESIZE, 0, 0, 1 << 63),
    "write behind the limit": ("size limit", WRITE, 0, 1 << 40, 512, HEAP),
    "copy behind the limit": ("size limit", COPY, 0, 1 << 40, 512, 0, 1, 0),
    "zero behind the limit": ("size limit", ZERO, 0, 1 << 40, 512),
    "resize beyond the limit": ("size limit", RESIZE, 0, 0, 1 << 40),
    "reserve behind the limit": ("size limit", RESERVE, 0, 0, 1 << 40),
    "read over the code": ("memory range", READ, 0, 0, 512, TEXT),
    "read over the end of the code": ("memory range", READ, 0, 0, 512, DATA - 1),
    "read over the page tables": ("memory range", READ, 0, 0, 512, 0x1000),
    "read to address 0": ("memory range", READ, 0, 0, 512, 0),
    "write of the code": ("memory range", WRITE, 0, 0, 512, TEXT),
    "read behind the memory": ("memory range", READ, 0, 0, 512, SIZE),
    "read over the end of the memory": ("memory range", READ, 0, 0, 513, SIZE - 512),
    "read of more than memory": ("memory range", READ, 0, 0, HUGE, HEAP),
    "read to the last address": ("memory range", READ, 0, 0, 1, HUGE),
    "empty read to the last address": ("memory range", READ, 0, 0, 0, HUGE),
    "payload behind the memory": ("memory range", FINISH, 0, 0, 1, SIZE),
    "payload of absurd length": ("memory range", FINISH, 0, 0, HUGE, HEAP),
    "payload of more than memory": ("memory range", FINISH, 0, 0, SIZE, HEAP),
    "payload out of the page tables": ("memory range", FINISH, 0, 0, 4096, 0x1000),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_request_that_breaks_a_rule(hostile, disk, name):
    rule, *request = BAD_REQUESTS[name]
    target, source = disk(b"target"), disk(b"source", writable=False)
    with pytest.raises(errors.GuestProtocolError, match=rule):
        hostile("REQUEST", *request, disks=[target, source], limits=Limits(file_growth=1 << 20))
    for one, content in ((target, b"target"), (source, b"source")):
        with open(one.path, "rb") as file:
            assert file.read() == content


@pytest.mark.parametrize("operation", [WRITE, COPY, ZERO, DISCARD, RESIZE, RESERVE, FLUSH])
def test_no_change_in_a_run_that_reads(hostile, disk, operation):
    """Though the disk itself was opened for writing."""
    target = disk(b"target")
    with pytest.raises(errors.GuestProtocolError, match="opened for reading") as caught:
        hostile("REQUEST", operation, 0, 0, 4, HEAP, 0, 2, disks=[target], writable=())
    assert not caught.value.modified
    with open(target.path, "rb") as file:
        assert file.read() == b"target"


@pytest.mark.parametrize("count", [0, 256, 0xFFFFFFFF])
def test_batch_size(hostile, count):
    with pytest.raises(errors.GuestProtocolError, match="batch size"):
        hostile("BATCH", count)


def test_request_after_finish(hostile):
    with pytest.raises(errors.GuestProtocolError, match="after finish"):
        hostile("FINISH_FIRST")


def test_largest_payload(hostile):
    """It arrives whole, and one byte more does not: the parent has to hold it."""
    answer = hostile("REQUEST", FINISH, 0, 0, PAYLOAD_MAX, HEAP)
    assert answer.payload == bytes(PAYLOAD_MAX)
    with pytest.raises(errors.GuestProtocolError, match="payload size"):
        hostile("REQUEST", FINISH, 0, 0, PAYLOAD_MAX + 1, HEAP)


def test_every_mode_is_tried(mode_names):
    """A mode of hostile.c that no test here names would be an attack that nobody looks at."""
    text = "".join(path.read_text(encoding="ascii") for path in Path(__file__).parent.glob("test_*.py"))
    assert len(mode_names) > 40
    assert [name for name in mode_names if f'"{name}"' not in text] == []
