# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A seccomp filter as classic BPF (the kernel's Documentation/userspace-api/seccomp_filter.rst), x86-64 only.

A filter is a list of rules: a system call, and what its arguments must be. Everything else kills the process.
"""

from __future__ import annotations

import struct
import typing as t

from . import kvm

LOAD, AND, JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
AUDIT_ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000

# Offsets in struct seccomp_data.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16

SYSTEM_CALLS = {
    "write": 1,
    "lseek": 8,
    "mmap": 9,
    "munmap": 11,
    "brk": 12,
    "ioctl": 16,
    "pread64": 17,
    "pwrite64": 18,
    "mremap": 25,
    "madvise": 28,
    "setitimer": 38,
    "fdatasync": 75,
    "ftruncate": 77,
    "rt_sigtimedwait": 128,
    "fadvise64": 221,
    "clock_gettime": 228,
    "clock_nanosleep": 230,
    "exit_group": 231,
    "sync_file_range": 277,
    "fallocate": 285,
    "copy_file_range": 326,
}

_SECCOMP = 317
_SET_MODE_FILTER = 1

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


class OneOf(t.NamedTuple):
    """An argument must be one of these values. wide: the whole 64 bits are compared, else the low 32 (an int)."""

    argument: int
    values: tuple[int, ...]
    wide: bool = False


class Without(t.NamedTuple):
    """An argument must have none of these bits, all in the low 32."""

    argument: int
    bits: int


Condition = t.Union[OneOf, Without]


class Rule(t.NamedTuple):
    """A system call is allowed when all conditions hold."""

    name: str
    conditions: tuple[Condition, ...] = ()


def program(rules: t.Sequence[Rule]) -> list[Instruction]:
    """The filter's instructions. Jumps are relative and reach no further than their own rule."""
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
        (JUMP_GREATER_EQUAL, 0, 1, X32_BIT),
        (RETURN, 0, 0, KILL_PROCESS),
    ]
    for rule in rules:
        body = [line for condition in rule.conditions for line in _checks(condition)]
        body.append((RETURN, 0, 0, ALLOW))
        # The number stays in the accumulator: a rule that is entered always returns.
        code.append((JUMP_EQUAL, 0, len(body), SYSTEM_CALLS[rule.name]))
        code += body
    code.append((RETURN, 0, 0, KILL_PROCESS))
    if any(true > 255 or false > 255 for _unused, true, false, _unused in code):
        raise ValueError("a rule is too long to be jumped over")
    return code


def _checks(condition: Condition) -> list[Instruction]:
    """Goes on behind itself when the condition holds, and kills otherwise. Words are little-endian."""
    low = ARGUMENTS + 8 * condition.argument
    if isinstance(condition, Without):
        return [(LOAD, 0, 0, low), (JUMP_ANY_BIT, 0, 1, condition.bits), (RETURN, 0, 0, KILL_PROCESS)]
    code: list[Instruction] = []
    if condition.wide:
        code += [(LOAD, 0, 0, low + 4), (JUMP_EQUAL, 1, 0, 0), (RETURN, 0, 0, KILL_PROCESS)]
    code.append((LOAD, 0, 0, low))
    count = len(condition.values)
    for index, value in enumerate(condition.values):
        code.append((JUMP_EQUAL, count - index, 0, value & 0xFFFFFFFF))
    return [*code, (RETURN, 0, 0, KILL_PROCESS)]


def packed(instructions: t.Sequence[Instruction]) -> bytes:
    """The instructions as an array of struct sock_filter."""
    return b"".join(struct.pack("=HBBI", *line) for line in instructions)


def install(code_bytes: bytes) -> None:
    """Put the calling thread under a packed filter; no_new_privs must be set. Raises OSError."""
    ffi, library = kvm.bindings()
    code = ffi.from_buffer(code_bytes)
    filters = ffi.new("struct sock_fprog *")
    filters.len = len(code_bytes) // ffi.sizeof("struct sock_filter")
    filters.filter = ffi.cast("struct sock_filter *", code)
    if library.syscall(_SECCOMP, ffi.cast("long", _SET_MODE_FILTER), ffi.cast("long", 0), filters) != 0:
        raise OSError(ffi.errno, "seccomp")
