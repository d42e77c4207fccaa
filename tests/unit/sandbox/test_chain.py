# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chains that are sound, with real images, real guests, and qemu-img's view of the same files."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import types
import typing as t

import pytest

import sandbox.images.chain
from sandbox import errors
from sandbox.host import locks
from sandbox.images import commits, rebases
from sandbox.images.chain import Chain, drawing, open_chain
from sandbox.images.image import Image
from sandbox.vmm.answers import Limits
from tests.support.chain_images import overlay, raw

from .holding import Holder
from .saying import said

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_descriptor_left")]


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with base.qcow2 in it; a sibling of it is "other", with base.qcow2 too."""
    for name in ("home", "other", "home/sub"):
        (tmp_path / name).mkdir()
        overlay(tmp_path / name / "base.qcow2")
    return tmp_path / "home"


def files(chain: Chain) -> list[tuple[int, int]]:
    return [layer.identity for layer in chain.layers]


def qemus_files(top: pathlib.Path) -> list[tuple[int, int]]:
    """The files that qemu-img opens for the chain."""
    command = ["qemu-img", "info", "--backing-chain", "--output=json", str(top)]
    done = subprocess.run(command, check=True, capture_output=True)
    found = [os.stat(image["filename"]) for image in json.loads(done.stdout)]
    return [(status.st_dev, status.st_ino) for status in found]


def test_three_layers(home: pathlib.Path) -> None:
    raw(home / "base.raw", 1000000)
    overlay(home / "a.qcow2", b"base.raw", b"raw")
    top = overlay(home / "top.qcow2", b"a.qcow2")
    with open_chain(str(top)) as chain:
        assert [layer.path for layer in chain.layers] == [str(home / n) for n in ("top.qcow2", "a.qcow2", "base.raw")]
        assert [layer.format for layer in chain.layers] == ["qcow2", "qcow2", "raw"]
        assert [layer.depth for layer in chain.layers] == [0, 1, 2]
        assert [layer.virtual_size for layer in chain.layers] == [1 << 20, 1 << 20, 1000448]
        assert [layer.file_size for layer in chain.layers] == [os.stat(layer.path).st_size for layer in chain.layers]
        assert [layer.backing_name for layer in chain.layers] == [b"a.qcow2", b"base.raw", b""]
        assert [layer.backing_format for layer in chain.layers] == [b"qcow2", b"raw", b""]
        assert [layer.info is None for layer in chain.layers] == [False, False, True]
        assert (chain.top, chain.base) == (chain.layers[0], chain.layers[2])
        assert files(chain) == qemus_files(top)
        assert drawing(chain) == "base.raw <- a.qcow2 <- top.qcow2"
        assert len(chain.reports) == 2
        assert "user_mode_guest" in chain.reports[1].layers


def test_image_that_stands_alone(home: pathlib.Path) -> None:
    with open_chain(home / "base.qcow2") as chain:
        assert drawing(chain) == "base.qcow2"
        assert chain.top is chain.base


def test_image_that_the_caller_has_open_stays_open(home: pathlib.Path) -> None:
    overlay(home / "top.qcow2", b"base.qcow2")
    with Image.open(str(home / "top.qcow2"), writable=True) as image:
        with open_chain(image) as chain:
            assert chain.top.image is image
            base = chain.base.image.disk
        assert image.disk.size > 0
        assert base.descriptor == -1


def test_relative_path_of_the_top(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay(home / "top.qcow2", b"sub/base.qcow2")
    monkeypatch.chdir(home)
    with open_chain("top.qcow2") as chain:
        assert [layer.path for layer in chain.layers] == ["top.qcow2", "sub/base.qcow2"]


@pytest.mark.parametrize(
    "name",
    [
        b"base.qcow2",
        b"./base.qcow2",
        b".//sub/./base.qcow2",
        b"sub/../base.qcow2",
        b"../home/base.qcow2",
        b"../home/sub/base.qcow2",
        b"%(home)s/base.qcow2",
        b"%(home)s/sub/../base.qcow2",
        b"%(home)s/../home/base.qcow2",
        b"link.qcow2",
        b"absolute-link.qcow2",
        b"way/base.qcow2",
        b"way/link-back.qcow2",
        b"sub/up/base.qcow2",
        b"round-about.qcow2",
        b"./colon:base.qcow2",
        b"line\nbreak\x1b[31m.qcow2",
        b"../other/base.qcow2",
        b"%(home)s/../other/base.qcow2",
        b"%(other)s/base.qcow2",
        b"link-to-other.qcow2",
        b"way-to-other/base.qcow2",
        b"way-to-other/../home/base.qcow2",
    ],
)
def test_name_that_leads_where_qemu_goes(home: pathlib.Path, name: bytes) -> None:
    """Links inside, detours, odd names; and whatever leads to "other", which is allowed here."""
    other = home.parent / "other"
    (home / "link.qcow2").symlink_to("base.qcow2")
    (home / "absolute-link.qcow2").symlink_to(home / "base.qcow2")
    (home / "way").symlink_to("sub")
    (home / "sub/link-back.qcow2").symlink_to("../base.qcow2")
    (home / "sub/up").symlink_to("../sub/..")
    (home / "round-about.qcow2").symlink_to("../home/link.qcow2")
    (home / "link-to-other.qcow2").symlink_to(other / "base.qcow2")
    (home / "way-to-other").symlink_to("../other")
    for odd in ("colon:base.qcow2", "line\nbreak\x1b[31m.qcow2"):
        shutil.copy(home / "base.qcow2", home / odd)
    top = overlay(home / "top.qcow2", name % {b"home": os.fsencode(home), b"other": os.fsencode(other)})
    with open_chain(str(top), allowed_roots=[str(other)]) as chain:
        assert len(chain.layers) == 2
        assert files(chain) == qemus_files(top)
        assert drawing(chain).isprintable()


def test_name_that_is_no_text(home: pathlib.Path) -> None:
    (home / "base.qcow2").rename(os.fsdecode(os.fsencode(home) + b"/\xff\x80"))
    top = overlay(home / "top.qcow2", b"\xff\x80")
    with open_chain(str(top)) as chain:
        assert drawing(chain) == "\ufffd\ufffd <- top.qcow2"


def test_each_layer_has_a_directory_of_its_own(home: pathlib.Path) -> None:
    """Relative names start where the file is, behind all links. qemu starts beside a link to a file: whoever made that
    would choose what another's image stands on."""
    overlay(home / "sub/b.qcow2", b"base.qcow2")
    (home / "way").symlink_to("sub")
    (home / "b-link.qcow2").symlink_to("sub/b.qcow2")
    for name, as_qemu in ((b"sub/b.qcow2", True), (b"way/b.qcow2", True), (b"b-link.qcow2", False)):
        top = overlay(home / "top.qcow2", name)
        with open_chain(str(top)) as chain:
            assert (files(chain) == qemus_files(top)) == as_qemu
            status = os.stat(home / "sub/base.qcow2")
            assert chain.base.identity == (status.st_dev, status.st_ino)


