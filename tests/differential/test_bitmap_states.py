# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bitmaps at the edges of what the format and qemu-img allow, compared by meaning."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from sandbox import errors
from sandbox.images.bitmaps import Action, change_bitmap, list_bitmaps
from sandbox.images.image import Image
from tests.support import qemu
from tests.support.bitmap_chains import BitmapArena, BitmapTally
from tests.support.bitmap_drivers import BitmapCall, CliBitmaps, PythonBitmaps, QemuBitmaps
from tests.support.bitmaps import bitmaps_of, peak_memory_of_list, stale_names
from tests.support.chains import Arena
from tests.support.compare import differences
from tests.support.nbd import extents as extents_by_nbd
from tests.support.patch import Patch
from tests.support.qcow2 import BITMAPS_EXTENSION, Qcow2

LUKS = ["--object", "secret,id=key,data=abc"]
MEMORY_MAX = 160 << 20  # bytes, whatever the image


@pytest.fixture
def lists(arena: Arena) -> BitmapArena:
    return BitmapArena(arena.directory, PythonBitmaps(), BitmapTally())


def call(name: bytes, *actions: str, granularity: int = 0) -> BitmapCall:
    """Actions in words: "add", "merge other"."""
    pairs = ((kind, source.encode()) for kind, _unused, source in (action.partition(" ") for action in actions))
    return BitmapCall(name, tuple(pairs), granularity)


def refused_like_before(path: str, name: bytes, actions: list[Action]) -> errors.AirlockError:
    """The refusal of a list, which leaves the file as it was."""
    before = path + ".before"
    qemu.copy(path, before)
    with Image.open(path, writable=True) as image, pytest.raises(errors.AirlockError) as caught:
        change_bitmap(image, name, actions)
    assert differences(before, path) == []
    return caught.value


