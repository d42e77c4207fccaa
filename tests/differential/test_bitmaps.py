# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that carry bitmaps: create and delete leave them valid and where they are, apply is refused.

qemu-img moves every bitmap whenever it opens an image, so here results are compared by meaning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from sandbox import errors, operations
from sandbox.cli import qemu_words
from tests.support import qemu
from tests.support.chains import Arena
from tests.support.compare import differences
from tests.support.divergences import differs_in_effect
from tests.support.drivers import QemuDriver, SnapshotCall
from tests.support.hostile import check_refusal, operate
from tests.support.hostile_bitmaps import CHANGES, ROWS, with_bitmaps
from tests.support.patch import Patch
from tests.support.qcow2 import OFFSET_MASK, Qcow2


def bitmap_facts(path: str) -> list[dict[str, object]]:
    facts = json.loads(qemu.must(["qemu-img", "info", "--output", "json", "-f", "qcow2", path]).output)
    bitmaps: list[dict[str, object]] = facts["format-specific"]["data"].get("bitmaps", [])
    return bitmaps


def dirty_bits(path: str) -> dict[bytes, list[bytes]]:
    """The stored bits of each bitmap, a cluster at a time; b"" where there is no cluster."""
    with Qcow2(path) as image:
        return {
            bitmap.name: [
                image.read(entry & OFFSET_MASK, image.cluster_size) if entry & OFFSET_MASK else b""
                for entry in image.table(bitmap.table, bitmap.table_entries)
            ]
            for bitmap in image.bitmap_directory()
        }


def bitmap_bytes(path: str) -> dict[int, bytes]:
    """Everything that bitmaps own, by offset, and the header's cluster without its snapshot fields."""
    with Qcow2(path) as image:
        found = {
            cluster: image.read(cluster * image.cluster_size, image.cluster_size)
            for clusters, kind, _unused in image.references()
            if kind.startswith("bitmap")
            for cluster in clusters
        }
        header = bytearray(image.read(0, image.cluster_size))
        header[60:72] = bytes(12)
        found[0] = bytes(header)
        return found


@pytest.mark.parametrize("options", ["", ",refcount_bits=32", ",extended_l2=on,cluster_size=16384"])
def test_create_and_delete(arena: Arena, options: str) -> None:
    """Same snapshots and contents as qemu-img's, the bitmaps' clusters not touched, clean to the last refcount."""
    theirs = os.path.join(arena.directory, "theirs.qcow2")
    with_bitmaps(arena.disk, options)
    qemu.copy(arena.disk, theirs)
    facts, bits, owned = bitmap_facts(arena.disk), dirty_bits(arena.disk), bitmap_bytes(arena.disk)
    assert len(facts) == 3
    steps = ["-c s1", "write", "-c s2", "-d s1", "-c s3", "-d s2", "-d s3"]
    for step in steps:
        if step == "write":
            for path in (arena.disk, theirs):
                qemu.io(path, "write -P 9 512k 64k", "write -P 8 2M 4k")
            facts, bits, owned = bitmap_facts(arena.disk), dirty_bits(arena.disk), bitmap_bytes(arena.disk)
            continue
        flag, _unused, name = step.partition(" ")
        call = SnapshotCall({"-c": "create", "-d": "delete"}[flag], name.encode())
        assert arena.driver.run(arena.disk, call).code == QemuDriver().run(theirs, call).code == 0
        assert qemu.check(arena.disk).clean
        assert bitmap_facts(arena.disk) == facts == bitmap_facts(theirs)
        assert dirty_bits(arena.disk) == bits == dirty_bits(theirs)
        assert bitmap_bytes(arena.disk) == owned
        assert differs_in_effect(theirs, arena.disk) == ""


def test_apply_is_refused(arena: Arena) -> None:
    """Before the lookup, as qemu-img does; but nothing is written, and the message names a bitmap."""
    with_bitmaps(arena.disk)
    assert arena.driver.run(arena.disk, SnapshotCall("create", b"s1")).code == 0
    before = os.path.join(arena.directory, "before.qcow2")
    qemu.copy(arena.disk, before)
    for argument in (b"s1", b"1", b"nobody"):
        with operations.Image.open(arena.disk, writable=True) as image, pytest.raises(errors.AirlockError) as caught:
            operations.apply_snapshot(image, operations.Selector.by_id_or_name(argument), True)
        assert caught.value.code == "has_bitmaps"
        assert "b0" in caught.value.message
        assert "Device has active dirty bitmaps" in qemu_words.reports(caught.value, qemu_words.snapshot("apply"))[0]
        assert differences(before, arena.disk) == []


def test_bitmaps_in_use_stay(arena: Arena) -> None:
    """An inconsistent bitmap (its writer crashed) is kept as it is by create and delete."""
    with_bitmaps(arena.disk)
    qemu.crash(arena.disk, "write -P 5 0 4k")
    facts = bitmap_facts(arena.disk)
    assert any("in-use" in json.dumps(fact) for fact in facts)
    owned = bitmap_bytes(arena.disk)
    for call in (SnapshotCall("create", b"s1"), SnapshotCall("create", b"s2"), SnapshotCall("delete", b"s1")):
        result = arena.driver.run(arena.disk, call)
        assert result.code == 0, result
        assert qemu.check(arena.disk).clean
        assert bitmap_facts(arena.disk) == facts
        assert bitmap_bytes(arena.disk) == owned


@pytest.mark.parametrize("verb", ["create", "delete", "apply"])
def test_bitmaps_that_another_program_left_behind(arena: Arena, verb: str) -> None:
    """The extension is there but its autoclear bit is not: qemu-img drops the bitmaps, whose clusters stay leaked.
    That is one header rewrite, the same with us."""
    with_bitmaps(arena.disk)
    qemu.snapshot(arena.disk, "-c", "s1")
    with Patch(arena.disk) as patch:
        patch.header(autoclear_features=0)
    arena.agree(verb, b"s1")
    assert bitmap_facts(arena.disk) == []


@pytest.mark.parametrize("verb", ["list", "create", "delete", "apply"])
@pytest.mark.parametrize("name", ROWS)
def test_lies_about_bitmaps(arena: Arena, sound_bitmaps: Callable[[str], str], name: str, verb: str) -> None:
    """Refused where something could be hurt; the file is not touched, the message is short and printable."""
    qemu.copy(sound_bitmaps(ROWS[name].options), arena.disk)
    with Patch(arena.disk) as patch:
        ROWS[name].lie(patch)
    before = os.path.join(arena.directory, "before.qcow2")
    qemu.copy(arena.disk, before)
    error = operate(arena.disk, verb)
    if error is None:
        assert verb == "list" or not ROWS[name].refused >= CHANGES, f"{verb} was not refused"
        return
    check_refusal(error)
    assert differences(before, arena.disk) == []