def test_names_in_an_image_behind_a_link_start_where_the_image_is(home: pathlib.Path) -> None:
    """The top, by a link beside which there is a file of the name as well."""
    overlay(home / "sub/top.qcow2", b"base.qcow2")
    (home / "link.qcow2").symlink_to("sub/top.qcow2")
    with open_chain(str(home / "link.qcow2")) as chain:
        status = os.stat(home / "sub/base.qcow2")
        assert chain.base.identity == (status.st_dev, status.st_ino)
        assert chain.base.path == f"{home}/sub/base.qcow2"


def test_top_behind_links_of_the_caller(home: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The caller may take any way; an absolute name may be spelt either way."""
    (tmp_path / "alias").symlink_to("home")
    for name in (b"base.qcow2", os.fsencode(tmp_path / "alias/base.qcow2"), os.fsencode(home / "base.qcow2")):
        overlay(home / "top.qcow2", name)
        with open_chain(str(tmp_path / "alias/top.qcow2")) as chain:
            assert files(chain)[1] == (os.stat(home).st_dev, os.stat(home / "base.qcow2").st_ino)


@pytest.mark.parametrize("root", [b"/", b"%(parent)s", b"%(parent)s/other", b"%(parent)s/other/base.qcow2"])
@pytest.mark.parametrize("name", [b"%(parent)s/other/base.qcow2", b"../other/base.qcow2"])
def test_allowed_roots(home: pathlib.Path, root: bytes, name: bytes) -> None:
    """A directory far above, the directory itself, or nothing but the file."""
    words = {b"parent": os.fsencode(home.parent)}
    top = overlay(home / "top.qcow2", name % words)
    with open_chain(str(top), allowed_roots=[root % words]) as chain:
        assert files(chain) == qemus_files(top)


def test_layer_in_an_allowed_root_has_neighbours(home: pathlib.Path) -> None:
    overlay(home.parent / "other/a.qcow2", b"base.qcow2")
    top = overlay(home / "top.qcow2", b"../other/a.qcow2")
    for root in ("other", "other/a.qcow2"):
        with open_chain(str(top), allowed_roots=[str(home.parent / root)]) as chain:
            assert files(chain) == qemus_files(top)


@pytest.mark.parametrize("root", ["", "nothing", "fifo", "nul\0"])
def test_root_that_is_none(home: pathlib.Path, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    os.mkfifo("fifo")
    with pytest.raises(errors.ArgumentError) as caught:
        open_chain("base.qcow2", allowed_roots=["sub", root])
    assert caught.value.code == "bad_allowed_root"


def test_stated_format_is_for_layers_that_record_none(home: pathlib.Path) -> None:
    raw(home / "disk")
    overlay(home / "a.qcow2", b"disk", b"raw")
    top = overlay(home / "top.qcow2", b"a.qcow2", b"")
    with open_chain(str(top), backing_format="qcow2") as chain:
        assert [layer.format for layer in chain.layers] == ["qcow2", "qcow2", "raw"]
    with pytest.raises(errors.ArgumentError) as caught:
        open_chain(str(top), backing_format="vdi")
    assert caught.value.code == "unknown_format"


def test_raw_layer_that_looks_like_qcow2_ends_the_chain(home: pathlib.Path) -> None:
    overlay(home / "disk", b"/etc/shadow")
    top = overlay(home / "top.qcow2", b"disk", b"raw")
    with open_chain(str(top)) as chain:
        assert [layer.format for layer in chain.layers] == ["qcow2", "raw"]
        assert chain.base.virtual_size == -(-os.stat(home / "disk").st_size // 512) * 512


def test_data_file(home: pathlib.Path) -> None:
    raw(home / "sub/data.raw")
    overlay(home / "a.qcow2", data_file=b"sub/data.raw")
    top = overlay(home / "top.qcow2", b"a.qcow2")
    with open_chain(str(top)) as chain:
        assert chain.top.data_file is None
        data = chain.base.data_file
        assert data is not None
        assert data.path == str(home / "sub/data.raw")
        assert data.lock.held == (100, 203)
    with open_chain(str(home / "a.qcow2"), writable_layers=(0,)) as chain:
        assert chain.top.data_file is not None
        assert chain.top.data_file.disk.writable
        assert chain.top.data_file.lock.held == (100, 101, 103, 203)


@pytest.mark.parametrize("base_format", ["qcow2", "raw"])
def test_locks_are_qemus(home: pathlib.Path, base_format: str) -> None:
    base = overlay(home / "base") if base_format == "qcow2" else raw(home / "base")
    top = overlay(home / "top.qcow2", b"base", base_format.encode())
    readers = {"qcow2": (100, 201, 203), "raw": (100,)}
    writer = (100, 101, 103, 201, 203)
    with open_chain(str(top)) as chain:
        assert [layer.image.lock.held for layer in chain.layers] == [readers["qcow2"], readers[base_format]]
        assert not any(layer.image.disk.writable for layer in chain.layers)
    with open_chain(str(top), writable_layers=(0, 1)) as chain:
        assert [layer.image.lock.held for layer in chain.layers] == [writer, writer]
        assert all(layer.image.disk.writable for layer in chain.layers)
    with Holder(str(base), "-f", base_format), pytest.raises(errors.ImageInUseError):
        open_chain(str(top), writable_layers=(1,))


@pytest.mark.parametrize("base_format", ["qcow2", "raw"])
def test_layer_becomes_writable(home: pathlib.Path, base_format: str) -> None:
    """At no moment is it without locks, and nobody who reads it, or writes to it, is overlooked."""
    if base_format == "qcow2":
        raw(home / "data")
        base = overlay(home / "base", data_file=b"data")
    else:
        base = raw(home / "base")
    top = overlay(home / "top.qcow2", b"base", base_format.encode())
    with open_chain(str(top)) as chain:
        chain.make_writable(chain.base)
        chain.make_writable(chain.base)
        assert chain.base.image.disk.writable
        assert chain.base.image.disk.identity == (os.stat(base).st_dev, os.stat(base).st_ino)
        assert held_by(chain.base.image) == [(100, 101), (103, 103), (201, 201), (203, 203)]
        if chain.base.data_file:
            assert chain.base.data_file.disk.writable
            assert held_by(chain.base.data_file) == [(100, 101), (103, 103), (203, 203)]
        assert not chain.top.image.disk.writable
    with open_chain(str(top)) as chain:
        before = held_by(chain.base.image)
        # What a virtual machine holds on a disk that it reads, and what it holds on a raw one that it writes.
        for byte in (201, 101):
            with open(base, "rb") as other:
                fcntl.fcntl(other, locks._SETLK, locks._flock(fcntl.F_RDLCK, byte))
                with pytest.raises(errors.ImageInUseError):
                    chain.make_writable(chain.base)
            assert not chain.base.image.disk.writable
            assert held_by(chain.base.image) == before


def test_layer_of_a_shared_chain_stays_read_only(home: pathlib.Path) -> None:
    top = overlay(home / "top.qcow2", b"base.qcow2")
    with open_chain(str(top), force_share=True) as chain, pytest.raises(errors.ForceShareError):
        chain.make_writable(chain.base)
    with pytest.raises(errors.ForceShareError):
        open_chain(str(top), force_share=True, writable_layers=(1,))


def held_by(image: Image) -> list[tuple[int, int]]:
    """Ranges of bytes that the image's descriptor has locked, as the kernel tells."""
    with open(f"/proc/self/fdinfo/{image.disk.descriptor}", encoding="ascii") as file:
        ranges = [line.split()[-2:] for line in file if line.startswith("lock:")]
    return [(int(first), int(last)) for first, last in ranges]


def test_layer_that_somebody_writes(home: pathlib.Path) -> None:
    overlay(home / "a.qcow2", b"base.qcow2")
    top = overlay(home / "top.qcow2", b"a.qcow2")
    with Holder(str(home / "base.qcow2")) as pid:
        with pytest.raises(errors.ImageInUseError) as caught:
            open_chain(str(top))
        assert caught.value.pids == (pid,)
        theirs = subprocess.run(["qemu-img", "snapshot", "-l", str(top)], check=False, capture_output=True, text=True)
        assert theirs.stderr == f"qemu-img: {said(caught.value)}\n"
        with open_chain(str(top), force_share=True) as chain:
            assert [layer.image.lock.held for layer in chain.layers] == [(100,)] * 3


def test_layer_that_is_missing_in_qemus_words(home: pathlib.Path) -> None:
    overlay(home / "a.qcow2", b"nothing")
    top = overlay(home / "top.qcow2", b"a.qcow2")
    with pytest.raises(errors.ChainError) as caught:
        open_chain(str(top))
    theirs = subprocess.run(["qemu-img", "snapshot", "-l", str(top)], check=False, capture_output=True, text=True)
    assert theirs.stderr == f"qemu-img: {said(caught.value)}\n"


def test_layer_that_is_no_qcow2(home: pathlib.Path) -> None:
    raw(home / "disk")
    top = overlay(home / "top.qcow2", b"disk", b"qcow2")
    with pytest.raises(errors.NotQcow2Error) as caught:
        open_chain(str(top))
    assert caught.value.message.startswith(f"{home}/disk: ")
    theirs = subprocess.run(["qemu-img", "snapshot", "-l", str(top)], check=False, capture_output=True, text=True)
    assert theirs.stderr == f"qemu-img: {said(caught.value)}\n"


def test_seconds_are_for_all_guests_together(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 58.0, 61.0])
    clock = types.SimpleNamespace(monotonic=lambda: next(times))
    given: list[float] = []
    real = Limits._replace

    def note(limits: Limits, **changes: t.Any) -> Limits:
        given.append(changes["seconds"])
        return real(limits)

    monkeypatch.setattr(sandbox.images.chain, "time", clock)
    monkeypatch.setattr(Limits, "_replace", note)
    overlay(home / "a.qcow2", b"base.qcow2")
    top = overlay(home / "top.qcow2", b"a.qcow2")
    open_chain(str(top), limits=Limits.within(60)).close()
    assert given[::2] == [59.0, 2.0, 0.001]  # in between, each run asks for its own


