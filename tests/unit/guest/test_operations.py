# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Operations on images made by QEMU: every make of the guest does the same, and qemu-img finds nothing wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import qemu
from tests.support import recipes as images
from tests.support.native import Answer, Guest
from tests.support.patching import DATA_FILE, extension, field, patched, u64, with_extensions
from tests.unit.guest.conftest import MAKES

OPERATIONS = [
    *((name, "create", b"fresh") for name in images.RECIPES),
    *((name, verb, one) for name, own in images.NAMES.items() for verb in ("apply", "delete") for one in own),
]
WITH_BITMAPS = ("bitmaps", "coarse")
REFUSED = {
    ("bit", "create"): "REFCOUNT_OVERFLOW",
    **{(name, "apply"): "HAS_BITMAPS" for name in WITH_BITMAPS},
}


def run(guest: Guest, path: Path, verb: str, name: bytes) -> tuple[Answer, bytes]:
    """The answer, and the image afterwards."""
    guest.load(path)
    answer: Answer = getattr(guest, verb)(name)
    return answer, guest.image()


def facts(answer: Answer) -> tuple[object, ...]:
    """What must not depend on the make of the guest."""
    result = bytes(answer.result.header.text), answer.payload
    return answer.refusal, answer.arguments, answer.modified, answer.leaked, *result


@pytest.mark.parametrize(("name", "verb", "argument"), OPERATIONS)
def test_every_make_does_the_same(
    make: Callable[[str], Guest],
    image: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    verb: str,
    argument: bytes,
) -> None:
    path = image(name)
    answer, after = run(make("plain"), path, verb, argument)
    assert answer.refusal == REFUSED.get((name, verb), "")
    if answer.refusal:
        assert after == path.read_bytes()
        assert not answer.modified
    else:
        assert answer.modified
        theirs = tmp_path / "theirs.qcow2"
        shutil.copyfile(path, theirs)
        done = qemu.snapshot(str(theirs), {"create": "-c", "apply": "-a", "delete": "-d"}[verb], argument)
        assert done.code == 0, done.errors
        if name in WITH_BITMAPS:  # QEMU writes the directory of bitmaps anew whenever it has opened an image
            (tmp_path / "after.qcow2").write_bytes(after)
            assert images.check(tmp_path / "after.qcow2") == 0
        else:
            assert after == theirs.read_bytes()
    for other in MAKES:
        if other == "plain":
            continue
        answer_there, after_there = run(make(other), path, verb, argument)
        assert facts(answer_there) == facts(answer), other
        assert after_there == after, other


@pytest.mark.parametrize("name", [name for name, own in images.NAMES.items() if own and name not in WITH_BITMAPS])
def test_what_was_applied_is_equal(guest: Guest, image: Callable[[str], Path], name: str) -> None:
    """And what is written afterwards makes a difference of as many clusters."""
    for snapshot in images.NAMES[name]:
        guest.load(image(name))
        before = guest.compare(snapshot)
        assert guest.apply(snapshot).refusal == ""
        after = guest.compare(snapshot)
        assert (after.refusal, after.result.equal, after.result.same_size) == ("", 1, 1)
        assert after.result.differing_clusters == 0
        assert before.refusal == ""
        assert before.result.equal == (before.result.differing_clusters == 0 and before.result.same_size)
        assert not before.modified


