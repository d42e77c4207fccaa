# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The seccomp filter: interpreted here, then by the kernel, each rule with right and with wrong arguments."""

from __future__ import annotations

import os
import signal
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.vmm import jail, kvm, seccomp
from sandbox.vmm.doorbell_rules import File
from sandbox.vmm.seccomp import ALLOW, KILL_PROCESS, OneOf, Rule, Without

VCPU, CHAIN, TARGET, JOURNAL_DISK, PIPE, RECORD = 7, 10, 11, 12, 20, 21
FILES = [File(CHAIN, False, False, 0), File(TARGET, True, False, 1 << 30), File(JOURNAL_DISK, True, False, 1 << 30)]
RULES = jail.rules(VCPU, FILES, [PIPE, RECORD], JOURNAL_DISK, copies=True, sleeps=True)
PROGRAM = seccomp.program(RULES)
ANY = 0xDEADBEEF
MINUS_ONE = (1 << 64) - 1
X86_64 = seccomp.AUDIT_ARCH_X86_64


def interpret(program, number, arguments, architecture=X86_64):
    """What the kernel's classic BPF machine returns for struct seccomp_data."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments)
    accumulator, at = 0, 0
    while True:
        code, true, false, constant = program[at]
        at += 1
        if code == seccomp.LOAD:
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif code == seccomp.RETURN:
            return constant
        else:
            holds = {
                seccomp.JUMP_EQUAL: accumulator == constant,
                seccomp.JUMP_GREATER_EQUAL: accumulator >= constant,
                seccomp.JUMP_ANY_BIT: accumulator & constant != 0,
            }[code]
            at += true if holds else false


# For each rule: arguments that are allowed, and for each argument that is looked at, values that are not.
CASES = {
    "ioctl": ((VCPU, kvm.RUN, 0), {0: (CHAIN, PIPE, 0), 1: (kvm.SET_REGS, 0x5401, kvm.RUN | 1 << 32)}),
    "pread64": ((CHAIN, ANY, 512, 0), {0: (VCPU, PIPE, RECORD, 0)}),
    "pwrite64": ((TARGET, ANY, 512, 0), {0: (CHAIN, VCPU, PIPE)}),
    "fdatasync": ((TARGET,), {0: (CHAIN, PIPE)}),
    "fadvise64": ((TARGET, 0, ANY, 4), {0: (CHAIN, PIPE), 3: (0, 1, 3, 5)}),
    "sync_file_range": ((TARGET, 0, 0, 2), {0: (CHAIN, PIPE), 3: (1, 4, 7)}),
    "ftruncate": ((TARGET, 512), {0: (CHAIN, PIPE)}),
    "fallocate": ((TARGET, 3, 0, 512), {0: (CHAIN, PIPE), 1: (0, 2, 8, 0x20, 0x40)}),
    "copy_file_range": ((CHAIN, ANY, TARGET, ANY, 512, 0), {0: (PIPE, VCPU), 2: (CHAIN, PIPE), 5: (1,)}),
    "lseek": ((JOURNAL_DISK, 0, 2), {0: (TARGET, PIPE), 1: (1, 1 << 32), 2: (0, 1, 3)}),
    "write": ((PIPE, ANY, 512), {0: (0, 1, 2, CHAIN, TARGET, VCPU)}),
    "mmap": ((0, 4096, 3, 0x22, MINUS_ONE, 0), {2: (4, 5, 7), 4: (CHAIN, TARGET, 0)}),
    "munmap": ((ANY, 4096), {}),
    "mremap": ((ANY, 4096, 8192, 1), {}),
    "brk": ((0,), {}),
    "madvise": ((ANY, 4096, 4), {}),
    "clock_gettime": ((1, ANY), {}),
    "clock_nanosleep": ((1, 0, ANY, 0), {0: (0, 2, 3), 1: (1, 2)}),
    "exit_group": ((0,), {}),
}
WRONG = [
    (name, index, value)
    for name, (_unused, wrong) in CASES.items()
    for index, values in wrong.items()
    for value in values
]


def filled(arguments):
    return [*arguments, *[0] * (6 - len(arguments))]


def replaced(name, index, value):
    arguments = filled(CASES[name][0])
    arguments[index] = value
    return arguments


def test_every_rule_has_a_case():
    assert {rule.name for rule in RULES} == set(CASES)
    for rule in RULES:
        assert {condition.argument for condition in rule.conditions} == set(CASES[rule.name][1]), rule.name


def test_who_keeps_to_no_rate_does_not_sleep():
    names = {rule.name for rule in jail.rules(VCPU, FILES, [PIPE, RECORD], JOURNAL_DISK, copies=True)}
    assert set(CASES) - names == {"clock_nanosleep"}


def test_who_moves_nothing_does_not_copy():
    names = {rule.name for rule in jail.rules(VCPU, FILES, [PIPE, RECORD], JOURNAL_DISK, sleeps=True)}
    assert set(CASES) - names == {"copy_file_range", "fadvise64", "sync_file_range"}


@pytest.mark.parametrize("name", CASES)
def test_right_arguments(name):
    assert interpret(PROGRAM, seccomp.SYSTEM_CALLS[name], filled(CASES[name][0])) == ALLOW


@pytest.mark.parametrize(("name", "index", "value"), WRONG)
def test_wrong_argument(name, index, value):
    assert interpret(PROGRAM, seccomp.SYSTEM_CALLS[name], replaced(name, index, value)) == KILL_PROCESS


WORDS = st.integers(0, MINUS_ONE)
SMALL = st.one_of(st.integers(0, 30), WORDS)
ARGUMENTS = st.lists(SMALL, min_size=6, max_size=6)


@given(number=st.integers(0, 0xFFFFFFFF), arguments=ARGUMENTS)
def test_calls_without_a_rule_are_killed(number, arguments):
    if number not in {seccomp.SYSTEM_CALLS[rule.name] for rule in RULES}:
        assert interpret(PROGRAM, number, arguments) == KILL_PROCESS


@given(name=st.sampled_from(sorted(CASES)), architecture=st.integers(0, 0xFFFFFFFF))
def test_other_architectures_are_killed(name, architecture):
    if architecture != X86_64:
        verdict = interpret(PROGRAM, seccomp.SYSTEM_CALLS[name], filled(CASES[name][0]), architecture)
        assert verdict == KILL_PROCESS


@pytest.mark.parametrize("name", CASES)
def test_x32_is_killed(name):
    number = seccomp.SYSTEM_CALLS[name] | seccomp.X32_BIT
    assert interpret(PROGRAM, number, filled(CASES[name][0])) == KILL_PROCESS


def holds(condition, arguments):
    value = arguments[condition.argument]
    if isinstance(condition, Without):
        return value & condition.bits == 0
    return (value if condition.wide else value & 0xFFFFFFFF) in {v & 0xFFFFFFFF for v in condition.values}


@given(rule=st.sampled_from(RULES), arguments=ARGUMENTS)
def test_the_program_means_what_the_rules_say(rule, arguments):
    expected = ALLOW if all(holds(condition, arguments) for condition in rule.conditions) else KILL_PROCESS
    assert interpret(PROGRAM, seccomp.SYSTEM_CALLS[rule.name], arguments) == expected


def test_jumps_stay_inside():
    for at, (code, true, false, _unused) in enumerate(PROGRAM):
        if code not in (seccomp.LOAD, seccomp.RETURN):
            assert at + 1 + max(true, false) < len(PROGRAM)
    assert PROGRAM[-1] == (seccomp.RETURN, 0, 0, KILL_PROCESS)
    assert len(PROGRAM) < 4096


def test_many_descriptors():
    files = [File(100 + i, True, False, 0) for i in range(64)]
    program = seccomp.program(jail.rules(VCPU, files, [PIPE]))
    for file in files:
        assert interpret(program, 18, [file.descriptor, 0, 0, 0, 0, 0]) == ALLOW
    assert interpret(program, 18, [164, 0, 0, 0, 0, 0]) == KILL_PROCESS


def test_rule_that_is_too_long():
    with pytest.raises(ValueError, match="too long"):
        seccomp.program([Rule("write", (OneOf(0, tuple(range(300))),))])


def test_a_guest_that_only_reads_has_fewer_calls():
    names = {rule.name for rule in jail.rules(VCPU, FILES[:1], [PIPE])}
    assert names.isdisjoint(
        {"pwrite64", "ftruncate", "fallocate", "copy_file_range", "fdatasync", "fadvise64", "sync_file_range", "lseek"}
    )
    program = seccomp.program(jail.rules(VCPU, [], [PIPE]))
    assert interpret(program, 17, [0] * 6) == KILL_PROCESS, "without disks nothing can be read"


def call_filtered(number, arguments):
    """Make a system call in a child under PROGRAM; its wait status."""
    ffi, library = kvm.bindings()
    packed = seccomp.packed(PROGRAM)
    process = os.fork()
    if process == 0:
        try:
            words = [ffi.cast("long", ffi.cast("int64_t", value)) for value in arguments]
            os.closerange(3, 1024)  # the numbers in CASES are nobody's: what pytest holds there is not to be truncated
            jail.forbid_new_privileges()
            seccomp.install(packed)
            library.syscall(number, *words)
        finally:
            os._exit(0)
    return os.waitpid(process, 0)[1]


# An address that is really mapped would be unmapped or moved: the empty range does as well.
HARMLESS = {
    "munmap": (0, 0),
    "mremap": (0, 0, 0, 0),
    "madvise": (0, 0, 4),
    "clock_gettime": (1, 0),
    "clock_nanosleep": (1, 0, 0, 0),
    "write": (PIPE, 0, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_allows(name):
    arguments = filled(HARMLESS.get(name, CASES[name][0]))
    assert call_filtered(seccomp.SYSTEM_CALLS[name], arguments) == 0


@pytest.mark.parametrize(("name", "index", "value"), WRONG)
def test_the_kernel_kills_wrong_arguments(name, index, value):
    status = call_filtered(seccomp.SYSTEM_CALLS[name], replaced(name, index, value))
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGSYS


FORBIDDEN = {
    "read": 0,
    "open": 2,
    "close": 3,
    "fstat": 5,
    "mprotect": 10,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "rt_sigreturn": 15,
    "dup": 32,
    "sendfile": 40,
    "socket": 41,
    "clone": 56,
    "fork": 57,
    "execve": 59,
    "kill": 62,
    "fcntl": 72,
    "truncate": 76,
    "rename": 82,
    "unlink": 87,
    "ptrace": 101,
    "setuid": 105,
    "prctl": 157,
    "mount": 165,
    "tgkill": 234,
    "openat": 257,
    "unshare": 272,
    "splice": 275,
    "vmsplice": 278,
    "preadv": 295,
    "pwritev": 296,
    "perf_event_open": 298,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "seccomp": 317,
    "getrandom": 318,
    "memfd_create": 319,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "pidfd_open": 434,
    "clone3": 435,
    "openat2": 437,
    "landlock_create_ruleset": 444,
    "x32 write": seccomp.X32_BIT | 1,
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_kernel_kills(name):
    status = call_filtered(FORBIDDEN[name], [PIPE, 0, 0, 0, 0, 0])
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGSYS
