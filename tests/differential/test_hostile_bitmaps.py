# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hostile images with bitmaps against every bitmap operation: no hang, no harm.

A refusal leaves the file as it was, and its message is short and printable. What succeeds changes only what the
operation is about, and does not make the image worse than qemu-img check found it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from sandbox import errors
from sandbox.images.bitmaps import list_bitmaps
from sandbox.images.image import Image
from tests.support import qemu
from tests.support.bitmap_chains import BitmapArena, BitmapTally
from tests.support.bitmap_drivers import BitmapCall, PythonBitmaps, QemuBitmaps
from tests.support.bitmaps import bitmaps_of, peak_memory_of_list
from tests.support.chains import Arena
from tests.support.compare import differences
from tests.support.hostile import LIMITS, check_refusal
from tests.support.hostile_bitmaps import ALL, CHANGES, ROWS, operate_on_bitmaps, with_bitmaps
from tests.support.patch import Patch
from tests.support.untouched import what_else_changed

LONG = os.environ.get("AIRLOCK_LONG") == "1"
MEMORY_MAX = 160 << 20  # bytes, whatever the image
NAMED = {"remove the last": b"frozen", "enable": b"frozen", "add": b"new"}


def severity(path: str) -> int:
    """0 clean or only leaks, 1 corrupt, 2 cannot even be opened."""
    return {0: 0, 3: 0, 2: 1}.get(qemu.check(path).code, 2)


Damage = Callable[[str], tuple[str, str, str]]


@pytest.fixture
def damaged_image(arena: Arena, sound_bitmaps: Callable[[str], str]) -> Damage:
    """damaged_image(row): a hostile image, a copy of it, and a sound image."""

    def make(row: str) -> tuple[str, str, str]:
        path, before, other = (os.path.join(arena.directory, f"{name}.qcow2") for name in ("ours", "before", "other"))
        sound = sound_bitmaps(ROWS[row].options)
        qemu.copy(sound, path)
        qemu.copy(sound, other)
        with Patch(path) as patch:
            ROWS[row].lie(patch)
        qemu.copy(path, before)
        return path, before, other

    return make


@pytest.mark.parametrize("verb", sorted(ALL))
@pytest.mark.parametrize("name", ROWS)
def test_known_lies(damaged_image: Damage, sound_bitmaps: Callable[[str], str], name: str, verb: str) -> None:
    row = ROWS[name]
    path, before, other = damaged_image(name)
    error = operate_on_bitmaps(path, verb, other)
    if error is not None:
        check_refusal(error)
        assert verb not in row.allowed, f"{verb} was refused: {error}"
    if error is not None or verb not in CHANGES:
        assert differences(path, before) == []
        assert error is None or differences(other, sound_bitmaps(row.options)) == []
    else:
        assert severity(path) <= severity(before)
        assert what_else_changed(before, path, NAMED.get(verb, b"b0")) == ""
    if verb == "merge from it" and error is None:
        assert qemu.check(other).clean
    assert error is not None or verb not in row.refused, f"{verb} was not refused"


@pytest.mark.parametrize("name", ["10,000 bitmaps on 64 GiB", "65,535 bitmaps, one table", "table of 2^27 entries"])
def test_what_claims_much_costs_little(damaged_image: Damage, name: str) -> None:
    """Of qemu-img info the first wants 160 GB."""
    path, _unused, _unused = damaged_image(name)
    with Image.open(path) as image:
        try:
            list_bitmaps(image, limits=LIMITS)
        except errors.AirlockError as error:
            check_refusal(error)
            return
    assert peak_memory_of_list(path) < MEMORY_MAX