def test_block_device(home: pathlib.Path) -> None:
    """A loop device, where this machine lets us have one; otherwise what stands in its place is a FIFO. An image alone
    may choose neither; the operator may choose the device."""
    raw(home / "disk")
    losetup = shutil.which("losetup") or "/sbin/losetup"
    made = subprocess.run(
        [losetup, "--find", "--show", str(home / "disk")], check=False, capture_output=True, text=True
    )
    device = made.stdout.strip() or str(home / "fifo")
    if made.returncode:
        os.mkfifo(device)
    top = overlay(home / "top.qcow2", os.fsencode(device), b"raw")
    try:
        with pytest.raises(errors.ChainError) as caught:
            open_chain(str(top), allowed_roots=[os.path.dirname(device)])
        assert caught.value.code == ("backing_not_regular" if made.returncode else "backing_block_device")
        if made.returncode == 0:
            with open_chain(str(top), allowed_roots=[device]) as chain:
                assert chain.base.image.disk.is_block
                assert chain.base.virtual_size == 1 << 20
    finally:
        if made.returncode == 0:
            subprocess.run([losetup, "--detach", device], check=True)


@pytest.mark.parametrize("kind", ["raw", "data file", "qcow2", "qcow2 of another owner"])
@pytest.mark.parametrize("named", [False, True])
def test_hard_links_of_what_only_an_image_names(kind: str, named: bool, home: pathlib.Path) -> None:
    """Its data is neither copied from nor written to, unless the operator names the file: it may be anybody's."""
    layer = {"raw": "base.raw", "data file": "data"}.get(kind, "lower.qcow2")
    if kind == "data file":
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data", "lower.qcow2", "1M"]
        subprocess.run(command, cwd=home, check=True)
        overlay(home / "top.qcow2", b"lower.qcow2")
    elif kind == "raw":
        raw(home / "base.raw")
        overlay(home / "top.qcow2", b"base.raw", b"raw")
    else:
        overlay(home / "lower.qcow2")
        overlay(home / "top.qcow2", b"lower.qcow2")
    os.link(home / layer, home.parent / "its own name")
    if kind == "qcow2 of another owner":
        if os.geteuid() != 0:
            pytest.skip("gives a file to another user, which needs root")
        os.chown(home / layer, 12345, 12345)
    roots = [str(home / layer)] if named else []
    with open_chain(str(home / "top.qcow2"), writable_layers=(0,), allowed_roots=roots) as chain:
        if named or kind == "qcow2":
            rebases.rebase(chain, None, dry_run=True)
            commits.commit(chain, 1, dry_run=True)
            return
        for change in (
            lambda: rebases.rebase(chain, None, dry_run=True),
            lambda: commits.commit(chain, 1, dry_run=True),
        ):
            with pytest.raises(errors.ChainError) as caught:
                change()
            assert caught.value.code == ("data_file_hard_links" if kind == "data file" else "backing_hard_links")
            assert "allowed_roots" in caught.value.message