@pytest.mark.parametrize("granularity", [512, 4096, 65536, 1 << 20])
@pytest.mark.parametrize("size", [512, 1024, 4096, 65536 - 512, (1 << 20) + 512, (10 << 20) - 100, (10 << 20) - 512])
def test_disks_of_odd_sizes(lists: BitmapArena, size: int, granularity: int) -> None:
    """Also of a size that is no number of whole sectors: QEMU leaves the rest out."""
    qemu.create(lists.disk, -(-size // 512) * 512, "cluster_size=512")
    with Patch(lists.disk) as patch:
        patch.header(size=size)
    lists.agree(call(b"a", "add", granularity=granularity))
    last = size // 512 * 512 - 512
    qemu.io(lists.disk, "write -P 1 0 512", f"write -P 2 {last} 512")
    for other in (512, 1024, 16384, 1 << 21):
        lists.agree(call(b"%d" % other, "add", "merge a", granularity=other))
        lists.agree(call(b"a", f"merge {other}"))
    lists.agree(call(b"a", "clear", "merge 1024", "disable"))


def test_the_largest_granularity(lists: BitmapArena) -> None:
    qemu.create(lists.disk, 10 << 20)
    lists.agree(call(b"coarse", "add", granularity=1 << 31))
    qemu.io(lists.disk, "write -P 1 5M 64k")
    lists.agree(call(b"fine", "add", "merge coarse", granularity=512))
    lists.agree(call(b"coarse", "clear", "merge fine"))
    assert extents_by_nbd(lists.disk, b"coarse") == [(0, 10 << 20)]


def test_a_bitmap_of_many_windows(lists: BitmapArena) -> None:
    """16 MiB of bits; runs that end where windows of 2 MiB do, and all of it at once."""
    size = 64 << 30
    qemu.create(lists.disk, size, "cluster_size=65536")
    lists.agree(call(b"fine", "add", granularity=512))
    window = (2 << 20) * 8 * 512
    qemu.io(lists.disk, *(f"write -z {i * window - 4096} 8k" for i in (1, 2, 7)), f"write -z {size - 512} 512")
    lists.agree(call(b"coarse", "add", "merge fine", "disable", granularity=65536))
    lists.agree(call(b"again", "add", "merge coarse", granularity=512))
    qemu.io(lists.disk, *(f"write -z {i << 30} 1G" for i in range(8, 12)))
    lists.agree(call(b"again", "merge fine"))
    lists.agree(call(b"coarse", "merge again", "merge fine"))
    assert extents_by_nbd(lists.disk, b"again") == extents_by_nbd(lists.disk, b"coarse")


def test_bits_that_do_not_fit(lists: BitmapArena) -> None:
    """A disk of 64 TiB: 512 bytes to a bit are too many bits, 64 KiB are not."""
    qemu.create(lists.disk, "64T", "cluster_size=2M")
    lists.agree(call(b"b", "add", granularity=512), 1)
    lists.agree(call(b"b", "add", granularity=65536))


def test_a_thousand_actions(lists: BitmapArena) -> None:
    qemu.create(lists.disk, 1 << 20)
    lists.agree(call(b"b", "add", *["disable", "enable", "merge b"] * 341))
    refusal = refused_like_before(lists.disk, b"b", [Action.clear()] * 1025)
    assert refusal.code == "too_many_actions"


def test_63_sources(arena: Arena, tmp_path: Path) -> None:
    """Every image that a call can take, each opened once."""
    qemu.create(arena.disk, 1 << 20)
    sources = []
    for i in range(63):
        path = str(tmp_path / f"source{i}.qcow2")
        qemu.create(path, 1 << 20, f"cluster_size={512 << i % 5}")
        qemu.must(["qemu-img", "bitmap", "--add", "-g", "512", path, "b"])
        qemu.io(path, f"write {i * 16384} 512")
        sources.append(path)
    opened = [Image.open(path) for path in sources]
    try:
        with Image.open(arena.disk, writable=True) as image:
            merges = [Action.merge(b"b", source) for source in opened]
            change_bitmap(image, b"all", [Action.add(512), *merges])
    finally:
        for source in opened:
            source.close()
    assert extents_by_nbd(arena.disk, b"all") == [(i * 16384, 512) for i in range(63)]
    assert qemu.check(arena.disk).clean


@pytest.mark.parametrize("room", range(-32, 48, 8))
def test_a_header_that_is_nearly_full(arena: Arena, room: int) -> None:
    """With clusters of 512 bytes: a backing name that leaves so many bytes more than the extension takes."""
    qemu.create(os.path.join(arena.directory, "base.qcow2"), 1 << 20)
    # 112 bytes of header, the format's extension with 16, the end's 8, ours with 32.
    length = 512 - 112 - 16 - 8 - 32 - room
    name = "./" * ((length - 10) // 2) + "/base.qcow2"[(length - 10) % 2 == 0 :]
    qemu.create(arena.disk, 1 << 20, "cluster_size=512", name)
    theirs = os.path.join(arena.directory, "theirs.qcow2")
    qemu.copy(arena.disk, theirs)
    expected = QemuBitmaps().run(theirs, call(b"b", "add"))
    if expected.code:
        refusal = refused_like_before(arena.disk, b"b", [Action.add()])
        assert refusal.code == "bitmap_header_full"
        assert "No space left" in expected.message
        return
    lists = BitmapArena(arena.directory, PythonBitmaps(), BitmapTally())
    lists.agree(call(b"b", "add"))
    lists.agree(call(b"c", "add"))
    qemu.io(lists.disk, "write 0 4k")
    lists.agree(call(b"b", "remove"))
    lists.agree(call(b"c", "remove"))
    assert room >= 0


def test_a_disk_of_no_bytes(lists: BitmapArena) -> None:
    qemu.create(lists.disk, 0)
    lists.agree(call(b"b", "add"), 1)
    assert refused_like_before(lists.disk, b"b", [Action.add()]).code == "bitmap_empty_disk"


@pytest.mark.parametrize("cluster_size", [512, 65536])
def test_the_last_one_takes_its_traces_along(lists: BitmapArena, cluster_size: int) -> None:
    """No extension, no autoclear bit, no warning afterwards, no cluster more than before."""
    qemu.create(lists.disk, 1 << 20, f"cluster_size={cluster_size}")
    qemu.io(lists.disk, "write 0 64k")
    with Qcow2(lists.disk) as image:
        used = sum(1 for cluster in range(4096) if image.refcount(cluster))
    for name in (b"a", b"b"):
        lists.agree(call(name, "add", granularity=512))
        qemu.io(lists.disk, "write 3k 9k")
    for name in (b"a", b"b"):
        lists.agree(call(name, "remove"))
    with Qcow2(lists.disk) as image:
        assert image.bitmaps_extension() is None
        assert not any(kind == BITMAPS_EXTENSION for _unused, kind, _unused in image.extensions())
        assert image.header["autoclear_features"] == 0
        assert used == sum(1 for cluster in range(4096) if image.refcount(cluster))
    checked = qemu.run(["qemu-img", "check", lists.disk])
    assert (checked.code, checked.errors) == (0, b"")


def stale_image(path: str) -> None:
    qemu.create(path, 1 << 20, "cluster_size=512")
    for name in ("a", "b"):
        qemu.must(["qemu-img", "bitmap", "--add", "-g", "512", path, name])
    qemu.io(path, "write 0 64k")
    with Patch(path) as patch:
        patch.header(autoclear_features=0)


def test_stale_bitmaps_are_told_and_go(lists: BitmapArena) -> None:
    """qemu-img says that there is no such bitmap, and leaks what the stale ones held; here one frees it that way."""
    stale_image(lists.disk)
    with Image.open(lists.disk) as image:
        assert [(b.name, b.stale, b.dirty_count) for b in list_bitmaps(image).bitmaps] == [
            (b"a", True, None),
            (b"b", True, None),
        ]
    for kind in ("clear", "enable", "disable", "merge b"):
        assert refused_like_before(lists.disk, b"a", [_action(kind)]).code in (
            "bitmap_not_found",
            "bitmap_inconsistent",
        )
    assert refused_like_before(lists.disk, b"c", [Action.remove()]).code == "bitmap_not_found"
    with Image.open(lists.disk, writable=True) as image:
        change = change_bitmap(image, b"a", [Action.remove()])
        assert change.changed
        assert change.freed_clusters > 0
        assert not change_bitmap(image, b"new", [Action.add(), Action.remove()]).changed
    assert stale_names(lists.disk) == []
    checked = qemu.run(["qemu-img", "check", lists.disk])
    assert (checked.code, checked.errors) == (0, b"")


def test_stale_bitmaps_give_way_to_new_ones(lists: BitmapArena) -> None:
    stale_image(lists.disk)
    lists.agree(call(b"a", "add", granularity=512))
    assert [bitmap.name for bitmap in bitmaps_of(lists.disk)] == [b"a"]
    assert qemu.check(lists.disk).clean


def _action(words: str) -> Action:
    kind, _unused, source = words.partition(" ")
    simple = {"clear": Action.clear, "enable": Action.enable, "disable": Action.disable, "remove": Action.remove}
    return Action.merge(source.encode()) if source else simple[kind]()


def test_an_encrypted_image_needs_no_key(arena: Arena) -> None:
    """Bitmaps are not encrypted; qemu-img wants the key all the same. It goes on with what we leave."""
    options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
    qemu.must(["qemu-img", "create", "-q", *LUKS, "-f", "qcow2", "-o", options, arena.disk, "8M"])
    with Image.open(arena.disk, writable=True) as image:
        change_bitmap(image, b"a", [Action.add(4096)])
    opened = f"driver=qcow2,file.filename={arena.disk},encrypt.key-secret=key"
    qemu.must(["qemu-io", *LUKS, "--image-opts", opened, "-c", "write 1M 64k"])
    qemu.must(["qemu-img", "bitmap", *LUKS, "--image-opts", "--add", opened, "b"])
    with Image.open(arena.disk, writable=True) as image:
        change_bitmap(image, b"b", [Action.merge(b"a"), Action.disable()])
    one, two = bitmaps_of(arena.disk)
    assert one.dirty == ((256, 16),)
    assert two.dirty == ((16, 1),)
    assert qemu.run(["qemu-img", "check", *LUKS, "--image-opts", opened]).code == 0


def test_as_many_as_the_format_holds(arena: Arena) -> None:
    """65,535 bitmaps: listed within the memory that any image may take; one more is refused, one less is possible."""
    qemu.create(arena.disk, 1 << 20, "cluster_size=4096")
    qemu.must(["qemu-img", "bitmap", "--add", arena.disk, "first"])
    count, size = 65535, 4096
    with Patch(arena.disk) as patch:
        with patch.image() as image:
            place = next(offset for offset, kind, _unused in image.extensions() if kind == BITMAPS_EXTENSION) + 8
            block_entries = image.block_entries
            table_at = image.header["refcount_table_offset"]
        start = 1 << 20  # in clusters of a part of the file of their own, behind new refcount blocks
        directory = b"".join(
            struct.pack(">QIIBBHI", start + i * size, 1, 0, 1, 16, 5, 0) + b"%05d\0\0\0" % i for i in range(count)
        )
        where = start + count * size
        last = where // size + -(-len(directory) // size)
        patch.write(where, directory)
        patch.truncate(last * size)
        blocks = range(1, last // block_entries + 1)
        for i, block in enumerate(blocks):
            patch.u64(table_at + 8 * block, (128 + i) * size)
        patch.write(place, struct.pack(">IIQQ", count, 0, len(directory), where))
        counts = {**{128 + i: 1 for i in range(len(blocks))}, **dict.fromkeys(range(start // size, last), 1)}
        data = bytearray(2 * (last + block_entries))
        with patch.image() as image:
            for cluster in range(start // size):
                used = image.refcount(cluster) if cluster < block_entries else 0
                struct.pack_into(">H", data, 2 * cluster, counts.get(cluster, used))
        for cluster in range(start // size, last):
            struct.pack_into(">H", data, 2 * cluster, 1)
        with patch.image() as image:
            offsets = image.refcount_blocks()
        for block in range(len(blocks) + 1):
            patch.write(offsets[block], bytes(data[block * size : (block + 1) * size]))
        patch.settle()
    with Image.open(arena.disk) as image:
        found = list_bitmaps(image)
    assert len(found.bitmaps) == count
    assert peak_memory_of_list(arena.disk) < MEMORY_MAX
    assert refused_like_before(arena.disk, b"new", [Action.add()]).code == "too_many_bitmaps"
    with Image.open(arena.disk, writable=True) as image:
        change = change_bitmap(image, b"00007", [Action.remove(), Action.add(), Action.merge(b"00008")], counts=False)
        assert len(change.bitmaps) == count
        assert change.bitmaps[-1].name == b"00007"
    with Qcow2(arena.disk) as reader:
        assert [entry.name for entry in reader.bitmap_directory()][6:8] == [b"00006", b"00008"]


@pytest.mark.parametrize("words", ["add", "remove", "merge b", "clear"])
def test_version_2_has_no_place_for_bitmaps(arena: Arena, words: str) -> None:
    """In the words of qemu-img."""
    qemu.create(arena.disk, 1 << 20, "compat=0.10")
    lists = BitmapArena(arena.directory, CliBitmaps(), BitmapTally())
    lists.agree(call(b"a", words), 1)
