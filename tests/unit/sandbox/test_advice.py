# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What messages advise can be done, is done here, and does no harm.

FOLLOWED makes refusals happen and does what they say; NOT_FOLLOWED has the rest, each with the reason.
"""

from __future__ import annotations

import ast
import errno
import os
import pathlib
import re
import shlex
import shutil
import struct
import subprocess
import typing as t

import pytest

from sandbox import errors
from sandbox.cli.ways import WAYS as COMMANDS
from sandbox.host import holders, reference_refusals
from sandbox.host.reference_rules import Reference
from sandbox.images import bitmaps, chain, commits, overlays, rebases, snapshots
from sandbox.images import snapshot_changes as changes
from sandbox.images.image import Image, Limits
from sandbox.images.snapshots import Selector
from sandbox.vmm import answers, faults
from sandbox.words import advice, chain_refusals, opening, refused
from sandbox.words.wording import names_of
from tests.support.chain_images import overlay, raw
from tests.support.vmdk import Recipe

from .bitmap_images import directory_entries, set_in_use
from .test_cli_refusals import Patch, patched, u32, u64

pytestmark = pytest.mark.kvm

TOP = pathlib.Path(__file__).parents[3]
NAMED = re.compile(r"\b(qemu-img|qemu-io|qemu-nbd|guestmount|guestfish|virt-(?:cat|edit|resize))\b")
TRUST = re.compile(r"if you trust", re.IGNORECASE)
FIELD = re.compile(r"\{([a-z_0-9]+)\}")
CODES = {name: number for number, name in names_of("refusal", "REFUSAL_").items() if number}


def qemu(*arguments: str | pathlib.Path) -> None:
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def commands(message: str, **names: str | pathlib.Path) -> list[list[str]]:
    """The command lines that a message has in quotation marks, with NAMES in them filled in."""
    found = [shlex.split(text) for text in re.findall(r'"((?:qemu-img|airlock) [^"]+)"', message)]
    return [[str(names.get(word, word)) for word in line] for line in found]


def airlock(line: list[str]) -> None:
    from sandbox.cli import main as cli

    assert line[0] == "airlock"
    assert cli.main([os.fsencode(word) for word in line[1:]]) == 0, line


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image with data and two snapshots."""
    path = tmp_path_factory.mktemp("sound") / "image"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    qemu("qemu-io", "-c", "write 0 64k", path)
    qemu("qemu-img", "snapshot", "-c", "s1", path)
    qemu("qemu-img", "snapshot", "-c", "s2", path)
    return path.read_bytes()


def refusal(function: t.Callable[[], object]) -> errors.AirlockError:
    with advice.spoken(COMMANDS), pytest.raises(errors.AirlockError) as caught:
        function()
    return caught.value


def change(path: pathlib.Path, function: t.Callable[[Image], object]) -> None:
    with Image.open(str(path), writable=True) as image:
        function(image)


def new_snapshot(path: pathlib.Path) -> None:
    change(path, lambda image: changes.create_snapshot(image, b"new", (1, 0)))


# ---- what a copy is repaired of ------------------------------------------------------------------------------


def _places(data: bytes) -> dict[str, int]:
    (l1,) = struct.unpack_from(">Q", data, 40)
    (l2,) = struct.unpack_from(">Q", data, l1)
    l2 &= (1 << 56) - 512
    (entry,) = struct.unpack_from(">Q", data, l2)
    (table,) = struct.unpack_from(">Q", data, 48)
    (block,) = struct.unpack_from(">Q", data, table)
    (snapshots,) = struct.unpack_from(">Q", data, 64)
    return {"l1": l1, "l2": l2, "entry": entry, "block": block, "snapshots": snapshots}


def _damage(code: str, data: bytes) -> list[Patch]:
    at = _places(data)
    cluster = (at["entry"] & (1 << 56) - 512) >> 16
    return {
        "corrupt": [u64(72, 2)],
        "dirty": [u64(72, 1)],
        "no_refcount_table": [u32(56, 0)],
        "snapshot_extra": [u32(at["snapshots"] + 36, 1025)],
        "refcount_too_low": [(at["block"] + 2 * cluster, b"\0\1")],
        "copied_flag": [u64(at["l2"], at["entry"] | 1 << 63)],
        # Those that no repair mends, so that none is advised.
        "overlap": [u64(at["l2"], at["l1"])],
        "shared_cluster": [u64(at["l2"] + 8, at["entry"])],
        "outside_file": [u64(at["l2"], 1 << 40)],
        "reserved_bits": [u64(at["l2"], at["entry"] | 1 << 58)],
        "unaligned": [u64(at["l2"], at["entry"] + 512)],
        "refcount_table_large": [u32(56, 1000)],
        "refcount_table_offset": [u64(48, 65537)],
        "snapshot_table_large": [u32(60, 65537)],
        "snapshot_table_offset": [u64(64, 0x30001)],
    }[code]


