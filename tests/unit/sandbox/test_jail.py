# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each layer of the jail alone, in a child: what it takes away is gone."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import socket
import time
import traceback

import pytest

from sandbox import errors
from sandbox.vmm import jail, kvm

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root has another user to become")


def in_child(function):
    """Run function in a forked child; fails with its traceback when it raises. The wait status."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            os.write(writing, traceback.format_exc()[-60000:].encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode()
    status = os.waitpid(process, 0)[1]
    assert not text, text
    return status


def status_field(name):
    # Bytes: without privileges Python may find no codec any more.
    with open("/proc/self/status", "rb") as file:
        return next(line.split()[1:] for line in file if line.startswith(name.encode() + b":"))


def fails_with(number, function, *arguments):
    with pytest.raises(OSError, match=rf"\[Errno {number}\]"):
        function(*arguments)


def open_descriptors():
    return {int(name) for name in os.listdir("/proc/self/fd")}


def closes_all_but_the_kept():
    kept = {os.open("/dev/null", os.O_RDONLY) for _unused in range(3)}
    spare = [os.open("/dev/null", os.O_RDONLY) for _unused in range(20)]
    high = os.dup2(spare[0], 500)
    jail.close_others([*kept, spare[7]])
    listing = open_descriptors()
    assert kept | {spare[7]} <= listing
    # One more: that of the listing.
    assert len(listing) == 5
    assert high not in listing


def quiet(function):
    """For a function that closes the pipe of in_child(): only the wait status tells."""

    def run():
        try:
            function()
        except BaseException:
            os._exit(9)

    return run


def test_close_others():
    assert in_child(quiet(closes_all_but_the_kept)) == 0


def test_close_others_on_an_old_kernel(monkeypatch):
    monkeypatch.setattr(jail, "_SYS_CLOSE_RANGE", 4000)  # ENOSYS
    assert in_child(quiet(closes_all_but_the_kept)) == 0


def test_close_nothing_but_standard_streams():
    def work():
        jail.close_others([0, 1, 2])
        assert len(open_descriptors()) == 4

    assert in_child(quiet(work)) == 0


def test_namespaces():
    before = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "uts", "ipc", "net")}

    def work():
        assert jail.leave_namespaces() == ROOT
        for name, link in before.items():
            assert (os.readlink(f"/proc/self/ns/{name}") != link) == ROOT

    in_child(work)


def test_timer():
    def work():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        jail.start_timer(0.02)
        assert signal.sigwait({signal.SIGALRM}) == signal.SIGALRM
        assert signal.sigwait({signal.SIGALRM}) == signal.SIGALRM, "it comes again: one that is missed does no harm"

    in_child(work)


def test_timer_of_no_time_at_all():
    def work():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        jail.start_timer(0.0)
        assert signal.sigwait({signal.SIGALRM}) == signal.SIGALRM

    in_child(work)


def test_credentials():
    def work():
        dropped = jail.drop_credentials()
        assert dropped == ROOT
        for field in ("CapInh", "CapPrm", "CapEff", "CapAmb", *(["CapBnd"] if ROOT else [])):
            assert int(status_field(field)[0], 16) == 0, field
        if ROOT:
            assert os.getresuid() == (jail.FIRST_USER + os.getpid(),) * 3
            assert os.getresgid() == (jail.JAIL_ID,) * 3
            assert os.getgroups() == []
            fails_with(errno.EPERM, os.setuid, 0)
            fails_with(errno.EACCES, os.open, "/etc/shadow", os.O_RDONLY)

    in_child(work)


@needs_root
def test_no_jail_may_signal_another():
    """By credentials alone: neither Landlock's scope nor seccomp is there to help."""
    reading, writing = os.pipe()

    def other():
        jail.drop_credentials()
        os.write(writing, b"%d" % os.getuid())
        signal.pause()

    process = os.fork()
    if process == 0:
        try:
            other()
        finally:
            os._exit(1)

    def work():
        user = int(os.read(reading, 20))
        jail.drop_credentials()
        assert os.getuid() != user
        for number in (0, signal.SIGTERM, signal.SIGSTOP):
            fails_with(errno.EPERM, os.kill, process, number)
        fails_with(errno.EPERM, os.setpriority, os.PRIO_PROCESS, process, 19)
        fails_with(errno.EPERM, os.sched_setaffinity, process, {0})

    try:
        in_child(work)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reading)
        os.close(writing)


CAP_SETGID, CAP_SETUID = 6, 7


def without_capability(number):
    ffi, library = kvm.bindings()
    header = ffi.new("struct capability_header *", (jail._CAPABILITY_VERSION_3, 0))
    data = ffi.new("struct capability_data[2]")
    for word in range(2):
        every = sum(1 << bit for bit in range(32) if 32 * word + bit != number)
        held = int(status_field("CapPrm")[0], 16) >> 32 * word
        data[word].effective = data[word].permitted = held & every
    assert library.syscall(jail._SYS_CAPSET, header, data) == 0


