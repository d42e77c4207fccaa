# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Operations on images made by QEMU: every make of the guest does the same, and qemu-img finds nothing wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.guest import images
from tests.unit.guest.conftest import MAKES
from tests.unit.guest.native import Answer, Guest

OPERATIONS = [
    *((name, "create", b"fresh") for name in images.RECIPES),
    *((name, verb, one) for name, own in images.NAMES.items() for verb in ("apply", "delete") for one in own),
]
REFUSED = {("bit", "create"): "REFCOUNT_OVERFLOW", ("bitmaps", "apply"): "HAS_BITMAPS"}


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
        (tmp_path / "after.qcow2").write_bytes(after)
        assert images.check(tmp_path / "after.qcow2") == 0
    for other in MAKES:
        if other == "plain":
            continue
        answer_there, after_there = run(make(other), path, verb, argument)
        assert facts(answer_there) == facts(answer), other
        assert after_there == after, other
