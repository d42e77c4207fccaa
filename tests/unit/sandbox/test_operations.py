# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The typed face in front of a guest that says what the test wants it to say."""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest

from sandbox import errors, operations
from sandbox.cli import qemu_words
from sandbox.operations import Image, Selector, Transaction
from sandbox.vmm import journal, kvm, machine

from .guest_answers import Guest, records
from .saying import said
from .snapshot_tables import snapshot

OLD = b"old content"


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    guest = Guest()
    monkeypatch.setattr(machine, "run", guest.run)
    return guest


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    file = tmp_path / "disk.qcow2"
    file.write_bytes(OLD)
    return str(file)


@pytest.fixture
def image(path: str) -> t.Iterator[Image]:
    with Image.open(path, writable=True) as image:
        yield image


def call_of(guest: Guest, operation: str) -> t.Any:
    """The struct of the guest's last call; the caller keeps it alive."""
    ffi, _library = kvm.bindings()
    call = guest.calls[-1].call
    struct = ffi.new(f"struct call_{operation} *")
    assert ffi.sizeof(struct[0]) == len(call)
    ffi.memmove(struct, call, len(call))
    return struct


def test_list(guest: Guest, image: Image) -> None:
    wanted = (snapshot(b"1", b"a"), snapshot(b"2", b"\x1b"))
    guest.answers("snapshot_list", records(wanted), snapshot_count=2, virtual_size=1 << 30)
    found = operations.list_snapshots(image)
    assert found == (wanted, 1 << 30, guest.report)
    call = call_of(guest, "snapshot_list")
    assert call.header.disk_size[0] == len(OLD)
    assert guest.calls[-1][2:] == ([image.disk], (), machine.Limits(), None, None, 0)


def test_info(guest: Guest, image: Image) -> None:
    guest.answers(
        "image_info",
        records([snapshot()]),
        snapshot_count=1,
        version=3,
        cluster_bits=16,
        refcount_order=4,
        encryption=2,
        compression_type=1,
        virtual_size=123,
        incompatible_features=1 | 16,
        compatible_features=1,
        file_size=456,
        backing_name=b"base.qcow2",
        backing_name_length=10,
        backing_format=b"qcow2",
        backing_format_length=5,
        bitmap_count=3,
    )
    info = operations.image_info(image)
    assert (info.version, info.cluster_size, info.refcount_bits, info.virtual_size) == (3, 65536, 16, 123)
    assert (info.encryption, info.compression_type, info.file_size) == ("luks", "zstd", 456)
    assert (info.backing_name, info.backing_format, info.data_file) == (b"base.qcow2", b"qcow2", b"")
    assert (info.dirty, info.corrupt, info.extended_l2, info.lazy_refcounts) == (True, False, True, True)
    assert (info.snapshots, info.bitmap_count) == ((snapshot(),), 3)


def test_nobody_knows_how_many_bitmaps_there_are(guest: Guest, image: Image) -> None:
    guest.answers("image_info", version=3, cluster_bits=16, refcount_order=4, bitmaps_fault=1)
    assert operations.image_info(image).bitmap_count is None


@pytest.mark.parametrize(
    "lie",
    [
        {"version": 4},
        {"cluster_bits": 8},
        {"cluster_bits": (1 << 32) - 1},
        {"refcount_order": 7},
        {"encryption": 3},
        {"compression_type": 2},
        {"backing_name_length": 1024},
        {"backing_format_length": 16},
        {"data_file_length": (1 << 32) - 1},
        {"snapshot_count": 1},
        {"header_modified": 1},
        {"header_abi_version": 2},
        {"header_text_length": 1025},
        {"header_code": 7},
    ],
)
def test_lies_about_an_image_are_found(guest: Guest, image: Image, lie: dict[str, t.Any]) -> None:
    guest.answers("image_info", **{"version": 3, "cluster_bits": 16, "refcount_order": 4, **lie})
    with pytest.raises(errors.GuestProtocolError):
        operations.image_info(image)


