# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""KVM's structs and ioctls (the kernel's Documentation/virt/kvm/api.rst), and nothing else.

Pointers are cffi's: `ffi` is the generated module's, `library` the C library of the process.
"""

from __future__ import annotations

import errno
import os
import typing as t

from .. import errors

DEVICE = "/dev/kvm"
API_VERSION = 12

GET_API_VERSION = 0xAE00
CREATE_VM = 0xAE01
GET_VCPU_MMAP_SIZE = 0xAE04
CREATE_VCPU = 0xAE41
SET_USER_MEMORY_REGION = 0x4020AE46
RUN = 0xAE80
SET_REGS = 0x4090AE82
SET_SREGS = 0x4138AE84
SET_SIGNAL_MASK = 0x4004AE8B
SET_CPUID2 = 0x4008AE90

SYNC_REGS = 1  # the kernel leaves the general registers in the shared page, so that nothing need ask for them

EXIT_IO = 2
EXIT_SHUTDOWN = 8
EXIT_IO_OUT = 1

_NO_MODULE = (
    'Load the module: "modprobe kvm_intel" or "modprobe kvm_amd", and switch on virtualization in the firmware.'
)
_bindings: list[tuple[t.Any, t.Any]] = []


def bindings() -> tuple[t.Any, t.Any]:
    """(ffi, library); always the same two. Raises NoCffiError, NotBuiltError."""
    if not _bindings:
        try:
            from ..guests import _abi
        except ImportError as error:
            from ..words import advice  # words, and it is there as a rule

            raise errors.NotBuiltError(f"sandbox/guests/_abi.py is missing. {advice.say('build')}") from error
        try:
            ffi = _abi.load()
        except ImportError as error:
            raise errors.NoCffiError(
                "This Python has no usable cffi backend. Install the package python3-cffi-backend (Debian, Ubuntu), "
                "python3-cffi (Fedora, RHEL), or cffi 1.14 or newer with pip."
            ) from error
        _bindings.append((ffi, ffi.dlopen(None)))
    return _bindings[0]


def realize() -> None:
    """Makes all types and functions of the bindings, which cffi makes when they are first used. To be called before
    threads use them: cffi 2.0 aborts the process when two make one type at the same time. Raises as bindings()."""
    ffi, library = bindings()
    for name in ffi.list_types()[1]:
        ffi.typeof(f"struct {name} *").item.fields  # noqa: B018  which makes those of the fields, too
    for name in dir(library):
        getattr(library, name)


def open_device(path: str = DEVICE) -> int:
    """A descriptor of /dev/kvm. Raises NoKvmError, KvmPermissionError, KvmError, NoCffiError, NotBuiltError."""
    if os.uname().machine != "x86_64":
        raise errors.NoKvmError(f"The guest runs on x86_64 only; this machine is {os.uname().machine}.")
    ffi, library = bindings()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise errors.KvmPermissionError(
                f"{path} may not be opened: {os.strerror(error.errno)}. Run it as root, or add the user to the group "
                'kvm: "usermod -aG kvm USER", then log in anew.'
            ) from error
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise errors.NoKvmError(f"There is no {path}. {_NO_MODULE}") from error
        from ..words import advice

        reason, way = os.strerror(error.errno or 0), advice.of_errno(error.errno or 0, "Look into the kernel's log.")
        raise errors.KvmError(f"{path} cannot be opened: {reason}. {way}") from error
    version = library.ioctl(descriptor, GET_API_VERSION, ffi.cast("long", 0))
    if version != API_VERSION:
        os.close(descriptor)
        raise errors.KvmError(f"{path} does not speak version {API_VERSION} of KVM's interface, but {version}.")
    return descriptor


def call(descriptor: int, request: int, argument: t.Any = 0) -> int:
    """ioctl(2). Raises OSError."""
    ffi, library = bindings()
    if isinstance(argument, int):
        argument = ffi.cast("long", argument)
    result: int = library.ioctl(descriptor, request, argument)
    if result < 0:
        # No strerror: with a locale it may open a file, and this is also called in the jail.
        raise OSError(ffi.errno, "ioctl")
    return result


class Vcpu:
    """A virtual machine's only processor.

    descriptor: for KVM_RUN. run: struct kvm_run *, shared with the kernel.
    """

    def __init__(self, device: int, machine: int, number: int) -> None:
        """number: what the descriptor shall be. Raises OSError."""
        ffi, library = bindings()
        born = call(machine, CREATE_VCPU)
        self.descriptor = os.dup2(born, number, inheritable=False)
        os.close(born)
        size = call(device, GET_VCPU_MMAP_SIZE)
        mapped = map_memory(size, MAP_SHARED, self.descriptor)
        self.run = ffi.cast("struct kvm_run *", mapped)
        self.run.kvm_valid_regs = SYNC_REGS
        self._ffi = ffi
        self._ioctl = library.ioctl
        self._zero = ffi.cast("long", 0)

    def enter(self) -> int:
        """Run the guest until it exits: 0, or the errno (EINTR: a signal)."""
        if self._ioctl(self.descriptor, RUN, self._zero) == 0:
            return 0
        return int(self._ffi.errno)

    def address(self) -> int:
        """Of the instruction at which the guest left. 0 before Linux 4.17; of no meaning after a fault on AMD."""
        return int(self.run.regs.rip)

    def set_open_signals(self, signals: t.Iterable[int]) -> None:
        """Only these signals interrupt the guest; the process may block them everywhere else."""
        opened = sum(1 << (number - 1) for number in signals)
        mask = self._ffi.new("struct kvm_signal_mask *")
        mask.len = 8
        self._ffi.memmove(mask.sigset, ((1 << 64) - 1 - opened).to_bytes(8, "little"), 8)
        call(self.descriptor, SET_SIGNAL_MASK, mask)


PROT_READ_WRITE = 3
MAP_SHARED = 0x01
MAP_PRIVATE_ANONYMOUS_NORESERVE = 0x4022


def map_memory(size: int, flags: int, descriptor: int = -1) -> t.Any:
    """mmap(2) for reading and writing, as char *. It stays until the process ends. Raises OSError."""
    ffi, library = bindings()
    address = library.mmap(ffi.NULL, size, PROT_READ_WRITE, flags, descriptor, 0)
    if int(ffi.cast("intptr_t", address)) == -1:
        raise OSError(ffi.errno, "mmap")
    return ffi.cast("char *", address)


def create_machine(device: int, memory: t.Any, size: int) -> int:
    """A descriptor of a virtual machine with `size` bytes at guest address 0, backed by memory. Raises OSError."""
    ffi, _library = bindings()
    machine = call(device, CREATE_VM)
    region = ffi.new("struct kvm_userspace_memory_region *")
    region.memory_size = size
    region.userspace_addr = int(ffi.cast("uintptr_t", memory))
    call(machine, SET_USER_MEMORY_REGION, region)
    return machine
