# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""KVM's numbers against the kernel's own headers, and what is said where there is no KVM."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys

import pytest

from sandbox import errors
from sandbox.vmm import boot, kvm

FFI, LIBRARY = kvm.bindings()

STRUCTS = {
    "kvm_regs": "kvm_regs",
    "kvm_segment": "kvm_segment",
    "kvm_dtable": "kvm_dtable",
    "kvm_sregs": "kvm_sregs",
    "kvm_userspace_memory_region": "kvm_userspace_memory_region",
    "kvm_cpuid_entry2": "kvm_cpuid_entry2",
    "sock_filter": "sock_filter",
    "sock_fprog": "sock_fprog",
    "capability_header": "__user_cap_header_struct",
    "capability_data": "__user_cap_data_struct",
}
OFFSETS = {
    "kvm_sregs": ("tr", "gdt", "idt", "cr0", "cr3", "cr4", "efer", "apic_base"),
    "kvm_regs": ("rsp", "rip", "rflags"),
    "kvm_segment": ("selector", "type", "dpl", "l", "unusable"),
    "kvm_run": ("immediate_exit", "exit_reason", "io.direction", "io.size", "io.port", "io.count", "kvm_valid_regs"),
    "kvm_cpuid2": ("entries",),
    "kvm_signal_mask": ("sigset",),
}
NUMBERS = {
    "GET_API_VERSION": "KVM_GET_API_VERSION",
    "CREATE_VM": "KVM_CREATE_VM",
    "GET_VCPU_MMAP_SIZE": "KVM_GET_VCPU_MMAP_SIZE",
    "CREATE_VCPU": "KVM_CREATE_VCPU",
    "SET_USER_MEMORY_REGION": "KVM_SET_USER_MEMORY_REGION",
    "RUN": "KVM_RUN",
    "SET_REGS": "KVM_SET_REGS",
    "SET_SREGS": "KVM_SET_SREGS",
    "SET_SIGNAL_MASK": "KVM_SET_SIGNAL_MASK",
    "SET_CPUID2": "KVM_SET_CPUID2",
    "API_VERSION": "KVM_API_VERSION",
    "EXIT_IO": "KVM_EXIT_IO",
    "EXIT_SHUTDOWN": "KVM_EXIT_SHUTDOWN",
    "EXIT_IO_OUT": "KVM_EXIT_IO_OUT",
    "SYNC_REGS": "KVM_SYNC_X86_REGS",
}


def offset(struct, path):
    return FFI.offsetof(f"struct {struct}", *path.split("."))


