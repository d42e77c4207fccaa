# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The disk fails, once at every request of an operation: the image stays the old one or is the new one, at worst with
clusters leaked or flags that say too much of a cluster that nobody shares."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import judge
from tests.support.bitmaps import bitmaps
from tests.support.native import Answer, BitmapAction, Guest
from tests.support.qcow2 import Qcow2

OPERATIONS = [
    ("tiny", "create", b"fresh"),
    ("shared", "create", b"fresh"),
    ("shared", "apply", b"one"),
    ("shared", "delete", b"two"),
    ("mixed", "apply", b"b"),
    ("mixed", "delete", b"a"),
    ("resized", "apply", b"small"),
    ("resized", "apply", b"large"),
    ("resized", "delete", b"large"),
    ("bits64", "create", b"fresh"),
    ("extended", "apply", b"e"),
    ("bitmaps", "create", b"fresh"),
    ("tiny", "change_bitmap", b"fresh add"),
    ("bitmaps", "change_bitmap", b"fresh add,merge:first,disable"),
    ("coarse", "change_bitmap", b"first merge:second"),
    ("bitmaps", "change_bitmap", b"second clear,disable"),
    ("coarse", "change_bitmap", b"first enable"),
    ("bitmaps", "change_bitmap", b"first remove"),
    ("bits64", "change_bitmap", b"fresh add"),
]


def operate(guest: Guest, verb: str, argument: bytes) -> Answer:
    """A snapshot operation on a name; or a list of actions on a bitmap: "NAME ACTION[:SOURCE],..."."""
    if verb != "change_bitmap":
        answer: Answer = getattr(guest, verb)(argument)
        return answer
    name, _unused, actions = argument.partition(b" ")
    split = (action.decode().partition(":") for action in actions.split(b","))
    return guest.change_bitmap(name, *(BitmapAction(kind, 0, source.encode()) for kind, _unused, source in split))


def codes_of(operation: str) -> set[str]:
    """The refusals that a failure of this request may lead to."""
    return {"READ": {"READ_FAILED"}, "RESERVE": {"NO_SPACE", "WRITE_FAILED"}}.get(operation, {"WRITE_FAILED"})


def judged(directory: Path, image: bytes) -> tuple[object, judge.Faults]:
    """What the image holds, its bitmaps with it, and what is wrong with it."""
    path = directory / "judged.qcow2"
    path.write_bytes(image)
    with Qcow2(str(path)) as reader:
        return (judge.content(reader), bitmaps(reader)), judge.faults(reader)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize(("name", "verb", "argument"), OPERATIONS)
def test_every_request_fails_once(
    guest: Guest,
    image: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    verb: str,
    argument: bytes,
    error: int,
) -> None:
    path = image(name)
    before = path.read_bytes()
    guest.load(path)
    assert operate(guest, verb, argument).refusal == ""
    requests = guest.log()
    new = judged(tmp_path, guest.image())[0]
    old = judged(tmp_path, before)[0]
    seen: set[bytes] = set()
    for index, request in enumerate(requests):
        guest.load(path)
        guest.fail(index, error)
        answer = operate(guest, verb, argument)
        where = f"request {index} of {len(requests)}, {request}"
        if request.operation == "RESERVE" and error == errno.ENOSPC:
            assert answer.refusal == "NO_SPACE", where
        else:
            assert answer.refusal in codes_of(request.operation), where
        assert answer.arguments[0] == error, where
        assert answer.arguments[1] == request.offset, where
        after = guest.image()
        if not answer.modified:
            assert after == before, where
        elif after not in seen:
            seen.add(after)
            again = guest.verify()
            assert again.refusal == "", (where, again)
            content, faults = judged(tmp_path, after)
            assert content in (old, new), where
            assert faults.damage == [], where