ODD = {
    "all ones": [("clear",), ("merge", b"frozen"), ("merge", b"b0"), ("enable",), ("remove",)],
    "bits behind the disk's end": [("merge", b"a second one"), ("disable",), ("clear",)],
    "a bitmap of one name in different clusters": [("merge", b"a second one"), ("merge", b"b0")],
    "granularity 2^31": [("merge", b"a second one"), ("disable",), ("clear",)],
    "in use": [("remove",), ("clear",), ("merge", b"frozen"), ("add",)],
    "stale": [("add",), ("clear",), ("merge", b"frozen")],
    "stale, entries name guest data": [("add",)],
    "stale, extension of nonsense": [("add",)],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_but_sound(arena: Arena, damaged_image: Damage, name: str) -> None:
    """What other writers may leave is worked with as qemu-img does."""
    lists = BitmapArena(arena.directory, PythonBitmaps(), BitmapTally())
    path, before, _unused = damaged_image(name)
    for kind, *source in ODD[name]:
        for target in (b"b0", b"frozen"):
            qemu.copy(before, path)
            os.replace(path, lists.disk)
            report = lists.compare_call(BitmapCall(target, ((kind, *source, b"")[:2],)))
            assert report == "", f"{kind} {source} on {target!r}: {report}"


def test_two_of_one_name_are_removed_together(damaged_image: Damage) -> None:
    """QEMU cannot open the image before; afterwards it finds it clean."""
    path, before, _unused = damaged_image("two of one name")
    assert severity(before) == 2
    assert operate_on_bitmaps(path, "remove", path) is None
    assert [bitmap.name for bitmap in bitmaps_of(path)] == [b"frozen"]
    assert qemu.check(path).clean


def damage(path: str, rng: random.Random) -> str:
    """Changes one word of the header's extension, the directory, a table, or bits; says what it did."""
    with Patch(path) as patch:
        with patch.image() as image:
            clusters = {
                cluster
                for where, kind, _unused in image.references()
                if kind.startswith("bitmap")
                for cluster in where
                if cluster * 4096 < image.length
            }
            cluster = rng.choice([0, *sorted(clusters)])
            start = image.extensions()[-1][0] if cluster == 0 else cluster * 4096
            length = 40 if cluster == 0 else 4096
            used = [i for i in range(0, length, 8) if any(image.read(start + i, 8))] or [0]
            place = start + (rng.choice(used) if rng.random() < 0.9 else rng.randrange(length // 8) * 8)
            old = int.from_bytes(image.read(place, 8), "big")
        ways = {
            "bit flipped": old ^ 1 << rng.randrange(64),
            "zeroed": 0,
            "all ones": (1 << 64) - 1,
            "other cluster": old & ~0x00FFFFFFFFFFF000 | rng.randrange(64) << 12,
            "one more": (old + 1) % (1 << 64),
            "random": rng.randrange(1 << 64),
        }
        way = rng.choice(sorted(ways))
        patch.u64(place, ways[way])
        return f"{place:#x} (cluster {cluster:#x}): {way}, {old:#018x} -> {ways[way]:#018x}"


@pytest.mark.parametrize("seed", range(600 if LONG else 50))
def test_random_damage(arena: Arena, seed: int) -> None:
    """What we refuse stays as it was; where we succeed the image is no worse, and qemu-img, where it
    succeeds as well, comes to the same."""
    rng = random.Random(seed)
    lists = BitmapArena(arena.directory, PythonBitmaps(), BitmapTally())
    damaged = os.path.join(arena.directory, "damaged.qcow2")
    with_bitmaps(damaged, rng.choice(("", ",refcount_bits=8", ",lazy_refcounts=on")))
    story = "; ".join(damage(damaged, rng) for _unused in range(rng.choice((1, 1, 2))))
    found = qemu.check(damaged)
    calls = [(b"new", "add"), (b"b0", "remove"), (b"b0", "clear"), (b"frozen", "enable"), (b"b0", "merge")]
    for name, kind in calls:
        qemu.copy(damaged, lists.disk)
        call = BitmapCall(name, ((kind, b"a second one" if kind == "merge" else b""),))
        before, ours = lists.path("before.qcow2"), lists.path("ours.qcow2")
        qemu.copy(damaged, before)
        qemu.copy(damaged, ours)
        if found.code in (0, 3) and QemuBitmaps().run(ours, call).code == 0:
            report = lists.compare_call(call)
            assert report == "", f"{story}: {call}: {report}"
            continue
        qemu.copy(damaged, ours)
        result = PythonBitmaps().run(ours, call)
        told = f"{story}: {call}: check {found.code}, ours {result.message}"
        if result.code:
            assert differences(ours, before) == [], told
        else:
            assert severity(ours) <= severity(before), told
            assert what_else_changed(before, ours, name) == "", told


def test_a_name_ends_at_its_first_nul(damaged_image: Damage) -> None:
    """As QEMU reads it; and by that name the bitmap can be removed."""
    path, _unused, _unused = damaged_image("name with a NUL")
    with Image.open(path) as image:
        names = [bitmap.name for bitmap in list_bitmaps(image, limits=LIMITS).bitmaps]
    assert names == [b"a second one", b"frozen", b"b0"]
    assert operate_on_bitmaps(path, "remove", path) is None
    assert [bitmap.name for bitmap in bitmaps_of(path)] == [b"a second one", b"frozen"]
    assert qemu.check(path).clean