REPAIRED = ("corrupt", "dirty", "no_refcount_table", "snapshot_extra", "refcount_too_low", "copied_flag")
RESTORED = (
    *("overlap", "shared_cluster", "outside_file", "reserved_bits", "unaligned"),
    *("refcount_table_large", "refcount_table_offset", "snapshot_table_large", "snapshot_table_offset"),
)


@pytest.mark.parametrize("code", REPAIRED + RESTORED)
def test_repair_is_advised_where_it_helps(code: str, sound: bytes, tmp_path: pathlib.Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    image.write_bytes(patched(sound, _damage(code, sound)))
    before = image.read_bytes()
    copy.write_bytes(before)
    error = refusal(lambda: new_snapshot(image))
    assert error.code == code
    assert image.read_bytes() == before
    lines = commands(error.message, COPY=copy)
    if code in RESTORED:
        assert lines == []
        assert "restore the image from a backup" in error.message
        subprocess.run(["qemu-img", "check", "-f", "qcow2", "-r", "all", copy], capture_output=True, check=False)
        refusal(lambda: new_snapshot(copy))  # it would have led nowhere
        return
    assert lines == [["qemu-img", "check", "-f", "qcow2", "-r", "all", str(copy)]]
    qemu(*lines[0])
    new_snapshot(copy)
    assert image.read_bytes() == before


# ---- what else is done ---------------------------------------------------------------------------------------


def _version_2(path: pathlib.Path) -> None:
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", path, "1M")


def _follow(error: errors.AirlockError, code: str, **names: str | pathlib.Path) -> None:
    """Does the first thing that the message says, and has looked whether the image must be trusted for it."""
    assert error.code == code, error.message
    line = commands(error.message, **names)[0]
    if line[0] == "airlock":
        airlock(line)
    else:
        assert TRUST.search(error.message)
        qemu(*line)


def follow_bitmap_version_2(directory: pathlib.Path) -> None:
    path = directory / "a b.qcow2"
    _version_2(path)

    def add() -> None:
        change(path, lambda image: bitmaps.change_bitmap(image, b"b0", [bitmaps.Action.add()]))

    _follow(refusal(add), "bitmap_version_2")
    add()


def follow_resize_v2(directory: pathlib.Path) -> None:
    path = directory / "disk"
    _version_2(path)
    qemu("qemu-img", "snapshot", "-c", "s", path)
    data = bytearray(path.read_bytes())
    struct.pack_into(">Q", data, 24, 2 << 20)  # QEMU refuses to make one
    path.write_bytes(data)

    def apply() -> None:
        change(path, lambda image: changes.apply_snapshot(image, Selector.by_name(b"s"), allow_resize=True))

    error = refusal(apply)
    if error.code != "resize_v2":
        pytest.fail(error.message)
    _follow(error, "resize_v2")
    apply()


def follow_resize_not_allowed(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    qemu("qemu-img", "snapshot", "-c", "s", path)
    qemu("qemu-img", "resize", "-q", "-f", "qcow2", path, "2M")

    def apply(allow: bool) -> None:
        selector = Selector.by_name(b"s")
        change(path, lambda image: changes.apply_snapshot(image, selector, allow_resize=allow))

    assert "leave out --no-resize" in refusal(lambda: apply(False)).message
    apply(True)


def follow_has_bitmaps(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    qemu("qemu-img", "snapshot", "-c", "s", path)
    qemu("qemu-img", "bitmap", "--add", path, "b0")

    def apply() -> None:
        change(path, lambda image: changes.apply_snapshot(image, Selector.by_name(b"s"), allow_resize=False))

    _follow(refusal(apply), "has_bitmaps", NAME="b0")
    apply()


def follow_bitmap_inconsistent(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    qemu("qemu-img", "bitmap", "--add", path, "b0")
    set_in_use(path, 0)
    clear = [bitmaps.Action.clear()]
    error = refusal(lambda: change(path, lambda image: bitmaps.change_bitmap(image, b"b0", clear)))
    _follow(error, "bitmap_inconsistent", NAME="b0")
    with Image.open(str(path)) as image:
        assert not bitmaps.list_bitmaps(image).bitmaps


def follow_bitmap_not_found(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    clear = [bitmaps.Action.clear()]
    _follow(refusal(lambda: change(path, lambda image: bitmaps.change_bitmap(image, b"b0", clear))), "bitmap_not_found")


def follow_snapshot_not_found(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    selector = Selector.by_name(b"nope")
    _follow(refusal(lambda: change(path, lambda image: changes.delete_snapshot(image, selector))), "snapshot_not_found")


def follow_bitmap_empty_disk(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "0")

    def add() -> None:
        change(path, lambda image: bitmaps.change_bitmap(image, b"b0", [bitmaps.Action.add()]))

    _follow(refusal(add), "bitmap_empty_disk", SIZE="1M")
    add()


def follow_refcount_overflow(directory: pathlib.Path) -> None:
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", path, "1M")
    qemu("qemu-io", "-c", "write 0 64k", path)
    error = refusal(lambda: new_snapshot(path))
    assert error.code == "refcount_overflow"
    assert TRUST.search(error.message)
    qemu(*commands(error.message, NEW=directory / "new")[1])
    new_snapshot(directory / "new")


def follow_bitmaps_extension(directory: pathlib.Path) -> None:
    from .test_cli_refusals import bitmaps as extension

    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    path.write_bytes(patched(path.read_bytes(), extension(1, 1, 32, 65536)))
    _follow(refusal(lambda: new_snapshot(path)), "bitmaps_extension")
    new_snapshot(path)


def follow_bitmap_ambiguous(directory: pathlib.Path) -> None:
    """One of that name is all of them: with one command they are gone."""
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    for name in ("b0", "b1"):
        qemu("qemu-img", "bitmap", "--add", path, name)
    data = path.read_bytes()
    second = directory_entries(data)[1]
    path.write_bytes(data[: second + 24] + data[second + 24 :].replace(b"b1", b"b0", 1))
    clear = [bitmaps.Action.clear()]
    error = refusal(lambda: change(path, lambda image: bitmaps.change_bitmap(image, b"b0", clear)))
    _follow(error, "bitmap_ambiguous", NAME="b0")
    with Image.open(str(path)) as image:
        assert not bitmaps.list_bitmaps(image).bitmaps


def follow_name_not_deletable(directory: pathlib.Path) -> None:
    path, new = directory / "disk", directory / "new"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    qemu("qemu-io", "-c", "write -P 7 0 64k", path)
    qemu("qemu-img", "snapshot", "-c", "x" * 250, path)
    data = bytearray(path.read_bytes())
    at = _places(bytes(data))["snapshots"]
    (length,) = struct.unpack_from(">H", data, at + 14)
    data += bytes(-len(data) % 65536)
    struct.pack_into(">H", data, at + 14, length + 6)
    end = at + 40 + 24 + 1 + length
    data[end : end + 6] = b"xxxxxx"
    path.write_bytes(data)
    with Image.open(str(path)) as image:
        name = snapshots.list_snapshots(image).snapshots[0].name[:255]  # as qemu-img lists it
    error = refusal(lambda: change(path, lambda image: changes.delete_snapshot(image, Selector.by_name(name))))
    _follow(error, "name_not_deletable", NEW=new)
    qemu("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", path, new)
    with Image.open(str(new)) as image:
        assert not snapshots.list_snapshots(image).snapshots


def _add(path: pathlib.Path, name: bytes, granularity: int = 0) -> None:
    change(path, lambda image: bitmaps.change_bitmap(image, name, [bitmaps.Action.add(granularity)]))


def _refused_bitmap(directory: pathlib.Path, code: str, name: bytes, granularity: int = 0) -> tuple[str, pathlib.Path]:
    """The message for a bitmap that cannot be added, and the image, which has the bitmap "there"."""
    path = directory / "disk"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    _add(path, b"there")
    error = refusal(lambda: _add(path, name, granularity))
    assert error.code == code, error.message
    return error.message, path


def follow_bitmap_exists(directory: pathlib.Path) -> None:
    message, path = _refused_bitmap(directory, "bitmap_exists", b"there")
    assert "Take another name, or remove that one first" in message
    _add(path, b"another")
    change(path, lambda image: bitmaps.change_bitmap(image, b"there", [bitmaps.Action.remove()]))
    _add(path, b"there")


def follow_bitmap_name_empty(directory: pathlib.Path) -> None:
    message, path = _refused_bitmap(directory, "bitmap_name_empty", b"")
    assert message.endswith("Give it one.")
    _add(path, b"one")


def follow_bitmap_name_long(directory: pathlib.Path) -> None:
    message, path = _refused_bitmap(directory, "bitmap_name_long", b"x" * 1024)
    most = re.search(r"at most (\d+) bytes", message)
    assert most
    _add(path, b"x" * int(most.group(1)))


def follow_bitmap_sizes(directory: pathlib.Path) -> None:
    for name, size in (("disk", "1M"), ("other", "2M"), ("same", "1M")):
        qemu("qemu-img", "create", "-q", "-f", "qcow2", directory / name, size)
        _add(directory / name, b"b0")

    def merge(name: str) -> None:
        with Image.open(str(directory / name)) as source:
            actions = [bitmaps.Action.merge(b"b0", source)]
            change(directory / "disk", lambda image: bitmaps.change_bitmap(image, b"b0", actions))

    error = refusal(lambda: merge("other"))
    assert (error.code, "Name an image of the same size" in error.message) == ("bitmap_sizes", True)
    merge("same")


# ---- commits and rebases -------------------------------------------------------------------------------------


def _commit(directory: pathlib.Path, top: str = "top", *options: str, top_format: str = "qcow2") -> None:
    """As `airlock commit`. Raises AirlockError."""
    with chain.open_chain(str(directory / top), writable_layers=(0,), top_format=top_format) as opened:
        commits.open_base(opened, 1)
        commits.commit(opened, 1, allow_resize="--no-resize" not in options)


def _rebase(top: pathlib.Path, name: bytes, format_name: str = "qcow2", compressed: bool = False) -> None:
    with (
        chain.open_chain(str(top), writable_layers=(0,)) as opened,
        rebases.open_backing(opened, name, format_name) as backing,
    ):
        rebases.rebase(opened, backing, compressed=compressed)


def _small_base(directory: pathlib.Path, compat: str) -> None:
    """base, with a snapshot, of 1 MiB <- top, of 2 MiB."""
    base, top = directory / "base", directory / "top"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={compat}", base, "1M")
    qemu("qemu-img", "snapshot", "-c", "s", base)
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", top, "2M")
    qemu("qemu-io", "-c", "write -P 7 1984k 64k", top)


def _holds(path: pathlib.Path, offset: str, length: str) -> None:
    qemu("qemu-io", "-r", "-f", "qcow2", "-c", f"read -P 7 {offset} {length}", path)


def follow_base_resize(directory: pathlib.Path) -> None:
    _small_base(directory, "1.1")
    error = refusal(lambda: _commit(directory, "top", "--no-resize"))
    assert error.code == "base_resize"
    assert "Allow the resize (leave out --no-resize)" in error.message
    airlock(["airlock", "commit", str(directory / "top")])
    _holds(directory / "base", "1984k", "64k")


def follow_base_resize_v2(directory: pathlib.Path) -> None:
    _small_base(directory, "0.10")
    _follow(refusal(lambda: _commit(directory)), "base_resize_v2")
    _commit(directory)
    _holds(directory / "base", "1984k", "64k")


def follow_encrypted(directory: pathlib.Path) -> None:
    """qemu-img takes keys, as its own documentation has it; on a copy of the whole chain."""
    original, copy = directory / "original", directory / "copy"
    original.mkdir()
    raw(original / "base")
    secret = ("--object", "secret,id=key,data=pass")
    options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
    backing = ("-b", "base", "-F", "raw")
    qemu("qemu-img", "create", *secret, "-q", "-f", "qcow2", "-o", options, *backing, original / "top")
    spelled = "driver=qcow2,encrypt.key-secret=key,file.filename="
    qemu("qemu-io", *secret, "--image-opts", "-c", "write -P 7 0 64k", f"{spelled}{original}/top")
    error = refusal(lambda: _commit(original))
    assert error.code == "encrypted"
    assert "If you trust the image, do it with qemu-img, on a copy" in error.message
    shutil.copytree(original, copy)
    qemu("qemu-img", "commit", *secret, "--image-opts", f"{spelled}{copy}/top")
    assert (copy / "base").read_bytes()[: 64 << 10] == b"\7" * (64 << 10)
    assert not any((original / "base").read_bytes())


def follow_backing_name_room(directory: pathlib.Path) -> None:
    (directory / ("d" * 250)).mkdir()
    (directory / ("d" * 250) / ("e" * 250)).mkdir()
    overlay(directory / "base")
    long = f"{'d' * 250}/{'e' * 250}/../../base"
    path = overlay(directory / "top", b"base", cluster_size=512)
    error = refusal(lambda: _rebase(path, long.encode()))
    assert (error.code, "Name the backing file by a shorter path" in error.message) == ("backing_name_room", True)
    _rebase(path, b"base")


def follow_compress_data_file(directory: pathlib.Path) -> None:
    raw(directory / "base")
    path = directory / "top"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={directory}/data", path, "1M")
    error = refusal(lambda: _rebase(path, b"base", "raw", compressed=True))
    assert (error.code, error.message.endswith("Run it without -c.")) == ("compress_data_file", True)
    _rebase(path, b"base", "raw")


def follow_backing_raw_data(directory: pathlib.Path) -> None:
    overlay(directory / "base")
    path = directory / "raw"
    options = f"data_file={directory}/data,data_file_raw=on"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1M")
    qemu("qemu-io", "-c", "write -P 7 0 64k", path)
    error = refusal(lambda: _rebase(path, b"base"))
    assert error.code == "backing_raw_data"
    assert "Make an overlay of the image instead, or one of the backing file without data_file_raw" in error.message
    overlays.create_overlay(str(directory / "over"), 1 << 20, b"raw", "qcow2")
    _holds(directory / "over", "0", "64k")
    options = f"data_file={directory}/more"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", "base", "-F", "qcow2", directory / "without")


# ---- vmdk ----------------------------------------------------------------------------------------------------


def _vmdk_chain(directory: pathlib.Path) -> None:
    """base.vmdk, of 1 MiB <- top.vmdk, which has 64 KiB of its own."""
    recipe = Recipe(1 << 20)
    recipe.make(directory / "base.vmdk")
    recipe.on(directory / "base.vmdk").make(directory / "top.vmdk")
    qemu("qemu-io", "-f", "vmdk", "-c", "write -P 7 64k 64k", directory / "top.vmdk")


def _edit(message: str, directory: pathlib.Path, old: bytes, new: bytes) -> None:
    """Does what the message says to correct a descriptor with. Its owner has laid traps beside the image."""
    take, *put = re.findall(r'"((?:dd|truncate) [^"]+)"', message)
    home, other = directory / "home", directory / "another's"
    home.mkdir()
    other.write_bytes(b"another's")
    (directory / "descriptor.txt").symlink_to(other)
    text = home / "descriptor.txt"
    environment = {**os.environ, "HOME": str(home)}
    subprocess.run(["sh", "-c", take], cwd=directory, check=True, capture_output=True, env=environment)
    content = text.read_bytes()
    assert content.count(old) == 1, content
    text.write_bytes(content.replace(old, new))
    for line in put:
        subprocess.run(["sh", "-c", line], cwd=directory, check=True, capture_output=True, env=environment)
    assert other.read_bytes() == b"another's"


def follow_vmdk_extent(directory: pathlib.Path) -> None:
    _vmdk_chain(directory)
    path = directory / "base.vmdk"
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b'SPARSE "disk.vmdk"\n', b'SPARSE "/x/d.vmdk"\n'))
    error = refusal(lambda: _commit(directory, "top.vmdk", top_format="vmdk"))
    assert error.code == "vmdk_extent"
    _edit(error.message, directory, b'"/x/d.vmdk"', b'"disk.vmdk"')
    assert path.read_bytes().rstrip(b"\0") == sound.rstrip(b"\0")
    _commit(directory, "top.vmdk", top_format="vmdk")


def follow_vmdk_parent_changed(directory: pathlib.Path) -> None:
    _vmdk_chain(directory)
    qemu("qemu-io", "-f", "vmdk", "-c", "write -P 9 512k 4k", directory / "base.vmdk")
    error = refusal(lambda: _commit(directory, "top.vmdk", top_format="vmdk"))
    assert error.code == "vmdk_parent_changed"
    wanted = re.search(r"set parentCID in the image's descriptor to ([0-9a-f]{8})", error.message)
    recorded = re.search(r"with the content id ([0-9a-f]{8})", error.message)
    assert wanted, error.message
    assert recorded, error.message
    _edit(error.message, directory, b"parentCID=" + recorded[1].encode(), b"parentCID=" + wanted[1].encode())
    _commit(directory, "top.vmdk", top_format="vmdk")
    qemu("qemu-io", "-r", "-f", "vmdk", "-c", "read -P 7 64k 64k", directory / "base.vmdk")


def follow_vmdk_descriptor(directory: pathlib.Path) -> None:
    _vmdk_chain(directory)
    path = directory / "base.vmdk"
    sound = path.read_bytes()
    lines = b'RW 2048 SPARSE "disk.vmdk"\nRW 1 FLAT "x" 0\n'
    text = sound[512:10752].rstrip(b"\0").replace(b'RW 2048 SPARSE "disk.vmdk"\n', lines)
    path.write_bytes(sound[:512] + text.ljust(10240, b"\0") + sound[10752:])
    error = refusal(lambda: _commit(directory, "top.vmdk", top_format="vmdk"))
    assert error.code == "vmdk_descriptor"
    at = re.search(r"it is text, at byte (\d+) of the file", error.message)
    assert at, error.message
    start = int(at.group(1))
    with open(path, "r+b") as file:
        file.seek(start)
        corrected = file.read(10240).rstrip(b"\0").replace(b'RW 1 FLAT "x" 0\n', b"")
        file.seek(start)
        file.write(corrected.ljust(10240, b"\0"))
    _commit(directory, "top.vmdk", top_format="vmdk")


def follow_base_vmdk_resize(directory: pathlib.Path) -> None:
    Recipe(1 << 20).make(directory / "base.vmdk")
    top = directory / "top"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.vmdk", "-F", "vmdk", top, "2M")
    qemu("qemu-io", "-c", "write -P 7 1984k 64k", top)
    error = refusal(lambda: _commit(directory))
    _follow(error, "base_vmdk_resize", TOP=top, FORMAT="qcow2", NEW=directory / "new")
    _holds(directory / "new", "1984k", "64k")


FOLLOWED: dict[str, t.Callable[[pathlib.Path], None]] = {
    name[len("follow_") :]: function for name, function in globals().items() if name.startswith("follow_")
}

_BACKUP = "it says to copy the file or restore a backup, which nothing of ours does"
_WRITER = "only the program that wrote the image knows what it needs"
_HOST = "it is about the host: its disks, its memory, what others do there"
_ARGUMENT = "it names what was asked for, and what can be asked for instead"
_HUGE = "it takes an image of 64 MiB of tables or more, or 65536 of something, to make it happen"
_BY_HAND = "no program writes such an image; what it says is done for bitmaps_extension"
NOT_FOLLOWED: dict[str, str] = {
    **dict.fromkeys(("bad_call", "no_memory", "read_failed", "write_failed", "no_space", "file_not_empty"), _HOST),
    **dict.fromkeys(("version", "incompatible_features", "compression_type", "encryption_method"), _WRITER),
    **dict.fromkeys(("vmdk_version", "vmdk_read_only", "vmdk_subformat"), _WRITER),
    **dict.fromkeys(
        [code for code, wording in chain_refusals.WORDINGS.items() if "{restore}" in wording.message], _BACKUP
    ),
    **dict.fromkeys(("truncated", "compressed_cluster", "data_file"), _BACKUP),
    **dict.fromkeys(("not_qcow2", "not_vmdk", "bitmap_granularity", "bitmap_too_large"), _ARGUMENT),
    **dict.fromkeys(("too_many_snapshots", "snapshot_table_full", "snapshot_table_big", "file_too_big"), _HUGE),
    **dict.fromkeys(("too_many_bitmaps", "bitmap_directory_full", "vmdk_full", "bitmap_header_full"), _HUGE),
    "bitmaps_overlap": _BY_HAND,
}


@pytest.mark.parametrize("code", FOLLOWED)
def test_advice_is_followed(code: str, tmp_path: pathlib.Path) -> None:
    FOLLOWED[code](tmp_path)


def test_each_refusal_is_followed_or_has_a_reason() -> None:
    done = {*FOLLOWED, *REPAIRED}
    assert done | set(NOT_FOLLOWED) == set(CODES)
    assert not done & set(NOT_FOLLOWED)


# ---- names in images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{outside}/base", "../outside/base", "link", "way/base", "sub/../../outside/base"])
def test_the_file_that_is_meant_is_allowed_and_no_more(name: str, tmp_path: pathlib.Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    for directory in (home, outside, home / "sub"):
        directory.mkdir()
    overlay(outside / "base")
    (home / "link").symlink_to(outside / "base")
    (home / "way").symlink_to(outside)
    top = overlay(home / "top.qcow2", os.fsencode(name.format(outside=outside)))
    error = refusal(lambda: chain.open_chain(str(top)))
    match = re.search(r"--allowed-root (\S+)\.$", error.message)
    assert match, error.message
    airlock(["airlock", "info", "--chain", "--allowed-root", match.group(1), str(top)])
    overlay(home / "top.qcow2", os.fsencode(f"{outside}/other"))
    overlay(outside / "other")
    assert refusal(lambda: chain.open_chain(str(top), allowed_roots=[match.group(1)])).code == "backing_absolute"


@pytest.mark.parametrize("name", ["nothing", "nbd://127.0.0.1:1", "base\0", "sub", "top.qcow2", "x" * 300])
def test_another_file_is_named(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "sub").mkdir()
    raw(tmp_path / "base")
    top = overlay(tmp_path / "top.qcow2", name.encode())
    error = refusal(lambda: chain.open_chain(str(top)))
    _follow(error, error.code, FILE="base", FORMAT="raw")
    chain.open_chain(str(top)).close()


def test_a_format_that_is_known_is_recorded(tmp_path: pathlib.Path) -> None:
    raw(tmp_path / "base")
    top = overlay(tmp_path / "top.qcow2", b"base", b"host_device")
    _follow(refusal(lambda: chain.open_chain(str(top))), "backing_format_unknown", FILE="base", FORMAT="raw")
    chain.open_chain(str(top)).close()


def test_a_deep_chain_is_shortened_from_below(tmp_path: pathlib.Path) -> None:
    overlay(tmp_path / "0")
    for number in range(1, 6):
        overlay(tmp_path / str(number), str(number - 1).encode())
    top = tmp_path / "5"
    error = refusal(lambda: chain.open_chain(str(top), depth_limit=5))
    _follow(error, "chain_too_deep", FILE=tmp_path / "0", FORMAT="qcow2", IMAGE=tmp_path / "2")
    chain.open_chain(str(top), depth_limit=5).close()


def test_each_rule_of_names_says_what_to_do() -> None:
    reference = Reference(b"name", "backing", "image")
    for rule in reference_refusals.WORDINGS:
        error = errors.ChainError("")
        for failure in (reference_refusals.NameRuleError(rule), OSError(errno.EMFILE, "")):
            error = reference_refusals.refusal(reference, failure, "name")
            assert error.message.endswith("."), error.message
    assert "LimitNOFILE" in error.message


# ---- the host ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_no_room_is_asked_for_when_it_is_something_else(number: int) -> None:
    from sandbox.images import transaction

    reading = chain_refusals.from_layer_refusal(
        refused.ResultHeader(CODES["read_failed"], arguments=(number, 0, 512, 0, 0, 0)), "d"
    )
    for error in (reading, opening.open_error("d", OSError(number, ""), False), transaction._no_journal("d", number)):
        assert not re.search("Make room|kernel's log|Free some space", error.message), error.message
        assert advice.of_errno(number) in error.message
    assert "Make room" in transaction._no_journal("d", errno.ENOSPC).message
    assert "TMPDIR" in transaction._no_journal("d", errno.ENOENT).message
    assert "kernel's log" in opening.open_error("d", OSError(errno.EIO, ""), False).message


@pytest.mark.parametrize(
    ("names", "words", "other"),
    [
        (["python3"], "lock_timeout", "virtual machine"),
        (["airlock", "python3.11"], "lock_timeout", "virtual machine"),
        (["qemu-system-x86"], "Shut down the virtual machine", "lock_timeout"),
        (["qemu-img"], "lock_timeout", "virtual machine"),
        (["python3", "qemu-system-x86"], "Shut down the virtual machine or end", "lock_timeout"),
        ([""], "Shut down the virtual machine or end", "lock_timeout"),
        ([], "Shut down the virtual machine or end", "lock_timeout"),
    ],
)
def test_a_holder_is_dealt_with_as_what_it_is(names: list[str], words: str, other: str) -> None:
    assert words in holders._way(names)
    assert other not in holders._way(names)


# ---- the list ------------------------------------------------------------------------------------------------


def test_each_way_is_of_use_and_has_two_voices() -> None:
    sources = [path.read_text() for room in ("sandbox", "plugins/module_utils/_module") for path in rooms(room)]
    text = "\n".join(sources)
    for name, way in advice.WAYS.items():
        assert f"{{{name}}}" in text or f'"{name}"' in text.replace(f'    "{name}": ', "") or f"'{name}'" in text, name
        if name in COMMANDS:
            assert not re.search(r'"airlock|(^|[ (])--?[a-zA-Z]', way), way
            assert "qcow2_" not in COMMANDS[name]
            assert not re.search(r"\b(true|state)\b", COMMANDS[name]), COMMANDS[name]
    assert COMMANDS.keys() < advice.WAYS.keys()


@pytest.mark.parametrize("code", sorted(chain_refusals.WORDINGS))
def test_a_module_names_no_option_of_the_command_line(code: str) -> None:
    header = refused.ResultHeader(CODES[code], text=bytes(1024))
    module = chain_refusals.from_layer_refusal(header, "d").message
    with advice.spoken(COMMANDS):
        command = chain_refusals.from_layer_refusal(header, "d").message
    assert not re.search(r"(^|[ (])--[a-z]", module), module
    assert "qcow2_" not in command
    assert "allow_resize" not in command
    assert chain_refusals.from_layer_refusal(header, "d").message == module


def _voices(function: t.Callable[[], object]) -> tuple[str, str]:
    """What a module and the command line say of the same failure."""
    with pytest.raises(errors.AirlockError) as caught:
        function()
    return caught.value.message, refusal(function).message


def test_options_of_chains_are_called_what_they_are(tmp_path: pathlib.Path) -> None:
    raw(tmp_path / "base")
    top = str(overlay(tmp_path / "top", b"base", b""))
    module, command = _voices(lambda: chain.open_chain(top))
    assert "State it with backing_format:" in module
    assert "--backing-format (airlock rebase: --unrecorded-format)" in command
    airlock(["airlock", "info", "--chain", "--backing-format", "raw", top])
    airlock(["airlock", "rebase", "-b", "", "--unrecorded-format", "raw", top])
    for names in (["/dev/null"], [str(tmp_path / "nothing")]):
        module, command = _voices(lambda names=names: chain.open_chain(top, allowed_roots=names))  # type: ignore[misc]
        assert "in allowed_roots" in module
        assert "in the paths of --allowed-root" in command
    for rule in reference_refusals.WORDINGS:
        for role in ("backing", "data_file"):
            reference = Reference(b"name", role, "image")
            error = reference_refusals.NameRuleError(rule)
            module = reference_refusals.refusal(reference, error, "name").message
            with advice.spoken(COMMANDS):
                command = reference_refusals.refusal(reference, error, "name").message
            assert "allowed_roots" not in command
            assert "--allowed" not in module
    module, command = (advice.say("more_time"), _voices(lambda: _raise(faults.time_over(Limits(seconds=60.0))))[1])
    assert "timeout" in module
    assert "Allow more time" not in command, "it has no such option"


def _raise(error: Exception) -> t.NoReturn:
    raise error


def test_a_run_without_an_answer_says_what_next() -> None:
    for status in (-1, 0, 9, 11, 31):
        assert re.search(r"Run it again|report", faults.vanished(status).message), status
    for layers in (0, 1):
        message = answers.Message(answers.FAILED, layers, 0, 0, 0, 0, 0, 0, 0, 0)
        assert "Run it again" in faults.failure(message, b"text", Limits(seconds=60.0)).message


def test_every_field_is_one() -> None:
    """A way that is misspelt would be an exception in the place of a message."""
    for code in chain_refusals.WORDINGS:
        for disk in (0, 1):
            chain_refusals.from_layer_refusal(refused.ResultHeader(CODES[code], disk, text=bytes(1024)), "d")


def rooms(room: str) -> list[pathlib.Path]:
    return [path for path in sorted((TOP / room).rglob("*.py")) if not path.name.startswith(("_guest_", "_abi"))]


def texts(path: pathlib.Path) -> t.Iterator[tuple[int, str]]:
    """Every text of a Python file that is no docstring, as one where it is put together."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.JoinedStr, ast.BinOp)):
            parts = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
            if not inner & {id(part) for part in parts}:
                yield node.lineno, "".join(str(part.value) for part in parts if isinstance(part.value, str))
            inner |= {id(part) for part in parts}
        elif isinstance(node, ast.Constant) and id(node) not in inner | docstrings:
            yield node.lineno, node.value.decode("latin-1") if isinstance(node.value, bytes) else str(node.value)


OURS = [*rooms("sandbox"), *rooms("plugins/module_utils/_module"), *rooms("plugins/plugin_utils")]
# qemu-img's own words, which stand where it would say them.
QEMUS = ("You can force-remove", "Copyright")


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_no_program_without_a_sandbox_is_named_without_trust(path: pathlib.Path) -> None:
    for line, text in texts(path):
        if NAMED.search(text) and not any(words in text for words in QEMUS):
            assert TRUST.search(text) or "reads every file" in text, f"{path.name}:{line}: {text}"


def test_no_role_or_playbook_advises_one_without_trust() -> None:
    """Their messages: msg, fail_msg, success_msg and what is put together for them."""
    for path in sorted([*(TOP / "roles").rglob("*.yml"), *(TOP / "playbooks").rglob("*.yml")]):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines, 1):
            comment_or_command = line.lstrip().startswith(("#", "- name:", "ansible.builtin.command:"))
            if NAMED.search(line) and not comment_or_command:
                assert TRUST.search("\n".join(lines[max(0, number - 4) : number + 3])), f"{path}:{number}"
