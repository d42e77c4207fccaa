# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a guest gets of the host's memory: by what its files hold, never by what they claim."""

from __future__ import annotations

import os
import pathlib
import types
import typing as t

import pytest

from sandbox.host.disks import open_disk
from sandbox.vmm import boot, memory

HOST = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def disk(held: int, size: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(held=held, size=size, is_block=False)


def size_of(*disks: t.Any) -> int:
    return memory.size_for(disks, [one.held for one in disks])


@pytest.fixture(autouse=True)
def _much_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_available", lambda _page: 1 << 40)


def test_a_file_that_holds_little_gets_what_every_guest_has() -> None:
    assert size_of() == memory.LEAST
    assert size_of(disk(512 << 20, 1 << 60)) == memory.LEAST


def test_a_byte_for_each_entry_that_can_be_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_share", lambda _page: 1 << 40)
    assert size_of(disk(1 << 20, 1 << 20), disk(4 << 30, 1 << 44)) == memory.LEAST + (512 << 20)
    # Nor more clusters than sectors.
    assert size_of(disk(1 << 40, 64 << 30)) == memory.LEAST + (128 << 20)
    assert size_of(disk(1 << 60, 1 << 62)) == boot.MEMORY_MAX


def test_eight_guests_at_once_leave_the_host_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may be one that was taken over, and touch all that it has."""
    assert 8 * size_of(disk(1 << 60, 1 << 62)) <= max(HOST // 4, 8 * memory.LEAST)
    monkeypatch.setattr(memory, "_share", lambda _page: 1 << 40)
    monkeypatch.setattr(memory, "_available", lambda _page: 2 << 30)
    assert memory.LEAST < size_of(disk(1 << 60, 1 << 62)) <= 256 << 20
    monkeypatch.setattr(memory, "_available", lambda _page: 0)
    assert size_of(disk(1 << 60, 1 << 62)) == memory.LEAST


def test_a_hole_is_nothing_that_is_held(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 1 << 40)
    with open_disk(str(tmp_path / "hole"), writable=False) as hole:
        assert memory.held(hole) == 0
        assert memory.size_for([hole], [memory.held(hole)]) == memory.LEAST