@pytest.mark.parametrize("place", ["root", "named", "home", "alias"])
@pytest.mark.parametrize("whose", ["top", "base"])
def test_a_data_file_in_an_allowed_root_is_not_written_to(whose: str, place: str, home: pathlib.Path) -> None:
    """A root is there for what is read: whoever makes an image must not choose what of it is overwritten."""
    (home.parent / "alias").symlink_to(home)
    data = home.parent / {"home": "home", "alias": "alias"}.get(place, "other") / "data"
    option, path = ["-o", f"data_file={data}"], str(home / "top.qcow2")
    standing = ["-F", "qcow2", "-b", "lower.qcow2"]
    lower, upper = ([], [*standing, *option]) if whose == "top" else (option, standing)
    for name, more in (("lower.qcow2", lower), ("top.qcow2", upper)):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more, name, "1M"], cwd=home, check=True)
    subprocess.run(["qemu-io", "-c", "write -P 5 0 64k", path], stdout=subprocess.DEVNULL, check=True)
    data.write_bytes(b"another's" * 1000)
    roots = [str(data if place == "named" else data.parent)]
    with open_chain(path, writable_layers=(0,), allowed_roots=roots) as chain:
        assert commits.find_base(chain, b"lower.qcow2") == 1
        changes: list[t.Callable[[bool], object]] = [lambda dry: commits.commit(chain, 1, dry_run=dry)]
        if whose == "top":
            changes += [lambda dry: rebases.rebase(chain, None, dry_run=dry), lambda _dry: commits.empty(chain)]
        if place != "root":
            changes[0](True)
            return
        commits.open_base(chain, 1)
        for change in changes:
            for dry in (True, False):
                with pytest.raises(errors.ChainError) as caught:
                    change(dry)
                assert caught.value.code == "data_file_elsewhere"
                assert str(data) in caught.value.message
    assert data.read_bytes() == b"another's" * 1000


