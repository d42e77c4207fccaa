# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the child gives up before the guest runs, layer by layer. The order is the caller's (child.py) and matters.

Layers that must be there raise JailError or OSError; the others tell whether they are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import time
import typing as t

from .. import errors
from ..host.disks import ADVICE_DROP, FALLOCATE_DISCARD, FALLOCATE_RESERVE, FALLOCATE_ZERO, SYNC_START
from . import kvm
from .doorbell_rules import File
from .seccomp import OneOf, Rule, Without

# Nobody's: Debian reserves 65000..65533, and no service has this one. The group of every jail, and its user where a
# user namespace has no other.
JAIL_ID = 65533

# A jail's user is this and its process id (22 bits): no two jails are the same user, so none may signal, trace or
# reschedule another. systemd's list of ranges has nothing here, and directory services give out numbers that are lower.
# A process id namespace would do as well, but costs another fork.
FIRST_USER = 0x7C000000

_SYS_CAPSET = 126
_SYS_UNSHARE = 272
_SYS_CLOSE_RANGE = 436
_SYS_LANDLOCK_CREATE_RULESET = 444
_SYS_LANDLOCK_RESTRICT_SELF = 446

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x40000000
_NAMESPACES = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWNET

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_SIGKILL = 9
_ITIMER_REAL = 0

_DESCRIPTORS_END = 0xFFFFFFFF
_PROT_EXEC = 4
_NO_DESCRIPTOR = 0xFFFFFFFF
_SEEK_END = 2

# Memory that the child may still map after the guest's: Python's own allocations.
SPARE_MEMORY = 32 << 20


def close_others(keep: t.Iterable[int]) -> None:
    """Close every descriptor but these. Raises OSError."""
    ffi, library = kvm.bindings()
    start = 0
    for descriptor in [*sorted(set(keep)), _DESCRIPTORS_END]:
        if start < descriptor and library.syscall(
            _SYS_CLOSE_RANGE,
            ffi.cast("long", start),
            ffi.cast("long", descriptor if descriptor == _DESCRIPTORS_END else descriptor - 1),
            ffi.cast("long", 0),
        ):
            # Before Linux 5.9.
            return _close_listed(set(keep))
        start = descriptor + 1
    return None


def _close_listed(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError as error:
                # The descriptor of the listing itself is gone by now.
                if error.errno != errno.EBADF:
                    raise


def be_the_first_to_go() -> None:
    """Where memory runs out, the kernel ends this process, and no virtual machine. Of no effect where /proc is hidden.
    As root still: afterwards the file is not this process's to write."""
    with contextlib.suppress(OSError):
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"1000")
        finally:
            os.close(descriptor)


def leave_namespaces() -> bool:
    """Empty mounts, network, IPC and host name for this process. False without the privilege."""
    ffi, library = kvm.bindings()
    return bool(library.syscall(_SYS_UNSHARE, ffi.cast("long", _NAMESPACES)) == 0)


def start_timer(seconds: float) -> None:
    """SIGALRM when the time is over, and again every 50 ms; what was started before is stopped. Raises OSError."""
    ffi, library = kvm.bindings()
    whole = int(seconds)
    timer = ffi.new("struct interval_timer *", (0, 50000, whole, max(1, int((seconds - whole) * 1e6))))
    if library.setitimer(_ITIMER_REAL, timer, ffi.NULL) != 0:
        raise OSError(ffi.errno, "setitimer")


def forget_alarm() -> bool:
    """Take back a SIGALRM that is waiting, blocked; whether there was one."""
    return signal.sigtimedwait((signal.SIGALRM,), 0) is not None


