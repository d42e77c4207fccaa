# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's world: its memory, its page tables, and a processor that starts in user mode.

There is no ring 0: no interrupt table, no descriptor table, nothing to return to. Any fault is a triple fault and ends
the machine. Code may be run and not written, everything else may be written and not run; page tables and the task
state segment lie below TEXT_ADDRESS, where nothing is mapped for the guest. The addresses are those of enum memory_map
in guest/abi/doorbell.h, mapped one to one.
"""

from __future__ import annotations

import functools
import struct
import typing as t

from . import kvm

# Guest-physical addresses of one page each, in this order.
_PML4, _PDPT, _DIRECTORY, _LOW_TABLE, _TASK_STATE, _MORE_DIRECTORIES = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000
_PAGE = 0x1000
_LARGE_PAGE = 0x200000
_REACH = 1 << 30  # bytes that a directory maps
MEMORY_MAX = 3 * _REACH  # behind it lies what processors have mapped for themselves

# Page table entries. Accessed and dirty are set from the start: the processor has no reason to write here.
_PRESENT, _WRITABLE, _USER, _ACCESSED, _DIRTY, _LARGE, _NO_EXECUTE = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
_TABLE = _PRESENT | _WRITABLE | _USER | _ACCESSED
_CODE = _PRESENT | _USER | _ACCESSED
_DATA = _PRESENT | _WRITABLE | _USER | _ACCESSED | _DIRTY | _NO_EXECUTE
_HIDDEN = _PRESENT | _ACCESSED | _NO_EXECUTE  # supervisor's, and there is no supervisor

# Intel SDM volume 3, chapters 2.5 and 8.7.
_CR0 = 0x80050033  # paging, write protection, x87, protected mode
_CR4 = 0x624  # SSE, physical address extension; and no reading of the time stamp in user mode
_APIC_BASE = 0xFEE00900  # as after a reset
_EFER = 0xD00  # long mode, no-execute; and no SYSCALL
_TASK_STATE_SIZE = 104
_TASK_STATE_TYPE = 11  # 64-bit, busy
_CODE_TYPE, _DATA_TYPE = 0xB, 0x3  # accessed
_CODE_SELECTOR, _DATA_SELECTOR = 0x33, 0x2B
_USER_LEVEL = 3
_RFLAGS = 0x2  # no interrupts, IOPL 0

# (function, eax, ebx, ecx, edx): a processor with SSE2, long mode and no-execute pages, and nothing that the
# hypervisor would have to offer. The same on every host.
_CPUID = (
    (0x0, 0x1, 0, 0, 0),
    (0x1, 0x600, 0, 0, 0x07008179),
    (0x80000000, 0x80000008, 0, 0, 0),
    (0x80000001, 0, 0, 0, 0x20100000),
    (0x80000008, 0x3024, 0, 0, 0),
)

_MADV_HUGEPAGE = 14

# Bytes of address space that booting and serving a guest takes besides its memory, generously: KVM's pages, buffers.
ADDRESS_SPACE = 8 << 20


@functools.cache
def system_pages(size: int) -> bytes:
    """What lies from _PML4 to the end of the last directory. size: of the guest's memory, bytes up to MEMORY_MAX."""
    library = kvm.bindings()[1]

    def low_entry(address: int) -> int:
        if address == _TASK_STATE:
            return address | _HIDDEN
        if address < library.TEXT_ADDRESS or address == library.STACK_BOTTOM - _PAGE:
            return 0
        return address | (_CODE if address < library.DATA_ADDRESS else _DATA)

    def page(entries: t.Iterable[int]) -> bytes:
        return b"".join(entry.to_bytes(8, "little") for entry in entries).ljust(_PAGE, b"\0")

    def large(start: int) -> t.Iterable[int]:
        end = min(size, start // _REACH * _REACH + _REACH)
        return (address | _DATA | _LARGE for address in range(start, end, _LARGE_PAGE))

    more = range(_REACH, size, _REACH)
    return b"".join(
        (
            page([_PDPT | _TABLE]),
            page(place | _TABLE for place in (_DIRECTORY, *(_MORE_DIRECTORIES + i * _PAGE for i in range(len(more))))),
            page([_LOW_TABLE | _TABLE, *large(_LARGE_PAGE)]),
            page(low_entry(address) for address in range(0, _LARGE_PAGE, _PAGE)),
            _task_state(library.DOORBELL_PORT).ljust(_PAGE, b"\0"),
            *(page(large(start)) for start in more),
        )
    )


def _task_state(port: int) -> bytes:
    """A task state segment whose I/O bitmap permits one port, below 56: the processor reads two bytes of it."""
    permitted = ((1 << 64) - 1 - (1 << port)).to_bytes(8, "little")
    return bytes(_TASK_STATE_SIZE - 2) + struct.pack("<H", _TASK_STATE_SIZE) + permitted


def prepare(size: int) -> None:
    """Make what is the same for every machine with that much memory, once, in the parent."""
    system_pages(size)
    processor_state()


def map_guest_memory(size: int) -> t.Any:
    """Zeros, as char *, that take memory only where they are used. Raises OSError."""
    ffi, library = kvm.bindings()
    mapped = kvm.map_memory(size + _LARGE_PAGE, kvm.MAP_PRIVATE_ANONYMOUS_NORESERVE)
    memory = mapped + -int(ffi.cast("uintptr_t", mapped)) % _LARGE_PAGE
    # The heap; the first 2 MiB are used sparsely. Without transparent huge pages it fails, and that is fine.
    library.madvise(memory + _LARGE_PAGE, size - _LARGE_PAGE, _MADV_HUGEPAGE)
    return memory


def load_guest(memory: t.Any, size: int, text: bytes, data: bytes, call: bytes) -> None:
    """Lay out everything that is there before the first instruction. Sizes are checked by check_sizes()."""
    ffi, library = kvm.bindings()
    for address, content in (
        (_PML4, system_pages(size)),
        (library.TEXT_ADDRESS, text),
        (library.DATA_ADDRESS, data),
        (library.CALL_ADDRESS, call),
    ):
        ffi.memmove(memory + address, content, len(content))


def check_sizes(text: bytes, data: bytes, call: bytes) -> None:
    """Raises ValueError when a part does not fit in its place."""
    library = kvm.bindings()[1]
    for what, content, start, end in (
        ("text", text, library.TEXT_ADDRESS, library.DATA_ADDRESS),
        ("data", data, library.DATA_ADDRESS, library.CALL_ADDRESS),
        ("call", call, library.CALL_ADDRESS, library.RESULT_ADDRESS),
    ):
        if len(content) > end - start:
            raise ValueError(f"the guest's {what} is larger than {end - start} bytes")


class ProcessorState(t.NamedTuple):
    """struct kvm_cpuid2 *, kvm_sregs * and kvm_regs *: long mode, user mode, at the guest's first instruction."""

    cpuid: t.Any
    special: t.Any
    general: t.Any


@functools.cache
def processor_state() -> ProcessorState:
    """Always the same: made once, set in each machine."""
    ffi, library = kvm.bindings()
    cpuid = ffi.new("struct kvm_cpuid2 *")
    cpuid.nent = len(_CPUID)
    for entry, (function, eax, ebx, ecx, edx) in zip(cpuid.entries, _CPUID):
        entry.function, entry.eax, entry.ebx, entry.ecx, entry.edx = function, eax, ebx, ecx, edx
    special = ffi.new("struct kvm_sregs *")
    special.apic_base = _APIC_BASE
    special.cr0, special.cr3, special.cr4, special.efer = _CR0, _PML4, _CR4, _EFER
    for segment in (special.cs, special.ds, special.es, special.fs, special.gs, special.ss):
        segment.base, segment.limit, segment.g = 0, 0xFFFFFFFF, 1
        segment.present, segment.s, segment.dpl, segment.unusable = 1, 1, _USER_LEVEL, 0
        segment.type, segment.selector, segment.l, segment.db = _DATA_TYPE, _DATA_SELECTOR, 0, 1
    # The libraries that inflate look there for a canary of the stack.
    special.fs.base = library.TEXT_ADDRESS
    code = special.cs
    code.type, code.selector, code.l, code.db = _CODE_TYPE, _CODE_SELECTOR, 1, 0
    task = special.tr
    task.base, task.limit = _TASK_STATE, _TASK_STATE_SIZE + 7
    task.present, task.s, task.type, task.unusable = 1, 0, _TASK_STATE_TYPE, 0
    # The tables of interrupts, descriptors and local descriptors stay empty.
    special.ldt.unusable = 1
    general = ffi.new("struct kvm_regs *")
    general.rip, general.rsp, general.rflags = library.TEXT_ADDRESS, library.STACK_TOP - 8, _RFLAGS
    return ProcessorState(cpuid, special, general)


def set_processor(vcpu: kvm.Vcpu, size: int) -> None:
    """size: of the memory, which the guest finds in its first argument. Raises OSError."""
    state = processor_state()
    state.general.rdi = size
    kvm.call(vcpu.descriptor, kvm.SET_CPUID2, state.cpuid)
    kvm.call(vcpu.descriptor, kvm.SET_SREGS, state.special)
    kvm.call(vcpu.descriptor, kvm.SET_REGS, state.general)