def test_compare(guest: Guest, image: Image) -> None:
    guest.answers("snapshot_compare", equal=0, same_size=1, disk_size=99, differing_clusters=5)
    found = operations.compare_snapshot(image, Selector.by_id(b"3", b"name"))
    assert found == (False, True, 99, 5, guest.report)
    selector = call_of(guest, "snapshot_compare").snapshot
    assert (selector.kind, selector.id_length, selector.name_length) == (3, 1, 4)


@pytest.mark.parametrize("name", [b"", b"before-upgrade", b"n" * 255, b"\xff\x1b\n"])
def test_create(guest: Guest, image: Image, name: bytes) -> None:
    guest.answers("snapshot_create", id=b"12", id_length=2, header_leaked_clusters=7)
    limits = operations.Limits(seconds=3)
    assert operations.create_snapshot(image, name, (1_700_000_000, 5), limits)[:3] == (b"12", 7, guest.report)
    call = call_of(guest, "snapshot_create")
    assert (call.date_seconds, call.date_nanoseconds, call.name_length) == (1_700_000_000, 5, len(name))
    assert bytes(kvm.bindings()[0].buffer(call.name))[: len(name) + 1] == (name + b"\0")[:256]
    assert guest.calls[-1].limits is limits


@pytest.mark.parametrize(
    ("name", "date", "code"),
    [
        (b"n" * 256, (0, 0), "name_too_long"),
        (b"a\0b", (0, 0), "argument"),
        (b"a", (-1, 0), "argument"),
        (b"a", (1 << 32, 0), "argument"),
        (b"a", (0, 10**9), "argument"),
    ],
)
def test_impossible_snapshots_start_no_guest(
    guest: Guest, image: Image, name: bytes, date: tuple[int, int], code: str
) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        operations.create_snapshot(image, name, date)
    assert caught.value.code == code
    assert guest.calls == []


@pytest.mark.parametrize("operation", ["create", "apply", "delete"])
def test_a_change_tells_what_there_is_now(guest: Guest, image: Image, operation: str) -> None:
    wanted = (snapshot(b"1", b"a"), snapshot(b"2", b"b"))
    guest.answers(f"snapshot_{operation}", records(wanted), snapshot_count=2, virtual_size=1 << 20)
    done = {
        "create": lambda: operations.create_snapshot(image, b"b", (0, 0)),
        "apply": lambda: operations.apply_snapshot(image, Selector.by_id(b"2"), allow_resize=False),
        "delete": lambda: operations.delete_snapshot(image, Selector.by_id(b"3")),
    }[operation]()
    assert done.now == (wanted, 1 << 20, guest.report)


@pytest.mark.parametrize("length", [128, (1 << 32) - 1])
def test_an_id_that_is_too_long_is_refused(guest: Guest, image: Image, length: int) -> None:
    guest.answers("snapshot_create", id_length=length)
    with pytest.raises(errors.GuestProtocolError):
        operations.create_snapshot(image, b"a", (0, 0))


@pytest.mark.parametrize("allowed", [False, True])
def test_apply(guest: Guest, image: Image, allowed: bool) -> None:
    guest.answers("snapshot_apply", virtual_size=1 << 20, resized=1)
    found = operations.apply_snapshot(image, Selector.by_id_or_name(b"5"), allow_resize=allowed)
    assert found == (1 << 20, True, 0, guest.report, ((), 1 << 20, guest.report))
    call = call_of(guest, "snapshot_apply")
    assert (call.snapshot.kind, call.snapshot.name_length, call.resize_allowed) == (2, 1, int(allowed))


def test_delete(guest: Guest, image: Image) -> None:
    guest.answers("snapshot_delete", freed_clusters=9, header_leaked_clusters=1)
    assert operations.delete_snapshot(image, Selector.by_name(b"x"))[:3] == (9, 1, guest.report)
    assert call_of(guest, "snapshot_delete").snapshot.kind == 1


