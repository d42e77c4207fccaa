# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commits: which layer, which disks, which limits, and what is believed of a guest's answer."""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest

from sandbox import errors
from sandbox.cli import qemu_words
from sandbox.host import disks, locks
from sandbox.images import commits
from sandbox.images.chain import Chain, open_chain
from sandbox.vmm import kvm, machine
from sandbox.vmm.answers import IDLE_SECONDS
from sandbox.vmm.doorbell_rules import OFFSET_MAX

from .bitmap_images import run
from .guest_answers import Guest
from .saying import said

pytestmark = pytest.mark.kvm

CommitCall = t.Any


class CommitGuest(Guest):
    family = "chain"


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    """raw <- a <- b (data in b.data) <- top"""
    run("qemu-img", "create", "-f", "raw", "raw", "2M", directory=tmp_path)
    run("qemu-img", "create", "-f", "qcow2", "-b", "raw", "-F", "raw", "a", "1M", directory=tmp_path)
    data = ("-o", "data_file=b.data")
    run("qemu-img", "create", "-f", "qcow2", *data, "-b", "a", "-F", "qcow2", "b", "1M", directory=tmp_path)
    run("qemu-img", "create", "-f", "qcow2", "-b", "b", "-F", "qcow2", "top", "1M", directory=tmp_path)
    return tmp_path


@pytest.fixture
def chain(directory: pathlib.Path) -> t.Iterator[Chain]:
    with open_chain(str(directory / "top"), writable_layers=(0,)) as opened:
        yield opened