def test_differences_are_counted(guest: Guest, image: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "differs.qcow2"
    images.Recipe(
        images.TINY,
        512 * images.KILO,
        (
            *("write -P 1 0 40k", "+one", "write -P 2 3k 1k", "write -P 2 39k 2k"),
            *("write -z 10k 1k", "discard 200k 1k", "write -P 5 500k 512"),
        ),
    ).make(path)
    guest.load(path)
    answer = guest.compare(b"one")
    assert (answer.refusal, answer.result.equal) == ("", 0)
    # 2 + 2 + 2 new ones in place of old ones or none, 2 of zeros, and one far behind.
    assert answer.result.differing_clusters == 2 + 4 + 2 + 1


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"header": {"abi_version": 2}}, "BAD_CALL"),
        ({"header": {"abi_version": 0}}, "BAD_CALL"),
        ({"header": {"operation": 0}}, "BAD_CALL"),
        ({"header": {"operation": 99}}, "BAD_CALL"),
        ({"header": {"disk_count": 0}}, "BAD_CALL"),
        ({"header": {"disk_count": 65}}, "BAD_CALL"),
    ],
)
def test_a_bad_call(
    guest: Guest, image: Callable[[str], Path], fields: dict[str, dict[str, int]], refusal: str
) -> None:
    guest.load(image("tiny"))
    assert (guest.call("snapshot_create", **fields).refusal, guest.host.requests) == (refusal, 0)


@pytest.mark.parametrize("verb", ["apply", "delete", "compare"])
def test_no_such_snapshot(guest: Guest, image: Callable[[str], Path], verb: str) -> None:
    for name in ("empty", "shared"):
        answer, after = run(guest, image(name), verb, b"nobody")
        assert (answer.refusal, answer.modified) == ("SNAPSHOT_NOT_FOUND", False)
        assert after == image(name).read_bytes()


def test_a_resize_has_to_be_allowed(guest: Guest, image: Callable[[str], Path]) -> None:
    guest.load(image("resized"))
    answer = guest.apply(b"small", resize=False)
    assert (answer.refusal, answer.arguments[:2]) == ("RESIZE_NOT_ALLOWED", (500 << 10, 300 << 10))
    assert guest.image() == image("resized").read_bytes()


@pytest.mark.parametrize(
    ("offset", "value", "refusal"),
    [
        (48, 100, "VIRTUAL_SIZE"),
        (48, 1 << 63, "VIRTUAL_SIZE"),
        (48, (1 << 63) - 512, "SNAPSHOT_L1_LARGE"),
        (8, 0x0040000100010005, "SNAPSHOT_L1_LARGE"),
        (0, 1, "SNAPSHOT_L1_OFFSET"),
        (0, (1 << 64) - 512, "SNAPSHOT_L1_OFFSET"),
    ],
)
def test_an_odd_snapshot_is_not_applied(
    guest: Guest, image: Callable[[str], Path], offset: int, value: int, refusal: str
) -> None:
    start = image("resized").read_bytes()
    changed = u64(start, field(start, "snapshots_offset") + offset, value)
    guest.load_bytes(changed)
    answer = guest.apply(b"small")
    assert (answer.refusal, answer.modified) == (refusal, False)
    assert guest.image() == changed


def test_version_2_is_not_resized(guest: Guest, image: Callable[[str], Path]) -> None:
    start = image("v2").read_bytes()
    changed = u64(start, field(start, "snapshots_offset") + 48, 512)
    guest.load_bytes(changed)
    answer = guest.apply(b"x")
    assert (answer.refusal, answer.arguments[:2], answer.modified) == ("RESIZE_V2", (900 << 10, 512), False)


@pytest.mark.parametrize("verb", ["create", "apply", "delete", "compare"])
def test_an_external_data_file(guest: Guest, image: Callable[[str], Path], verb: str) -> None:
    start = patched(image("shared").read_bytes(), incompatible_features=4)
    changed = with_extensions(start, extension(DATA_FILE, b"data.raw"))
    guest.load_bytes(changed)
    answer = getattr(guest, verb)(b"one")
    assert (answer.refusal, answer.modified) == ("DATA_FILE", False)
    assert guest.image() == changed


def test_one_reference_too_many(guest: Guest, image: Callable[[str], Path]) -> None:
    """2-bit refcounts: the disk and a snapshot are two, another makes three, and a fourth does not fit."""
    guest.load(image("bits2"))
    assert guest.create(b"third").refusal == ""
    before = guest.image()
    answer = guest.create(b"fourth")
    assert (answer.refusal, answer.arguments[0], answer.modified) == ("REFCOUNT_OVERFLOW", 2, False)
    assert guest.image() == before
