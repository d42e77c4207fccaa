# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Bitmaps that are damaged: the image is read, not changed, and whole again once they are removed; qemu-img judges."""

from __future__ import annotations

import os
import pathlib
import random
import struct

import pytest

from sandbox import errors
from sandbox.images.bitmaps import Action, Bitmap, BitmapChange, change_bitmap, list_bitmaps
from sandbox.images.image import Image
from sandbox.images.info import image_info
from sandbox.images.snapshot_changes import create_snapshot
from sandbox.images.snapshots import list_snapshots
from tests.support import qemu
from tests.support.damaged_bitmaps import DAMAGES, Damaged, number
from tests.support.patch import Patch
from tests.support.qcow2 import Qcow2

LONG = os.environ.get("AIRLOCK_LONG") == "1"
SEEDS = 400 if LONG else 40
BATCH = 10


@pytest.fixture(params=["cluster_size=4096", "cluster_size=65536,refcount_bits=64"])
def image(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Damaged:
    return Damaged(tmp_path / "disk.qcow2", request.param)


def remove(path: str, dry_run: bool = False) -> BitmapChange:
    with Image.open(path, writable=not dry_run) as opened:
        return change_bitmap(opened, b"", [Action.remove_damaged()], dry_run)


def facts(bitmaps: tuple[Bitmap, ...]) -> list[Bitmap]:
    return sorted(bitmaps)


def removed(image: Damaged) -> BitmapChange:
    """Read, refused to whoever changes it, foreseen, removed; once."""
    before = image.bytes()
    with Image.open(image.path, writable=True) as opened:
        assert image_info(opened).virtual_size == 8 << 20
        assert [each.name for each in list_snapshots(opened).snapshots] == [b"keep"]
        damage = list_bitmaps(opened).damage
    foreseen = remove(image.path, dry_run=True)
    assert image.bytes() == before
    if foreseen.changed:
        with Image.open(image.path, writable=True) as opened, pytest.raises(errors.RefusalError) as caught:
            create_snapshot(opened, b"new", qemu.DATE)
        assert not caught.value.modified
        assert "remove what is damaged" in caught.value.message
        assert image.bytes() == before
    else:
        assert damage == ""
    done = remove(image.path)
    assert done[:-1] == foreseen[:-1]
    checked = qemu.check(image.path)
    if done.changed:
        assert checked.clean, checked.text
        assert done.leaked_clusters == 0
    else:  # bits that are gone, and nothing that would show it
        assert checked.code in (0, 3), checked.text
    assert image.shown() == image.contents
    after = image.bytes()
    with Image.open(image.path) as opened:
        listed = list_bitmaps(opened)
    assert (facts(listed.bitmaps), listed.damage) == (facts(done.bitmaps), "")
    again = remove(image.path)
    assert (again.changed, again.freed_clusters, again.bitmaps) == (False, 0, done.bitmaps)
    assert image.bytes() == (after if done.changed else before)
    return done


@pytest.mark.parametrize("case", DAMAGES)
def test_each_field(image: Damaged, case: str) -> None:
    patcher, lost = DAMAGES[case]
    image.write(*patcher(image))
    done = removed(image)
    assert done.changed
    if lost is not None:
        assert list(done.bitmaps) == [bitmap for bitmap in image.bitmaps if bitmap.name not in lost]
    with Image.open(image.path, writable=True) as opened:
        create_snapshot(opened, b"new", qemu.DATE)
    assert qemu.check(image.path).clean


def test_nothing_is_damaged(image: Damaged) -> None:
    """Inconsistent ones are not, nor are those of one name."""
    with Patch(image.path) as patch:
        patch.write(image.entries[0][0] + 12, number("I", 1))
    before = image.bytes()
    done = remove(image.path)
    assert (done.changed, done.freed_clusters, len(done.bitmaps)) == (False, 0, 3)
    assert image.bytes() == before


def test_without_bitmaps(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "disk.qcow2")
    qemu.create(path, "8M")
    before = pathlib.Path(path).read_bytes()
    assert not remove(path).changed
    assert pathlib.Path(path).read_bytes() == before


def test_what_an_unknown_extension_may_have_stays(image: Damaged) -> None:
    """Then nobody knows whose a cluster is that nothing else refers to."""
    with Qcow2(image.path) as found:
        kept = [(kind, data) for _at, kind, data in found.extensions()]
        start = found.header["header_length"]
    content = b"".join(
        struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")
        for kind, data in [*kept, (0x11111111, b"what is it")]
    )
    image.write(start, content + bytes(8))
    image.write(image.directory, bytes(96))
    done = remove(image.path)
    assert (done.changed, done.bitmaps, done.freed_clusters) == (True, (), 0)
    assert done.leaked_clusters > 0
    assert qemu.check(image.path).code == 3
    assert image.shown() == image.contents


def test_image_that_is_damaged_elsewhere(image: Damaged) -> None:
    """Is not touched: nothing could be told to be the bitmaps' alone."""
    image.write(image.directory, bytes(96))
    with Patch(image.path) as patch:
        patch.refcount(image.active_l1 // image.cluster, 0)
    before = image.bytes()
    with pytest.raises(errors.InconsistentImageError) as caught:
        remove(image.path)
    assert caught.value.code == "refcount_too_low"
    assert image.bytes() == before


def mutate(image: Damaged, seed: int) -> None:
    """Some bytes of the extension, the directory and the tables."""
    rng = random.Random(seed)
    spots = [(image.extension, 24), (image.directory, 96), *((place, 32) for _entry, place in image.entries)]
    words = (0, 1, 0xFF, 1 << 40, image.active_l1, image.data, image.directory, image.entries[2][1], image.cluster)
    for _step in range(rng.randrange(1, 5)):
        start, length = rng.choice(spots)
        if rng.random() < 0.5:
            image.write(start + rng.randrange(length), bytes([rng.randrange(256)]))
        else:
            image.write(start + 4 * rng.randrange(length // 4 - 1), number("Q", rng.choice(words)))


@pytest.mark.parametrize("first", range(1, SEEDS + 1, BATCH))
def test_any_damage(tmp_path: pathlib.Path, first: int) -> None:
    """Whatever the bytes of the bitmaps' own structures are, the rest comes out whole."""
    sound = Damaged(tmp_path / "disk.qcow2", "cluster_size=4096")
    original = sound.bytes()
    changed = 0
    for seed in range(first, first + BATCH):
        pathlib.Path(sound.path).write_bytes(original)
        mutate(sound, seed)
        changed += removed(sound).changed
    assert changed > 0
