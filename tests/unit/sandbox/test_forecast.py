# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A time that will not do is refused before the first write: real guests, in a child whose clock runs ahead."""

from __future__ import annotations

import itertools
import pathlib
import subprocess
import typing as t

import pytest

from sandbox import errors
from sandbox.images import snapshot_changes
from sandbox.images.image import Image, Limits
from sandbox.images.snapshots import Selector
from sandbox.images.transaction import Transaction
from sandbox.vmm import doorbell_writes

pytestmark = pytest.mark.kvm

GIVEN = Limits.within(1000)


class Clock:
    """Each look at it comes a thousand seconds after the one before. The child inherits it."""

    def __init__(self) -> None:
        self._moments = itertools.count(0, 1000)

    def monotonic(self) -> int:
        return next(self._moments)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """16 MiB of tables, and a snapshot of them."""
    path = tmp_path_factory.mktemp("mapped") / "disk"
    options = ("-f", "qcow2", "-o", "preallocation=metadata")
    subprocess.run(["qemu-img", "create", "-q", *options, str(path), "128G"], check=True)
    with Image.open(str(path), writable=True) as image:
        snapshot_changes.create_snapshot(image, b"old", (0, 0))
    return path


CHANGES: dict[str, t.Callable[[Image, Limits | None], t.Any]] = {
    "create": lambda image, limits: snapshot_changes.create_snapshot(image, b"new", (0, 0), limits),
    "delete": lambda image, limits: snapshot_changes.delete_snapshot(image, Selector.by_name(b"old"), limits),
}


def hold(path: pathlib.Path) -> tuple[int, int, int]:
    """What tells whether anything was written."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_blocks


@pytest.mark.parametrize("journaled", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_too_little_time(mapped: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str, journaled: bool) -> None:
    monkeypatch.setattr(doorbell_writes, "time", Clock())
    before = hold(mapped)
    with Image.open(str(mapped), writable=True) as image:
        transaction = Transaction([image])
        if journaled:
            transaction.__enter__()
        with pytest.raises(errors.TooLongError) as raised:
            CHANGES[name](image, GIVEN)
        if journaled:
            transaction.keep()
            transaction.__exit__(None, None, None)
    assert hold(mapped) == before
    error = raised.value
    assert (error.code, error.modified) == ("time_too_short", False)
    assert "seconds or more, and there are 1000.0. Nothing was changed. Allow more time (timeout)" in error.message


def test_a_limit_that_nobody_gave_foresees_nothing(mapped: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell_writes, "time", Clock())
    with Image.open(str(mapped), writable=True) as image:
        assert snapshot_changes.create_snapshot(image, b"new", (0, 0), Limits(seconds=1000)).id
        assert snapshot_changes.delete_snapshot(image, Selector.by_name(b"new")).report.exits


@pytest.mark.parametrize("name", CHANGES)
def test_a_small_image_is_changed_whatever_the_clock_says(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What has hardly begun says nothing of what is left."""
    path = str(tmp_path / "disk")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    with Image.open(path, writable=True) as image:
        snapshot_changes.create_snapshot(image, b"old", (0, 0))
        monkeypatch.setattr(doorbell_writes, "time", Clock())
        assert CHANGES[name](image, GIVEN).report.exits
