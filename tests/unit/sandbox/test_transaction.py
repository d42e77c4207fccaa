# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A group of images, changed by the real guest: undone to the byte, or kept as if there had been no transaction."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import typing as t

import pytest

from sandbox import errors, operations
from sandbox.operations import Image, Selector, Transaction
from sandbox.vmm import journal, memory

pytestmark = pytest.mark.kvm

DATE = (1_700_000_000, 0)


def change(images: t.Sequence[Image]) -> None:
    """Everything that writes, punches holes and changes lengths."""
    for image in images:
        operations.create_snapshot(image, b"new", DATE)
        operations.delete_snapshot(image, Selector.by_name(b"s1"))
        operations.apply_snapshot(image, Selector.by_id_or_name(b"s2"), allow_resize=True)
        operations.delete_snapshot(image, Selector.by_name(b"new"))


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    """Three equal images with two snapshots and data of their own, resized in between."""
    first = str(tmp_path / "0")
    for command in (
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", first, "4M"],
        ["qemu-io", "-c", "write -P 1 0 1M", first],
        ["qemu-img", "snapshot", "-c", "s1", first],
        ["qemu-io", "-c", "write -P 2 512k 1M", first],
        ["qemu-img", "snapshot", "-c", "s2", first],
        ["qemu-img", "resize", "-q", first, "6M"],
        ["qemu-io", "-c", "write -P 3 0 4M", first],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [pathlib.Path(first), *(pathlib.Path(shutil.copy(first, tmp_path / name)) for name in ("1", "2"))]


@pytest.fixture
def images(paths: list[pathlib.Path]) -> t.Iterator[list[Image]]:
    opened = [Image.open(str(path), writable=True) for path in paths]
    yield opened
    for image in opened:
        image.close()


def test_undone(paths: list[pathlib.Path], images: list[Image]) -> None:
    before = paths[0].read_bytes()
    with Transaction(images) as transaction:
        change(images)
        assert all(path.read_bytes() != before for path in paths)
        transaction.undo()
    assert [path.read_bytes() == before for path in paths] == [True] * 3


def test_many_changes_of_one_image(
    paths: list[pathlib.Path], images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is small. What they fill the host's disk with together is budgeted as well."""
    monkeypatch.setattr(journal, "TOTAL_MIN", 200_000)
    monkeypatch.setattr(memory, "held", lambda _disk: 0)
    sizes = []

    def change(image: Image) -> None:
        for number in range(1000):
            operations.create_snapshot(image, b"%d" % number, DATE)
            assert image.journal
            sizes.append(os.fstat(image.journal.descriptor).st_size)

    before = paths[0].read_bytes()
    with pytest.raises(errors.BudgetError, match="fewer at a time"), Transaction(images[:1]):
        change(images[0])
    assert len(sizes) > 1
    assert sizes[-1] <= 200_000
    assert paths[0].read_bytes() == before


def test_undone_by_a_refusal(paths: list[pathlib.Path], images: list[Image]) -> None:
    before = paths[0].read_bytes()
    with pytest.raises(errors.SnapshotNotFoundError), Transaction(images):
        change([*images[:2], images[0]])
    assert [path.read_bytes() == before for path in paths] == [True] * 3


def test_kept(paths: list[pathlib.Path], images: list[Image]) -> None:
    change(images[:1])
    with Transaction(images[1:]) as transaction:
        change(images[1:])
        transaction.keep()
    wanted = paths[0].read_bytes()
    assert [path.read_bytes() == wanted for path in paths] == [True] * 3
    # What was freed was given back to the file system here too.
    blocks = [path.stat().st_blocks for path in paths]
    assert max(blocks) <= blocks[0]
    for path in paths:
        subprocess.run(["qemu-img", "check", "-U", path], check=True, stdout=subprocess.DEVNULL)
