# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu's own locks on an image: open-file-description byte locks, shared with running VMs and with qemu-img.

Byte 100 + i says "I use permission i", byte 200 + i says "I do not let others use permission i", for i in 0 consistent
read, 1 write, 2 write unchanged, 3 resize. All are taken as read locks; whoever wants permission i probes 200 + i,
whoever does not share it probes 100 + i. First take, then probe: of two that start together one at least sees the
other.
Source: qemu 10.0.2, block/file-posix.c.

The locks belong to the open file description: closing its last descriptor drops them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import typing as t

from . import errors

# struct flock of a 64-bit Linux: l_type, l_whence, padding, l_start, l_len, l_pid, padding
_FLOCK = struct.Struct("=hh4xqqi4x")
_GETLK: int = getattr(fcntl, "F_OFD_GETLK", 36)
_SETLK: int = getattr(fcntl, "F_OFD_SETLK", 37)

_PERMISSIONS = {0: "consistent read", 1: "write", 3: "resize"}
_USES = 100
_KEEPS = 200

# Holders are looked for in /proc: this many processes and open files at most.
_PROCESSES_MAX = 20000
_FILES_MAX = 100000
_PIDS_MAX = 16

# What a kernel or a file system without these locks answers.
_NO_LOCKS = (errno.EINVAL, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Lock(t.NamedTuple):
    """What is held on an image. active: False where the file system has no such locks; reason says why."""

    held: tuple[int, ...]
    active: bool = True
    reason: str = ""


class _Kind(t.NamedTuple):
    """The bytes that one kind of opener takes, and those that it probes, in qemu's order."""

    takes: tuple[int, ...]
    probes: tuple[int, ...]


_READ_ONLY = _Kind((100, 201, 203), (200, 101, 103))
_READ_WRITE = _Kind((100, 101, 103, 201, 203), (200, 201, 203, 101, 103))
_FORCE_SHARE = _Kind((100,), (200,))


def lock_image(descriptor: int, path: str, writable: bool, force_share: bool = False) -> Lock:
    """Takes qemu's locks on an open image, as its qcow2 driver does.

    descriptor: open for reading, and for writing when writable. path: for messages.
    Raises errors.ImageInUseError, with no lock left behind, when somebody else's locks forbid it;
    errors.ForceShareError for a force_share that writes.
    """
    if writable and force_share:
        raise errors.force_share_error(path)
    kind = _FORCE_SHARE if force_share else _READ_WRITE if writable else _READ_ONLY
    try:
        for byte in kind.takes:
            if not _take(descriptor, byte):
                raise _in_use(descriptor, path, byte, f"Failed to lock byte {byte}", hint=False)
        for byte in kind.probes:
            if _is_held(descriptor, byte):
                raise _in_use(descriptor, path, byte, f"Failed to get {_permission(byte)} lock", hint=True)
    except OSError as error:
        unlock_image(descriptor)
        if error.errno not in _NO_LOCKS:
            raise errors.open_error(path, error, writable) from error
        return Lock((), False, f"no locks here: {os.strerror(error.errno)}")
    return Lock(kind.takes)


def unlock_image(descriptor: int) -> None:
    """Drops every lock that lock_image() can have taken; quiet where there are no such locks."""
    for byte in _READ_WRITE.takes:
        try:
            fcntl.fcntl(descriptor, _SETLK, _flock(fcntl.F_UNLCK, byte))
        except OSError:
            return


def _flock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


def _take(descriptor: int, byte: int) -> bool:
    """A read lock on one byte; False when somebody has a write lock there."""
    try:
        fcntl.fcntl(descriptor, _SETLK, _flock(fcntl.F_RDLCK, byte))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_held(descriptor: int, byte: int) -> bool:
    """Whether another open file description has any lock on the byte."""
    return _probe(descriptor, byte)[0] != fcntl.F_UNLCK


def _probe(descriptor: int, byte: int) -> tuple[int, int]:
    """The type of the lock in the way, and its pid: -1 for the kind of lock that has no owner but a file."""
    answer = _FLOCK.unpack(fcntl.fcntl(descriptor, _GETLK, _flock(fcntl.F_WRLCK, byte)))
    return answer[0], answer[4]


def _permission(byte: int) -> str:
    """The permission as qemu words it: 'shared "write"' for what another uses, '"write"' for what another keeps."""
    if byte >= _KEEPS:
        return f'"{_PERMISSIONS[byte - _KEEPS]}"'
    return f'shared "{_PERMISSIONS[byte - _USES]}"'


def _in_use(descriptor: int, path: str, byte: int, qemu_text: str, hint: bool) -> errors.ImageInUseError:
    """The exception for a lock in the way. Drops our own locks first, so that only the holders are found."""
    unlock_image(descriptor)
    pids = _holders(descriptor, byte)
    holders = ", ".join(f"{pid}{_program(pid)}" for pid in pids)
    who = f"by process {holders}" if len(pids) == 1 else f"by processes {holders}" if pids else "by another process"
    doing = _doing(byte, hint)
    question = f"\nIs another process using the image [{path}]?" if hint else ""
    return errors.ImageInUseError(
        f"{errors.clean(path)} is in use {who}, which {doing}. Shut down the virtual machine or end the program "
        "that has it open, then run this again.",
        [f"Could not open '{path}': {qemu_text}{question}"],
        pids,
    )


def _doing(byte: int, hint: bool) -> str:
    if not hint:
        return f"holds an exclusive lock on byte {byte}"
    if byte >= _KEEPS:
        return f"forbids others to {_verb(byte - _KEEPS)} it (lock byte {byte})"
    return f"may {_verb(byte - _USES)} it (lock byte {byte})"


def _verb(permission: int) -> str:
    return {0: "read", 1: "write to", 3: "resize"}[permission]


def _holders(descriptor: int, byte: int) -> tuple[int, ...]:
    """The pids that have the image open with a lock on this byte; as many as can be told.

    An open-file-description lock has no pid, so every process's descriptors of this inode are asked (lines "lock:" of
    /proc/PID/fdinfo/N). Without the right to look into a process it stays unnamed.
    """
    kind, pid = _probe(descriptor, byte)
    if kind != fcntl.F_UNLCK and pid > 0:
        return (pid,)
    status = os.fstat(descriptor)
    inode = (status.st_dev, status.st_ino)
    found: list[int] = []
    left = _FILES_MAX
    for process in _entries("/proc")[:_PROCESSES_MAX]:
        if not process.isdigit():
            continue
        files = _entries(f"/proc/{process}/fd")
        left -= len(files)
        if left < 0 or len(found) == _PIDS_MAX:
            break
        if any(_is_same_file(process, number, inode) and _has_lock(process, number, byte) for number in files):
            found.append(int(process))
    return tuple(found)


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _is_same_file(process: str, number: str, inode: tuple[int, int]) -> bool:
    try:
        status = os.stat(f"/proc/{process}/fd/{number}")
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == inode


def _has_lock(process: str, number: str, byte: int) -> bool:
    """Whether a descriptor's lock lines, "lock: 1: OFDLCK ADVISORY READ -1 fe:00:2146385 100 100", hold the byte."""
    try:
        with open(f"/proc/{process}/fdinfo/{number}", encoding="ascii", errors="replace") as file:
            lines = file.read(65536).splitlines()
    except OSError:
        return False
    for line in lines:
        words = line.split()
        if len(words) < 3 or words[0] != "lock:" or "FLOCK" in words:
            continue
        first, last = words[-2:]
        if first.isdigit() and int(first) <= byte and (last == "EOF" or (last.isdigit() and byte <= int(last))):
            return True
    return False


def _program(pid: int) -> str:
    """The name of a process, in brackets; nothing where it cannot be read."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return f" ({errors.clean(file.read(64).strip(), 32)})"
    except OSError:
        return ""