def test_a_name_that_is_too_long_is_not_found_once_the_image_was_read(guest: Guest, image: Image) -> None:
    guest.answers("snapshot_list")
    with pytest.raises(errors.SnapshotNotFoundError) as caught:
        operations.delete_snapshot(image, Selector.by_name(b"n" * 256))
    assert (
        said(caught.value, qemu_words.snapshot("delete"))
        == f"Could not delete snapshot '{'n' * 256}': snapshot not found"
    )
    guest.answers("snapshot_list", header_code=20)
    with pytest.raises(errors.NotQcow2Error):
        operations.apply_snapshot(image, Selector.by_id_or_name(b"n" * 256), allow_resize=True)


def test_a_refusal_is_raised(guest: Guest, image: Image, path: str) -> None:
    guest.answers(
        "snapshot_create", header_code=80, header_arguments=[3, 65536, 1, 0, 131072, 2], header_leaked_clusters=4
    )
    with pytest.raises(errors.InconsistentImageError) as caught:
        operations.create_snapshot(image, b"x", (0, 0))
    assert caught.value.code == "refcount_too_low"
    assert caught.value.leaked_clusters == 4
    assert not caught.value.modified
    assert caught.value.message.startswith(f"{path}: The cluster at 0x20000 has refcount 0 but 2 references")


def test_nothing_is_changed_through_an_image_opened_for_reading(guest: Guest, path: str) -> None:
    with Image.open(path) as image, pytest.raises(errors.ArgumentError, match="opened for reading"):
        operations.create_snapshot(image, b"x", (0, 0))
    assert guest.calls == []


def test_a_system_without_means_is_told(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_more: object) -> t.NoReturn:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(machine, "run", fail)
    with pytest.raises(errors.HostError, match="no means to start a guest: Resource temporarily unavailable"):
        operations.list_snapshots(image)


def test_open_locks_before_anything_else_and_close_unlocks(path: str) -> None:
    with Image.open(path, writable=True) as image:
        assert image.lock.held == (100, 101, 103, 201, 203)
        with pytest.raises(errors.ImageInUseError):
            Image.open(path)
    with Image.open(os.fsencode(path)) as image:
        assert image.path == path
        assert image.lock.held == (100, 201, 203)


def test_a_failed_open_leaves_no_descriptor(path: str) -> None:
    before = os.listdir("/proc/self/fd")
    with Image.open(path, writable=True), pytest.raises(errors.ImageInUseError):
        Image.open(path, writable=True)
    with pytest.raises(errors.ForceShareError):
        Image.open(path, writable=True, force_share=True)
    with pytest.raises(errors.ImageOpenError):
        Image.open(path + "x")
    assert os.listdir("/proc/self/fd") == before


class Changer:
    """Stands in for machine.run: overwrites the image as the child would, with a journal kept."""

    def __init__(self, fail_at: int = 0) -> None:
        self.runs = 0
        self.fail_at = fail_at

    def run(self, what: machine.Run) -> machine.Answer:
        self.runs += 1
        disk, journal = what.disks[0], what.journal
        assert journal is not None
        old = os.pread(disk.descriptor, 3, 0)
        os.write(journal.descriptor, old + journal.TRAILER.pack(2, 0, 3, 3, journal.mark))
        os.pwrite(disk.descriptor, b"new", 0)
        if self.runs == self.fail_at:
            raise errors.GuestCrashError("crash")
        guest = Guest()
        guest.answers("snapshot_create", id=b"1", id_length=1)
        return guest.run(what)


@pytest.fixture
def images(tmp_path: pathlib.Path) -> t.Iterator[list[Image]]:
    opened = []
    for number in range(3):
        (tmp_path / f"{number}.qcow2").write_bytes(OLD)
        opened.append(Image.open(str(tmp_path / f"{number}.qcow2"), writable=True))
    yield opened
    for image in opened:
        image.close()


