# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rebases and new overlays: which files, which disks, and what is believed of a guest's answer."""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest

from sandbox import errors
from sandbox.host.places import find_place
from sandbox.images import rebases
from sandbox.images.chain import Chain, open_chain
from sandbox.images.image import Image
from sandbox.images.info import image_info
from sandbox.images.overlays import create_overlay
from sandbox.vmm import kvm, machine

from .bitmap_images import run
from .guest_answers import Guest

pytestmark = pytest.mark.kvm

SIZE = 1 << 20


class ChainGuest(Guest):
    family = "chain"


class CompressingGuest(Guest):
    family = "compress"


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    """raw <- a <- b (data in b.data) <- top; a <- n"""
    run("qemu-img", "create", "-f", "raw", "raw", "2M", directory=tmp_path)
    run("qemu-img", "create", "-f", "qcow2", "-b", "raw", "-F", "raw", "a", "1M", directory=tmp_path)
    data = ("-o", "data_file=b.data")
    run("qemu-img", "create", "-f", "qcow2", *data, "-b", "a", "-F", "qcow2", "b", "1M", directory=tmp_path)
    run("qemu-img", "create", "-f", "qcow2", "-b", "b", "-F", "qcow2", "top", "1M", directory=tmp_path)
    run("qemu-img", "create", "-f", "qcow2", "-b", "a", "-F", "qcow2", "n", "1M", directory=tmp_path)
    return tmp_path


@pytest.fixture
def chain(directory: pathlib.Path) -> t.Iterator[Chain]:
    with open_chain(str(directory / "top"), writable_layers=(0,)) as opened:
        yield opened


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> t.Callable[[], Guest]:
    """Called, it stands in for the guest: once all is open."""

    def stand_in() -> Guest:
        made = ChainGuest()
        monkeypatch.setattr(machine, "run", made.run)
        return made

    return stand_in


def call_of(guest: Guest) -> t.Any:
    ffi, _library = kvm.bindings()
    call = ffi.new("struct call_rebase *")
    ffi.memmove(call, guest.calls[-1].call, ffi.sizeof("struct call_rebase"))
    return call


def rows(layers: t.Any, count: int) -> list[tuple[int, int, int]]:
    return [(layer.format, layer.disk, layer.data_disk) for layer in layers[0:count]]


def test_each_file_is_one_disk(chain: Chain, guest: t.Callable[[], Guest]) -> None:
    """The two chains have a and raw in common."""
    with rebases.open_backing(chain, b"n", "qcow2") as backing:
        stand_in = guest()
        stand_in.answers("rebase", virtual_size=SIZE, copied_bytes=4096, zeroed_bytes=512)
        assert rebases.rebase(chain, backing) == (4096, 512, SIZE, stand_in.report)
    call = call_of(stand_in)
    assert rows(call.layers, call.layer_count) == [(1, 0, 0), (1, 1, 2), (1, 3, 0), (2, 4, 0)]
    assert rows(call.new_layers, call.new_layer_count) == [(1, 5, 0), (1, 3, 0), (2, 4, 0)]
    assert (call.shared, call.relinks, call.dry_run, call.header.disk_count) == (0, 0, 0, 6)
    assert bytes(call.backing_name[0 : call.backing_length]) == b"n"
    assert bytes(call.backing_format[0 : call.format_length]) == b"qcow2"
    assert stand_in.calls[-1].writable == {0}


@pytest.mark.parametrize(
    ("name", "format_name", "shared"), [(b"b", "qcow2", 1), (b"./a", "qcow2", 2), (b"raw", "raw", 3)]
)
def test_an_ancestor(name: bytes, format_name: str, shared: int, chain: Chain, guest: t.Callable[[], Guest]) -> None:
    with rebases.open_backing(chain, name, format_name) as backing:
        assert backing.shared == shared
        stand_in = guest()
        stand_in.answers("rebase", virtual_size=SIZE)
        rebases.rebase(chain, backing, dry_run=True)
    call = call_of(stand_in)
    assert (call.shared, call.new_layer_count, call.dry_run) == (shared, 4 - shared, 1)
    assert stand_in.calls[-1].writable == ()
    assert chain.layers[1].image.disk.descriptor >= 0