@pytest.mark.parametrize("left", ["nothing", "another file", "a link"])
def test_a_hard_link_that_goes_before_the_names_are_counted(left: str, home: pathlib.Path) -> None:
    """The file has one name then, and that is not the one in the image above."""
    raw(home / "base.raw")
    overlay(home / "top.qcow2", b"base.raw", b"raw")
    with open_chain(str(home / "top.qcow2"), writable_layers=(0,)) as chain:
        (home / "base.raw").rename(home.parent / "its own name")
        if left == "another file":
            raw(home / "base.raw")
        elif left == "a link":
            (home / "base.raw").symlink_to(home.parent / "its own name")
        for change in (
            lambda: rebases.rebase(chain, None, dry_run=True),
            lambda: commits.commit(chain, 1, dry_run=True),
        ):
            with pytest.raises(errors.ChainError) as caught:
                change()
            assert caught.value.code == "backing_hard_links"


@pytest.mark.parametrize("whose", ["a stranger's", "everybody's"])
def test_hard_links_with_a_header_in_a_directory(whose: str, home: pathlib.Path) -> None:
    """That the owner is the same says nothing there: virtual machines' images may all be root's."""
    overlay(home / "lower.qcow2")
    overlay(home / "top.qcow2", b"lower.qcow2")
    os.link(home / "lower.qcow2", home.parent / "its own name")
    if whose == "a stranger's":
        if os.geteuid() != 0:
            pytest.skip("gives a directory to another user, which needs root")
        os.chown(home, 12345, 12345)
    else:
        home.chmod(0o1777)
    with open_chain(str(home / "top.qcow2"), writable_layers=(0,)) as chain:
        with pytest.raises(errors.ChainError) as caught:
            commits.commit(chain, 1, dry_run=True)
        assert caught.value.code == "backing_hard_links"