def test_against_the_kernels_headers(tmp_path):
    """One C file of assertions: the compiler says which number is wrong."""
    checks = [f"sizeof(struct {theirs}) == {FFI.sizeof(f'struct {ours}')}" for ours, theirs in STRUCTS.items()]
    checks += [
        f"offsetof(struct {struct}, {path}) == {offset(struct, path)}"
        for struct, paths in OFFSETS.items()
        for path in paths
    ]
    checks += [f"offsetof(struct kvm_run, s.regs.regs) == {offset('kvm_run', 'regs')}"]
    checks += [f"{theirs} == {getattr(kvm, ours)}" for ours, theirs in NUMBERS.items()]
    lines = [f'_Static_assert({check}, "{check}");' for check in checks]
    source = tmp_path / "checks.c"
    headers = ("stddef.h", "linux/kvm.h", "linux/filter.h", "linux/capability.h")
    source.write_text("".join(f"#include <{name}>\n" for name in headers) + "\n".join(lines) + "\n")
    done = subprocess.run(["gcc", "-fsyntax-only", str(source)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_device(tmp_path):
    with pytest.raises(errors.NoKvmError, match="modprobe kvm_intel"):
        kvm.open_device(str(tmp_path / "kvm"))


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (errno.EACCES, errors.KvmPermissionError, "usermod -aG kvm"),
        (errno.EPERM, errors.KvmPermissionError, "group"),
        (errno.ENODEV, errors.NoKvmError, "modprobe kvm_amd"),
        (errno.ENXIO, errors.NoKvmError, "firmware"),
        (errno.EMFILE, errors.KvmError, "Too many open files"),
    ],
)
def test_device_that_cannot_be_opened(monkeypatch, number, kind, advice):
    def fail(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(kvm.os, "open", fail)
    with pytest.raises(kind, match=advice):
        kvm.open_device()


def test_device_that_is_something_else(tmp_path):
    path = tmp_path / "kvm"
    path.write_bytes(b"")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(errors.KvmError, match="version 12"):
        kvm.open_device(str(path))
    assert os.listdir("/proc/self/fd") == before


def test_other_processor(monkeypatch):
    class Uname:
        machine = "aarch64"

    monkeypatch.setattr(kvm.os, "uname", Uname)
    with pytest.raises(errors.NoKvmError, match="aarch64"):
        kvm.open_device()


def test_no_cffi(monkeypatch):
    monkeypatch.setattr(kvm, "_bindings", [])
    monkeypatch.setitem(sys.modules, "_cffi_backend", None)
    monkeypatch.setattr("sandbox.guests._abi._LOADED", [])
    with pytest.raises(errors.NoCffiError, match="python3-cffi-backend"):
        kvm.bindings()


def test_not_built(monkeypatch):
    monkeypatch.setattr(kvm, "_bindings", [])
    monkeypatch.setitem(sys.modules, "sandbox.guests._abi", None)
    monkeypatch.delattr("sandbox.guests._abi", raising=False)
    with pytest.raises(errors.NotBuiltError, match="make build"):
        kvm.bindings()


def test_bindings_are_always_the_same():
    assert kvm.bindings() is kvm.bindings()


def test_failed_calls_tell_their_errno():
    with pytest.raises(OSError, match=r"\[Errno 9\]"):
        kvm.call(-1, kvm.CREATE_VM)
    with pytest.raises(OSError, match=r"\[Errno 22\]"):
        kvm.map_memory(0, kvm.MAP_PRIVATE_ANONYMOUS_NORESERVE)


def walk(address, size=LIBRARY.MEMORY_SIZE):
    """What the page tables say of a linear address: (physical address, entry bits), or None when it is not mapped."""
    pages = boot.system_pages(size)
    table, user, writable, executable = 0x1000, True, True, True
    for shift in (39, 30, 21, 12):
        at = table - 0x1000 + 8 * (address >> shift & 511)
        entry = int.from_bytes(pages[at : at + 8], "little") if at < len(pages) else 0
        if not entry & 1:
            return None
        user, writable, executable = user and entry & 4, writable and entry & 2, executable and not entry >> 63
        table = entry & 0x000FFFFFFFFFF000
        if entry & 0x80 and shift == 21:
            table += address & 0x1FF000
            break
    return table, bool(user), bool(writable), bool(executable)


def test_page_tables():
    """Every page of the guest's world, and what is around it."""
    text, data, end = LIBRARY.TEXT_ADDRESS, LIBRARY.DATA_ADDRESS, LIBRARY.MEMORY_SIZE
    guard = LIBRARY.STACK_BOTTOM - 4096
    for address in range(0, end, 4096):
        found = walk(address)
        if address == 0x5000:
            assert found == (address, False, False, False), "the task state segment is hidden"
        elif address < text or address == guard:
            assert found is None, hex(address)
        elif address < data:
            assert found == (address, True, False, True), hex(address)
        else:
            assert found == (address, True, True, False), hex(address)
    for address in (end, 1 << 30, 1 << 39, (1 << 47) - 4096):
        assert walk(address) is None


@pytest.mark.parametrize("size", [1 << 30, (1 << 30) + (2 << 20), boot.MEMORY_MAX])
def test_page_tables_of_more_memory(size):
    """Each large page is itself, and data; nothing is behind the last one. The tables lie below the guest's code."""
    for address in range(LIBRARY.HEAP_ADDRESS, size, 2 << 20):
        assert walk(address, size) == (address, True, True, False), hex(address)
    for address in (size, size + (1 << 30), boot.MEMORY_MAX):
        assert walk(address, size) is None
    assert 0x1000 + len(boot.system_pages(size)) <= LIBRARY.TEXT_ADDRESS


def test_task_state():
    """The bitmap permits the doorbell's port and no other."""
    state = boot.system_pages(LIBRARY.MEMORY_SIZE)[0x4000:]
    bitmap = int.from_bytes(state[102:104], "little")
    assert bitmap == 104
    bits = int.from_bytes(state[bitmap : bitmap + 8], "little")
    assert [port for port in range(64) if not bits >> port & 1] == [LIBRARY.DOORBELL_PORT]
    assert state[:102] == bytes(102)


def test_processor_starts_in_user_mode():
    state = boot.processor_state()
    special, general = state.special, state.general
    for segment in (special.cs, special.ds, special.es, special.fs, special.gs, special.ss):
        assert (segment.dpl, segment.selector & 3) == (3, 3)
    assert special.cs.l == 1
    assert special.idt.limit == special.gdt.limit == 0
    assert special.efer & 1 == 0, "no SYSCALL"
    assert special.efer & 0x800, "no-execute pages"
    assert general.rflags == 2, "no interrupts, I/O privilege level 0"
    assert (general.rip, general.rsp) == (LIBRARY.TEXT_ADDRESS, LIBRARY.STACK_TOP - 8)


@pytest.mark.parametrize("what", ["text", "data", "call"])
def test_parts_that_do_not_fit(what):
    limits = {"text": 0x140000, "data": 0x10000, "call": 0x10000}
    parts = dict.fromkeys(limits, b"")
    boot.check_sizes(**{**parts, what: bytes(limits[what])})
    with pytest.raises(ValueError, match=re.escape(f"{what} is larger")):
        boot.check_sizes(**{**parts, what: bytes(limits[what] + 1)})