def test_an_ancestor_of_another_format_is_another_layer(chain: Chain, guest: t.Callable[[], Guest]) -> None:
    with rebases.open_backing(chain, b"a", "raw") as backing:
        assert backing.shared == 0
        stand_in = guest()
        stand_in.answers("rebase", virtual_size=SIZE)
        rebases.rebase(chain, backing)
    call = call_of(stand_in)
    assert rows(call.new_layers, call.new_layer_count) == [(2, 3, 0)]


def test_compressed(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another guest does that; to say what would be, none of that size is needed."""
    for stand_in, dry_run in ((ChainGuest(), True), (CompressingGuest(), False)):
        monkeypatch.setattr(machine, "run", stand_in.run)
        stand_in.answers("rebase", virtual_size=SIZE)
        rebases.rebase(chain, None, dry_run, compressed=True)
        assert call_of(stand_in).compresses == 1


def test_none(chain: Chain, guest: t.Callable[[], Guest]) -> None:
    stand_in = guest()
    stand_in.answers("rebase", virtual_size=SIZE)
    rebases.rebase(chain, None)
    call = call_of(stand_in)
    assert (call.new_layer_count, call.backing_length, call.format_length) == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "format_name", "code"),
    [
        (b"top", "qcow2", "backing_loop"),
        (b"./top", "raw", "backing_loop"),
        (b"link", "qcow2", "backing_loop"),
        (b"above", "qcow2", "backing_loop"),
        (b"gone", "qcow2", "not_found"),
        (b"n", "", "backing_format_missing"),
        (b"n", "vdi", "unknown_format"),
        (b"raw", "vmdk", "not_vmdk"),
        (b"nbd://host/x", "raw", "backing_protocol"),
        (b"json:{}", "raw", "backing_protocol"),
        (b"", "raw", "backing_protocol"),
        (b"raw", "qcow2", "not_qcow2"),
        (b"fifo", "raw", "not_regular"),
    ],
)
def test_refused(name: bytes, format_name: str, code: str, chain: Chain, directory: pathlib.Path) -> None:
    os.link(directory / "top", directory / "link")
    os.mkfifo(directory / "fifo")
    run("qemu-img", "create", "-f", "qcow2", "-u", "-b", "top", "-F", "qcow2", "above", "1M", directory=directory)
    with pytest.raises(errors.AirlockError) as caught:
        rebases.open_backing(chain, name, format_name)
    assert caught.value.code == code


def test_the_data_file_of_the_image(directory: pathlib.Path) -> None:
    with open_chain(str(directory / "b"), writable_layers=(0,)) as chain:
        with pytest.raises(errors.ArgumentError) as caught:
            rebases.open_backing(chain, b"b.data", "raw")
        assert caught.value.code == "backing_loop"


@pytest.mark.parametrize(
    "lie",
    [
        {"virtual_size": SIZE + 512},
        {"virtual_size": SIZE, "copied_bytes": SIZE, "zeroed_bytes": 512},
        {"virtual_size": SIZE, "payload": b"x"},
    ],
)
def test_lies(lie: dict[str, t.Any], chain: Chain, guest: t.Callable[[], Guest]) -> None:
    payload = lie.pop("payload", b"")
    stand_in = guest()
    stand_in.answers("rebase", payload, header_modified=1, **lie)
    with pytest.raises(errors.GuestProtocolError) as caught:
        rebases.rebase(chain, None)
    assert caught.value.modified


def test_a_refusal_names_the_disk(chain: Chain, guest: t.Callable[[], Guest], directory: pathlib.Path) -> None:
    stand_in = guest()
    stand_in.answers("rebase", header_code=201, header_disk=3, header_modified=1)
    with pytest.raises(errors.CommitError) as caught:
        rebases.rebase(chain, None)
    assert caught.value.message.startswith(str(directory / "a"))
    assert "run it again" in caught.value.message
    stand_in.answers("rebase", header_code=201, header_disk=9)
    with pytest.raises(errors.GuestProtocolError):
        rebases.rebase(chain, None)


@pytest.mark.parametrize(("name", "format_name"), [(b"any/thing", "vmdk"), (b"", ""), (b"x" * 1023, "raw")])
def test_relink(name: bytes, format_name: str, directory: pathlib.Path) -> None:
    with Image.open(str(directory / "top"), writable=True) as image:
        rebases.relink(image, name, format_name, dry_run=True)
        rebases.relink(image, name, format_name)
    with Image.open(str(directory / "top")) as image:
        found = image_info(image)
    assert (found.backing_name, found.backing_format) == (name, format_name.encode())


@pytest.mark.parametrize(
    ("name", "format_name", "code"),
    [
        (b"top", "qcow2", "backing_loop"),
        (b"a", "", "backing_format_missing"),
        (b"a", "f" * 16, "unknown_format"),
        (b"a" * 1024, "raw", "backing_name_long"),
        (b"a\0b", "raw", "backing_name_long"),
    ],
)
def test_relink_refused(name: bytes, format_name: str, code: str, directory: pathlib.Path) -> None:
    before = (directory / "top").read_bytes()
    with Image.open(str(directory / "top"), writable=True) as image, pytest.raises(errors.ArgumentError) as caught:
        rebases.relink(image, name, format_name)
    assert caught.value.code == code
    assert (directory / "top").read_bytes() == before


def test_where_a_name_leads(chain: Chain, directory: pathlib.Path) -> None:
    top, home = str(directory / "top"), chain.top.image.place.directory
    with find_place(directory / "b") as place:
        assert rebases.leads_to(b"b", home, top) == chain.layers[1].key == place.key
    with pytest.raises(errors.ChainError) as caught:
        rebases.leads_to(b"../elsewhere", home, top)
    assert caught.value.code == "backing_outside"


@pytest.fixture(params=["without a name", "with a name"])
def draft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new overlay is before it is whole."""
    if request.param == "with a name":
        monkeypatch.setattr("sandbox.host.drafts._DESCRIPTORS", "/nowhere")


@pytest.mark.usefixtures("draft")
@pytest.mark.parametrize("size", [0, 512, 1 << 20, (1 << 20) + 512, 3 << 40])
def test_a_new_overlay(size: int, tmp_path: pathlib.Path) -> None:
    """Byte for byte as qemu-img makes it, and nothing left beside."""
    with open(tmp_path / "base", "wb") as file:
        file.truncate(size)
    run("qemu-img", "create", "-f", "qcow2", "-b", "base", "-F", "raw", "theirs", directory=tmp_path)
    create_overlay(str(tmp_path / "ours"), size, b"base", "raw")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "ours", "theirs"]
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("draft")
def test_a_new_overlay_replaces_nothing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "there").write_bytes(b"precious")
    with pytest.raises(errors.ImageOpenError) as caught:
        create_overlay(str(tmp_path / "there"), SIZE, b"base", "raw")
    assert caught.value.code == "exists"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("there", b"precious")]
    with pytest.raises(errors.ImageOpenError):
        create_overlay(str(tmp_path / "no/such/place"), SIZE, b"base", "raw")
    with pytest.raises(errors.ArgumentError):
        create_overlay(str(tmp_path / "new"), SIZE, b"base", "")
    with pytest.raises(errors.RebaseError, match="no room"):
        create_overlay(str(tmp_path / "new"), SIZE, b"n" * 500, "raw", cluster_size=512)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