def drop_credentials() -> bool:
    """Become a user that owns nothing and that nobody else is, without capabilities or core dumps.

    False where only the latter two are possible, or not all of the former: when the parent is not root, or root
    without the capabilities for it, or root of a user namespace that has no such user. Raises OSError.
    """
    ffi, library = kvm.bindings()
    dropped = os.geteuid() == 0 and _leave_root()
    header = ffi.new("struct capability_header *", (_CAPABILITY_VERSION_3, 0))
    _must(library.syscall(_SYS_CAPSET, header, ffi.new("struct capability_data[2]")), "capset")
    _must(library.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")
    return dropped


def _leave_root() -> bool:
    """Each part that can be had; whether that was all. Raises OSError."""
    ffi, library = kvm.bindings()
    capability = 0
    while library.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    library.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    groups = _may(library.setgroups(0, ffi.NULL), "setgroups")
    group = _may(library.setresgid(JAIL_ID, JAIL_ID, JAIL_ID), "setresgid")
    own = FIRST_USER + os.getpid()
    user = any(_may(library.setresuid(number, number, number), "setresuid") for number in (own, JAIL_ID))
    return groups and group and user


def die_with_parent(parent: int) -> None:
    """Be killed when the parent (its process id) ends. After drop_credentials(), which would clear it."""
    _ffi, library = kvm.bindings()
    _must(library.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        raise errors.JailError("The parent process ended.")


def forbid_new_privileges() -> None:
    """Raises OSError."""
    _ffi, library = kvm.bindings()
    _must(library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


def restrict_with_landlock() -> int:
    """No file, no TCP port, no abstract socket or signal outside may be reached: Landlock's ABI version in use, 0
    where there is none."""
    ffi, library = kvm.bindings()
    newest = library.syscall(_SYS_LANDLOCK_CREATE_RULESET, ffi.NULL, ffi.cast("long", 0), ffi.cast("long", 1))
    # Some kernels report a version that they then refuse: go down.
    for version in range(min(int(newest), 7), 0, -1):
        attributes = ffi.new("struct landlock_ruleset_attr *")
        attributes.handled_access_fs = _landlock_file_rights(version)
        attributes.handled_access_net = 3 if version >= 4 else 0
        attributes.scoped = 3 if version >= 6 else 0
        size = 8 if version < 4 else 16 if version < 6 else 24
        ruleset = library.syscall(_SYS_LANDLOCK_CREATE_RULESET, attributes, ffi.cast("long", size), ffi.cast("long", 0))
        if ruleset < 0:
            continue
        restricted = library.syscall(_SYS_LANDLOCK_RESTRICT_SELF, ffi.cast("long", ruleset), ffi.cast("long", 0)) == 0
        os.close(ruleset)
        if restricted:
            return version
    return 0


def _landlock_file_rights(version: int) -> int:
    """Every right on files that a version of the ABI knows."""
    rights = (1 << 13) - 1
    if version >= 2:
        rights |= 1 << 13  # refer
    if version >= 3:
        rights |= 1 << 14  # truncate
    if version >= 5:
        rights |= 1 << 15  # ioctl of devices
    return rights


def mapped_memory() -> int:
    """Bytes of address space in use. Raises OSError."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def limit_resources(seconds: float, file_size: int, address_space: int) -> None:
    """seconds: of CPU time, a little more than the timer gives. file_size: bytes that any file may reach.
    address_space: bytes. After Landlock, which needs a descriptor. Raises OSError, ValueError."""
    processor = int(seconds) + 2
    for limit, soft, hard in (
        (resource.RLIMIT_AS, address_space, address_space),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_CPU, processor, processor + 1),
        (resource.RLIMIT_FSIZE, file_size, file_size),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
        (resource.RLIMIT_NOFILE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_SIGPENDING, 4, 4),
    ):
        ceiling = resource.getrlimit(limit)[1]
        if ceiling == resource.RLIM_INFINITY or ceiling >= hard:
            resource.setrlimit(limit, (soft, hard))
        else:
            resource.setrlimit(limit, (min(soft, ceiling), ceiling))


def rules(
    vcpu: int,
    files: t.Sequence[File],
    appended: t.Sequence[int],
    journal: int = -1,
    copies: bool = False,
    sleeps: bool = False,
    rewinds: bool = False,
) -> list[Rule]:
    """What the child may still do. vcpu: the descriptor that KVM_RUN is for. appended: what write(2) may go to: the
    result pipe, a journal. journal: the disk whose length is asked for, or -1. copies: from disk to
    disk. sleeps: to keep to a rate. rewinds: the timer, where the time that the host takes is not the guest's."""
    chain = tuple(file.descriptor for file in files)
    writable = tuple(file.descriptor for file in files if file.writable)
    allowed = [
        Rule("ioctl", (OneOf(0, (vcpu,)), OneOf(1, (kvm.RUN,), wide=True))),
        Rule("pread64", (OneOf(0, chain),)),
        Rule("write", (OneOf(0, tuple(appended)),)),
        Rule("exit_group"),
        # Python's allocator, should it need more.
        Rule("mmap", (Without(2, _PROT_EXEC), OneOf(4, (_NO_DESCRIPTOR,)))),
        Rule("munmap"),
        Rule("mremap"),
        Rule("brk"),
        Rule("madvise"),
        # Where the vDSO has no clock.
        Rule("clock_gettime"),
    ]
    if journal >= 0:
        allowed.append(Rule("lseek", (OneOf(0, (journal,)), OneOf(1, (0,), wide=True), OneOf(2, (_SEEK_END,)))))
    if rewinds:
        allowed += [Rule("setitimer", (OneOf(0, (_ITIMER_REAL,)),)), Rule("rt_sigtimedwait")]
    if sleeps:
        allowed.append(Rule("clock_nanosleep", (OneOf(0, (time.CLOCK_MONOTONIC,)), OneOf(1, (0,)))))
    if writable:
        allowed += [
            Rule("pwrite64", (OneOf(0, writable),)),
            Rule("fdatasync", (OneOf(0, writable),)),
            Rule("fallocate", (OneOf(0, writable), OneOf(1, (FALLOCATE_RESERVE, FALLOCATE_DISCARD, FALLOCATE_ZERO)))),
            Rule("ftruncate", (OneOf(0, writable),)),
        ]
    if writable and copies:
        allowed += [
            Rule("fadvise64", (OneOf(0, writable), OneOf(3, (ADVICE_DROP,)))),
            Rule("sync_file_range", (OneOf(0, writable), OneOf(3, (SYNC_START,)))),
            Rule("copy_file_range", (OneOf(0, chain), OneOf(2, writable), OneOf(5, (0,)))),
        ]
    return allowed


def _may(result: int, what: str) -> bool:
    """Whether it could be done; there are hosts where root may not. Raises OSError for any other failure."""
    if result == 0:
        return True
    ffi, _library = kvm.bindings()
    if ffi.errno in (errno.EPERM, errno.EINVAL):
        return False
    raise OSError(ffi.errno, what)


def _must(result: int, what: str) -> None:
    if result != 0:
        ffi, _library = kvm.bindings()
        raise OSError(ffi.errno, what)