def test_hard_links_below_the_base_of_a_commit(home: pathlib.Path) -> None:
    """A cluster of the base that is written to in part is filled up from there."""
    (home / "base.raw").write_bytes(b"not the tenant's" * 8192)
    os.link(home / "base.raw", home.parent / "its own name")
    for name, below, fmt, cluster in (("mid", "base.raw", "raw", 65536), ("top", "mid", "qcow2", 512)):
        options = ["-o", f"cluster_size={cluster}", "-b", below, "-F", fmt]
        command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", *options, name, "128k"]
        subprocess.run(command, cwd=home, check=True)
    subprocess.run(["qemu-io", "-c", "write 0 512", "top"], cwd=home, check=True, capture_output=True)
    with open_chain(str(home / "top"), writable_layers=(0,)) as chain:
        commits.open_base(chain, 1)
        with pytest.raises(errors.ChainError) as caught:
            commits.commit(chain, 1)
        assert caught.value.code == "backing_hard_links"
    assert b"not the tenant's" not in (home / "mid").read_bytes()


def test_a_base_that_the_operator_names_may_have_several_names(home: pathlib.Path) -> None:
    raw(home / "base.raw")
    os.link(home / "base.raw", home / "another.raw")
    overlay(home / "top.qcow2", b"base.raw", b"raw")
    with open_chain(str(home / "top.qcow2"), writable_layers=(0,)) as chain:
        assert commits.find_base(chain, b"another.raw") == 1
        commits.commit(chain, 1, dry_run=True)