@needs_root
@pytest.mark.parametrize(("missing", "user"), [(CAP_SETGID, True), (CAP_SETUID, False)])
def test_credentials_of_root_without_a_capability(missing, user):
    """As in many a container: what can be had is, and the layer is not said to be there."""

    def work():
        without_capability(missing)
        assert not jail.drop_credentials()
        assert (os.getuid() != 0) == user
        assert (os.getgid() != 0) == (missing != CAP_SETGID)
        assert int(status_field("CapEff")[0], 16) == 0

    in_child(work)


@needs_root
@pytest.mark.parametrize(("size", "user"), [(1, 0), (65536, jail.JAIL_ID)])
def test_credentials_in_a_user_namespace(size, user):
    def work():
        helper_reads, helper_writes = os.pipe()
        done_reads, done_writes = os.pipe()
        inside = os.getpid()
        if os.fork() == 0:
            os.read(helper_reads, 1)
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{inside}/{name}", "w") as file:
                    file.write(f"0 0 {size}")
            os.write(done_writes, b"x")
            os._exit(0)
        ffi, library = kvm.bindings()
        assert library.syscall(jail._SYS_UNSHARE, ffi.cast("long", 0x10000000)) == 0  # CLONE_NEWUSER
        os.write(helper_writes, b"x")
        os.read(done_reads, 1)
        assert jail.drop_credentials() == (user != 0)
        assert os.getresuid() == (user,) * 3
        assert int(status_field("CapEff")[0], 16) == 0

    in_child(work)


def test_die_with_parent_of_one_who_is_dead():
    def work():
        with pytest.raises(errors.JailError):
            jail.die_with_parent(1 << 22)

    in_child(work)


def test_die_with_parent():
    reading, writing = os.pipe()

    def parent():
        parent_id = os.getpid()
        if os.fork() == 0:
            jail.drop_credentials()
            jail.die_with_parent(parent_id)
            os.write(writing, b"alive")
            time.sleep(600)
            os._exit(0)
        os.read(reading, 5)

    in_child(parent)
    os.close(writing)
    assert os.read(reading, 1) == b"", "the pipe ends when the grandchild does"
    os.close(reading)


def test_no_new_privileges():
    def work():
        jail.forbid_new_privileges()
        assert status_field("NoNewPrivs") == [b"1"]

    in_child(work)


def test_landlock(tmp_path):
    file = tmp_path / "file"
    file.write_text("content")

    def work():
        jail.forbid_new_privileges()
        descriptor = os.open(file, os.O_RDWR)
        version = jail.restrict_with_landlock()
        assert 1 <= version <= 7
        for path in (file, tmp_path, "/", "/proc/self/status", "/dev/null"):
            fails_with(errno.EACCES, os.open, path, os.O_RDONLY)
        fails_with(errno.EACCES, os.open, tmp_path / "new", os.O_CREAT | os.O_WRONLY)
        fails_with(errno.EACCES, os.unlink, file)
        assert os.pread(descriptor, 7, 0) == b"content", "what is open stays open"
        if version >= 4:
            with socket.socket() as connection:
                fails_with(errno.EACCES, connection.connect, ("127.0.0.1", 9))

    in_child(work)


def test_landlock_of_a_kernel_that_promises_too_much(monkeypatch):
    """A version that the kernel reports and refuses: the next older one is taken."""
    rights = jail._landlock_file_rights
    monkeypatch.setattr(jail, "_landlock_file_rights", lambda version: rights(version) if version <= 2 else 1 << 60)

    def work():
        jail.forbid_new_privileges()
        assert jail.restrict_with_landlock() == 2
        fails_with(errno.EACCES, os.open, "/", os.O_RDONLY)

    in_child(work)


def test_no_landlock(monkeypatch):
    monkeypatch.setattr(jail, "_SYS_LANDLOCK_CREATE_RULESET", 4000)  # ENOSYS

    def work():
        assert jail.restrict_with_landlock() == 0

    in_child(work)


def test_resource_limits(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"")

    def work():
        descriptor = os.open(path, os.O_RDWR)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        jail.drop_credentials()
        jail.limit_resources(10.5, 1 << 20, jail.mapped_memory() + jail.SPARE_MEMORY)
        fails_with(errno.EMFILE, os.open, "/", os.O_RDONLY)
        if ROOT:
            fails_with(errno.EAGAIN, os.fork)
        fails_with(errno.EFBIG, os.pwrite, descriptor, b"x", 1 << 20)
        assert os.pwrite(descriptor, b"x", (1 << 20) - 1) == 1
        fails_with(errno.ENOMEM, mmap.mmap, -1, jail.SPARE_MEMORY + (8 << 20))
        assert resource.getrlimit(resource.RLIMIT_CPU) == (12, 13)
        for limit in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_NOFILE):
            assert resource.getrlimit(limit) == (0, 0)

    in_child(work)


def test_resource_limits_that_are_lower_already():
    def work():
        resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        jail.drop_credentials()
        jail.limit_resources(60, 1 << 30, jail.mapped_memory() + jail.SPARE_MEMORY)
        assert resource.getrlimit(resource.RLIMIT_CPU) == (5, 5)
        assert resource.getrlimit(resource.RLIMIT_FSIZE) == (1000, 1000)

    in_child(work)
