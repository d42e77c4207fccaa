# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host does with the page cache while a guest has it copy from file to file."""

from __future__ import annotations

import pathlib
import typing as t

import pytest

from sandbox.host.disks import open_disk
from sandbox.vmm import kvm
from sandbox.vmm.doorbell_copies import MovingServer
from sandbox.vmm.doorbell_rules import File

_FFI, LIBRARY = kvm.bindings()
MEGA = 1 << 20


class Library:
    """The real one; it remembers what was said to be of no more use."""

    def __init__(self) -> None:
        self.dropped: list[tuple[int, int, int, int]] = []

    def __getattr__(self, name: str) -> t.Any:
        return getattr(LIBRARY, name)

    def posix_fadvise(self, *arguments: int) -> int:
        self.dropped.append(arguments)
        return int(LIBRARY.posix_fadvise(*arguments))


@pytest.mark.parametrize("emptied", [True, False])
def test_only_what_will_be_emptied_is_dropped_from_the_page_cache(emptied: bool, tmp_path: pathlib.Path) -> None:
    """In steps, after each is copied. Not what others may go on reading, not the file itself, not small pieces."""
    content = bytes(range(256)) * (20 * MEGA // 256)
    for name in ("base", "overlay"):
        (tmp_path / name).write_bytes(content[:: 1 if name == "overlay" else -1])
    memory = kvm.map_memory(LIBRARY.MEMORY_SIZE, kvm.MAP_PRIVATE_ANONYMOUS_NORESERVE)
    with open_disk(str(tmp_path / "base"), True) as base, open_disk(str(tmp_path / "overlay"), emptied) as overlay:
        files = [File(base.descriptor, True, False, 1 << 40), File(overlay.descriptor, emptied, False, 1 << 40)]
        server = MovingServer(memory, files, 1 << 40)
        server._library = library = Library()
        assert server._copy(0, 0, 18 * MEGA, 0, 1, MEGA) == 18 * MEGA
        assert server._copy(0, 0, 65536, 0, 1, 0) == 65536
        assert server._copy(0, 24 * MEGA, 2 * MEGA, 0, 0, 0) == 2 * MEGA
        steps = [(MEGA, 8 * MEGA), (9 * MEGA, 8 * MEGA), (17 * MEGA, 2 * MEGA)]
        assert library.dropped == [(overlay.descriptor, *step, 4) for step in steps if emptied]
        assert (server.bytes_read, server.bytes_written) == (20 * MEGA + 65536, 20 * MEGA + 65536)
    LIBRARY.munmap(memory, LIBRARY.MEMORY_SIZE)
    data = (tmp_path / "base").read_bytes()
    assert data[65536 : 18 * MEGA] == content[MEGA + 65536 : 19 * MEGA]
    assert data[:65536] == content[:65536]