def create_on(images: list[Image], close_for_writing: Image | None = None) -> None:
    for image in images:
        operations.create_snapshot(image, b"x", (0, 0))
    if close_for_writing is not None:
        readable = os.open(close_for_writing.path, os.O_RDONLY)
        os.dup2(readable, close_for_writing.disk.descriptor)
        os.close(readable)


def contents(images: list[Image]) -> list[bytes]:
    return [pathlib.Path(image.path).read_bytes() for image in images]


def test_a_transaction_keeps_all(images: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "run", Changer().run)
    with Transaction(images) as transaction:
        for image in images:
            operations.create_snapshot(image, b"x", (0, 0))
        transaction.keep()
    assert contents(images) == [b"new content"] * 3
    assert all(image.journal is None for image in images)


def test_a_discard_that_fails_does_not_fail_the_change(images: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_journal: object) -> t.NoReturn:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(machine, "run", Changer().run)
    monkeypatch.setattr(journal.UndoJournal, "keep", fail)
    with Transaction(images) as transaction:
        create_on(images)
        transaction.keep()
    assert contents(images) == [b"new content"] * 3


def test_a_transaction_undoes_all_when_one_fails(images: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "run", Changer(fail_at=2).run)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(errors.GuestCrashError), Transaction(images):
        create_on(images)
    assert contents(images) == [OLD] * 3
    assert os.listdir("/proc/self/fd") == before


def test_a_transaction_that_nobody_keeps_is_undone(images: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "run", Changer().run)
    with Transaction(images):
        operations.create_snapshot(images[1], b"x", (0, 0))
        assert contents(images)[1] == b"new content"
    assert contents(images) == [OLD] * 3


def test_what_cannot_be_undone_is_named_and_the_rest_undone(
    images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "run", Changer().run)
    with pytest.raises(errors.TransactionError) as caught, Transaction(images):
        create_on(images, close_for_writing=images[1])
    assert contents(images) == [OLD, b"new content", OLD]
    assert images[1].path in caught.value.message
    assert images[0].path not in caught.value.message


def test_one_that_cannot_be_undone_does_not_keep_the_others_from_it(
    images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes out of its journal, which a jail that was broken out of may have written."""

    def undo(self: journal.UndoJournal) -> None:
        if self.disk is images[0].disk:
            raise OverflowError("int too big to convert")
        real(self)

    real = journal.UndoJournal.undo
    monkeypatch.setattr(machine, "run", Changer().run)
    monkeypatch.setattr(journal.UndoJournal, "undo", undo)
    with pytest.raises(errors.TransactionError) as caught, Transaction(images):
        create_on(images)
    assert contents(images) == [b"new content", OLD, OLD]
    assert images[0].path in caught.value.message
    assert all(image.journal is None for image in images)


def test_a_journal_written_by_who_broke_out(images: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    def change_and_forge() -> None:
        create_on(images)
        kept = t.cast(journal.UndoJournal, images[0].journal)
        os.write(kept.descriptor, b"x" + kept.TRAILER.pack(2, 1 << 63, 1, 1, kept.mark))

    monkeypatch.setattr(machine, "run", Changer().run)
    with pytest.raises(errors.TransactionError) as caught, Transaction(images):
        change_and_forge()
    assert contents(images)[1:] == [OLD, OLD]
    assert images[0].path in caught.value.message


def test_without_room_for_a_journal_nothing_begins(images: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[t.Any] = []

    def make(disk: t.Any, directory: t.Any) -> t.Any:
        if made:
            raise OSError(28, "No space left on device")
        made.append(real(disk, directory))
        return made[0]

    real = journal.UndoJournal
    monkeypatch.setattr(journal, "UndoJournal", make)
    with pytest.raises(errors.NoJournalError, match="No space left on device"), Transaction(images):
        raise AssertionError("the body must not be reached")
    assert all(image.journal is None for image in images)