@pytest.fixture
def guest(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Guest:
    """Stands in for the guest, once the chain is open."""
    made = CommitGuest()
    monkeypatch.setattr(machine, "run", made.run)
    return made


def call_of(guest: Guest) -> CommitCall:
    ffi, _library = kvm.bindings()
    call = ffi.new("struct call_commit *")
    ffi.memmove(call, guest.calls[-1].call, ffi.sizeof("struct call_commit"))
    return call


@pytest.mark.parametrize(
    ("name", "depth"), [(None, 1), (b"b", 1), (b"./b", 1), (b"a", 2), (b"raw", 3), (b"../{home}/raw", 3)]
)
def test_find_base(name: bytes | None, depth: int, chain: Chain, directory: pathlib.Path) -> None:
    if name:
        name = name.replace(b"{home}", os.fsencode(directory.name))
        assert commits.find_base(chain, os.fsencode(directory / os.fsdecode(name))) == depth
    assert commits.find_base(chain, name) == depth


@pytest.mark.parametrize("name", [b"top", b"b.data", b"nothing", b"", b"/", b"a/b"])
def test_no_base_of_that_name(name: bytes, chain: Chain) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        commits.find_base(chain, name)
    assert caught.value.code == "base_not_found"
    assert chain.layers[3].path in caught.value.message


def test_no_base_at_all(directory: pathlib.Path) -> None:
    run("qemu-img", "create", "-f", "qcow2", "alone", "1M", directory=directory)
    with open_chain(str(directory / "alone")) as alone, pytest.raises(errors.ArgumentError) as caught:
        commits.find_base(alone)
    assert caught.value.code == "no_backing_file"


@pytest.mark.parametrize("base", [-1, 0, 4])
def test_only_layers_below_the_top(base: int, chain: Chain, guest: Guest) -> None:
    with pytest.raises(errors.ArgumentError):
        commits.commit(chain, base)
    assert guest.calls == []


@pytest.mark.parametrize(
    ("base", "empties", "writable"),
    [(1, True, {0, 1, 4}), (1, False, {1, 4}), (2, False, {2}), (3, False, {3}), (3, True, {0, 3})],
)
def test_the_disks_that_may_be_written_to(
    base: int, empties: bool, writable: set[int], chain: Chain, guest: Guest
) -> None:
    guest.answers("commit", virtual_size=1 << 20)
    commits.open_base(chain, base)
    done = commits.commit(chain, base, empties, allow_resize=True)
    assert done == (0, 0, 0, 0, False, 1 << 20, False, guest.report)
    call = call_of(guest)
    assert (call.layer_count, call.base, call.resize_allowed, call.empties) == (4, base, 1, int(empties))
    layers = [(layer.format, layer.disk, layer.data_disk) for layer in call.layers[0:4]]
    assert layers == [(1, 0, 0), (1, 1, 4), (1, 2, 0), (2, 3, 0)]
    assert call.header.disk_count == 5
    assert guest.calls[-1].writable == writable


def test_a_dry_run_reads(chain: Chain, guest: Guest) -> None:
    guest.answers("commit", virtual_size=1 << 20, committed_bytes=65536, committed_clusters=1, cleared_clusters=1)
    assert commits.commit(chain, 1, dry_run=True)[:5] == (65536, 0, 1, 1, False)
    assert guest.calls[-1].writable == ()
    assert call_of(guest).dry_run == 1


def test_a_base_that_is_not_open_for_writing(chain: Chain, guest: Guest) -> None:
    with pytest.raises(errors.ArgumentError, match="opened for reading"):
        commits.commit(chain, 1)


@pytest.mark.parametrize(
    "lie",
    [
        {"virtual_size": 3 << 20},
        {"virtual_size": 1 << 20, "committed_bytes": (1 << 20) + 1},
        {"virtual_size": 1 << 20, "committed_bytes": 1 << 19, "zeroed_bytes": (1 << 19) + 512},
        {"virtual_size": 1 << 20, "committed_clusters": 1},
        {"virtual_size": 1 << 20, "payload": b"x"},
    ],
)
def test_lies(lie: dict[str, t.Any], chain: Chain, guest: Guest) -> None:
    payload = lie.pop("payload", b"")
    guest.answers("commit", payload, header_modified=1, **lie)
    commits.open_base(chain, 1)
    with pytest.raises(errors.GuestProtocolError) as caught:
        commits.commit(chain, 1)
    assert caught.value.modified


@pytest.mark.parametrize(
    ("code", "disk", "modified", "words"),
    [
        (202, 1, 0, ("allow_resize", "100 bytes", "200")),
        (203, 2, 0, ("amend", "a ")),
        (201, 4, 1, ("b.data", "cannot be inflated", "had begun", "run it again")),
        (4, 1, 1, ("Input/output error", "Nothing is lost")),
        (4, 1, 0, ("Input/output error", "Nothing was changed")),
        (200, 3, 0, ("encrypted",)),
        (1, 7, 0, ("disk 7 of 5",)),
    ],
)
def test_refusals(code: int, disk: int, modified: int, words: tuple[str, ...], chain: Chain, guest: Guest) -> None:
    arguments = [5, 200] if code == 4 else [100, 200]
    guest.answers("commit", header_code=code, header_disk=disk, header_modified=modified, header_arguments=arguments)
    commits.open_base(chain, 1)
    with pytest.raises(errors.AirlockError) as caught:
        commits.commit(chain, 1)
    assert all(word in caught.value.message for word in words), caught.value.message
    assert caught.value.modified == (modified == 1 and disk < 5)


def test_qemu_says_of_a_failed_write(chain: Chain, guest: Guest) -> None:
    guest.answers("commit", header_code=4, header_disk=1, header_modified=1, header_arguments=[28])
    commits.open_base(chain, 1)
    with pytest.raises(errors.NoSpaceError) as caught:
        commits.commit(chain, 1)
    assert said(caught.value, qemu_words.commit()) == "Block job failed: No space left on device"


def test_a_device_does_not_grow(chain: Chain, guest: Guest, directory: pathlib.Path) -> None:
    with open(directory / "raw", "r+b") as file:
        file.truncate(1 << 19)
    chain.layers[3].image.disk.is_block = True
    chain.layers[3].image.disk.__class__ = type("Device", (disks.Disk,), {"size": 1 << 19})
    for dry_run in (True, False):
        with pytest.raises(errors.CommitError) as caught:
            commits.commit(chain, 3, allow_resize=True, dry_run=dry_run)
        assert caught.value.code == "base_device_small"
    assert guest.calls == []


def test_empty(chain: Chain, guest: Guest) -> None:
    guest.answers("empty", cleared_clusters=3)
    assert commits.empty(chain) == 3
    assert guest.calls[-1].writable == {0}
    guest.answers("empty", b"payload")
    with pytest.raises(errors.GuestProtocolError):
        commits.empty(chain)


def test_limits(chain: Chain) -> None:
    limits = commits.commit_limits(chain)
    assert limits.seconds is not None
    assert 86400 <= limits.seconds < 86401  # and four times what the slowest storage takes
    slow = commits.commit_limits(chain, rate=1)
    assert slow.seconds is not None
    assert slow.seconds > 86400 + 65536
    assert limits.rate == 0
    assert limits.flushes
    assert 2 << 20 < limits.file_growth < OFFSET_MAX - (2 << 20)
    assert limits.idle == IDLE_SECONDS
    given = commits.commit_limits(chain, 5, 1000, False)
    assert (given.seconds, given.idle, given.rate, given.flushes) == (5, 5, 1000, False)
    assert given.file_growth == limits.file_growth


def test_a_disk_of_the_largest_size(directory: pathlib.Path) -> None:
    options = ("-o", "cluster_size=2M", "-b", "a", "-F", "qcow2")
    run("qemu-img", "create", "-f", "qcow2", *options, "huge", "1P", directory=directory)
    with open_chain(str(directory / "huge")) as huge:
        growth = commits.commit_limits(huge).file_growth
        assert 1 << 50 < growth <= OFFSET_MAX
        assert commits.commit(huge, 1, allow_resize=True, dry_run=True).resized


def test_more_files_than_a_guest_takes(chain: Chain, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "DISKS_MAX", 4)
    with pytest.raises(errors.ArgumentError) as caught:
        commits.commit(chain, 1)
    assert caught.value.code == "too_many_files"


@pytest.mark.parametrize("version", [5, 6, 7])
def test_formats_of_zstd_before_its_first_release(directory: pathlib.Path, version: int) -> None:
    """The guest has no decoders for them: they are damaged data, and nothing that ends a guest."""
    run("qemu-img", "create", "-f", "qcow2", "old-base", "1M", directory=directory)
    options = ("-o", "compression_type=zstd", "-b", "old-base", "-F", "qcow2")
    run("qemu-img", "create", "-f", "qcow2", *options, "old", directory=directory)
    run("qemu-io", "-c", "write -c -P 7 0 64k", "old", directory=directory)
    content = (directory / "old").read_bytes()
    assert content.count(b"\x28\xb5\x2f\xfd") == 1
    (directory / "old").write_bytes(content.replace(b"\x28\xb5\x2f\xfd", b"%c\xb5\x2f\xfd" % (0x20 + version)))
    before = (directory / "old-base").read_bytes()
    with open_chain(str(directory / "old"), writable_layers=(0,)) as old:
        commits.open_base(old, 1)
        with pytest.raises(errors.RefusalError) as caught:
            commits.commit(old, 1)
    assert caught.value.code == "compressed_cluster"
    assert (directory / "old-base").read_bytes() == before


def test_locks_of_a_commit_through_layers(chain: Chain, directory: pathlib.Path) -> None:
    """Nobody may read those between; those below may be read."""
    commits.open_base(chain, 2)
    for name, free in (("top", False), ("b", False), ("a", False), ("raw", True)):
        use = "raw" if name == "raw" else "qcow2"
        descriptor = os.open(directory / name, os.O_RDONLY)
        try:
            if free:
                assert locks.lock_image(descriptor, name, False, use=use).active
            else:
                with pytest.raises(errors.ImageInUseError):
                    locks.lock_image(descriptor, name, False, use=use)
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("reader", ["b", "a"])
def test_a_reader_in_the_way(reader: str, chain: Chain, directory: pathlib.Path) -> None:
    descriptor = os.open(directory / reader, os.O_RDONLY)
    try:
        locks.lock_image(descriptor, reader, False)
        with pytest.raises(errors.ImageInUseError) as caught:
            commits.open_base(chain, 2)
    finally:
        os.close(descriptor)
    kept = {"a": '"write"', "b": 'shared "consistent read"'}[reader]
    question = f"Is another process using the image [{directory}/{reader}]?"
    assert said(caught.value, qemu_words.commit()) == f"Failed to get {kept} lock\n{question}"
