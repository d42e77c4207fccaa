# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who holds a lock on an image, and how to tell: what to say when locks.py meets one."""

from __future__ import annotations

import os
import time
import typing as t

from .. import errors
from ..words import advice

# How the names of programs begin, of which the kernel keeps 15 characters.
_OURS = ("python", "airlock", "ansible")
_MACHINES = ("qemu-system", "qemu-kvm", "kvm", "cloud-hyp", "CPU ")
_TOOLS = ("qemu-",)

_USES = 100
_KEEPS = 200

# Holders are looked for in /proc: this many processes and open files at most, and so long. To read of one open file
# takes as long as there are locks on it, and whoever may read an image can open and lock it any number of times.
_PROCESSES_MAX = 20000
_FILES_MAX = 100000
_SECONDS = 2.0
_PIDS_MAX = 16


def in_use(descriptor: int, path: str, byte: int, taking: bool, owner: int = 0) -> errors.ImageInUseError:
    """The exception for another's lock on a byte of an open image.

    taking: it is in the way of our lock on that byte, else of what we want to do. owner: the lock's process id, where
    the kernel told it.
    """
    pids = (owner,) if owner else find(descriptor, byte)
    names = {pid: _program(pid) for pid in pids}
    holders = ", ".join(f"{pid} ({name})" if name else str(pid) for pid, name in names.items())
    who = f"by process {holders}" if len(pids) == 1 else f"by processes {holders}" if pids else "by another process"
    return errors.ImageInUseError(
        f"{errors.clean(path)} is in use {who}, which {_doing(byte, taking)}. {_way(names.values())}",
        pids,
        file=path,
        byte=byte,
        taking=taking,
    )


def _way(names: t.Collection[str]) -> str:
    """What to do about programs of these names. A name is what its process says of itself, and decides no more."""
    if names and all(name.startswith(_OURS) for name in names):
        return f"That may be another task, or an airlock command. {advice.say('wait')} Or end it, then run this again."
    if names and all(name.startswith(_MACHINES) for name in names):
        return "Shut down the virtual machine, then run this again."
    if names and all(name.startswith(_TOOLS) for name in names):
        return f"{advice.say('wait')} Or end it, then run this again."
    return "Shut down the virtual machine or end the program that has it open, then run this again."


def _doing(byte: int, taking: bool) -> str:
    if taking:
        return f"holds an exclusive lock on byte {byte}"
    if byte >= _KEEPS:
        return f"forbids others to {_verb(byte - _KEEPS)} it (lock byte {byte})"
    return f"may {_verb(byte - _USES)} it (lock byte {byte})"


def _verb(permission: int) -> str:
    return {0: "read", 1: "write to", 3: "resize"}[permission]


def find(descriptor: int, byte: int) -> tuple[int, ...]:
    """The pids that have the image open with a lock on this byte; as many as can be told.

    An open-file-description lock has no pid, so every process's descriptors of this inode are asked (lines "lock:" of
    /proc/PID/fdinfo/N). Without the right to look into a process it stays unnamed.
    """
    status = os.fstat(descriptor)
    inode = (status.st_dev, status.st_ino)
    found: list[int] = []
    left = _FILES_MAX
    end = time.monotonic() + _SECONDS
    for process in _entries("/proc")[:_PROCESSES_MAX]:
        if not process.isdigit():
            continue
        files = _entries(f"/proc/{process}/fd")
        left -= len(files)
        if left < 0 or len(found) == _PIDS_MAX:
            break
        for number in files:
            if time.monotonic() > end:
                return tuple(found)
            if _is_same_file(process, number, inode) and _has_lock(process, number, byte):
                found.append(int(process))
                break
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
    """The name of a process; empty where it cannot be read."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return errors.clean(file.read(64).strip(), 32)
    except OSError:
        return ""
