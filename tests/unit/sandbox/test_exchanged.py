# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of an image is exchanged for a link to one of root's, in front of each call that looks up a name.

tests/hostile_directory does the same with luck, and with all operations.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import typing as t

import pytest

from sandbox import errors
from sandbox.images import commits, overlays, rebases
from sandbox.images.chain import open_chain

from .bitmap_images import run

TENANT = 12345
SIZE = 65536
NAMES = (b"vm", b"top.qcow2", b"shadow", b"new.conf", b".", b"")
CALLS = ("open", "stat", "readlink", "unlink", "link", "replace")

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users, which needs root"),
]


@pytest.fixture
def origin(tmp_path: pathlib.Path) -> pathlib.Path:
    """Root's directory, and that of the tenant with an overlay on "shadow"; in both the same names."""
    origin = tmp_path / "origin"
    (origin / "tenant/vm").mkdir(parents=True)
    vm = origin / "tenant/vm"
    (vm / "shadow").write_bytes(bytes(SIZE))
    run("qemu-img", "create", "-f", "qcow2", "-b", "shadow", "-F", "raw", "top.qcow2", "64K", directory=vm)
    run("qemu-io", "-c", "write -P 0x50 0 4096", "top.qcow2", directory=vm)
    shutil.copytree(vm, origin / "root")
    (origin / "root/shadow").write_bytes(b"S" * SIZE)
    return origin


def commit(vm: pathlib.Path) -> None:
    with open_chain(str(vm / "top.qcow2"), writable_layers=(0,)) as chain:
        commits.open_base(chain, 1)
        commits.commit(chain, 1)


def commit_and_drop(vm: pathlib.Path) -> None:
    with open_chain(str(vm / "top.qcow2"), writable_layers=(0,)) as chain:
        commits.open_base(chain, 1)
        commits.commit(chain, 1, False)
        chain.top.image.place.remove()


def detach(vm: pathlib.Path) -> None:
    with open_chain(str(vm / "top.qcow2"), writable_layers=(0,)) as chain:
        rebases.rebase(chain, None)


def create(vm: pathlib.Path) -> None:
    overlays.create_overlay(str(vm / "new.conf"), SIZE, b"shadow", "raw")


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class Exchange:
    """Exchanges the directory in front of the call of that number. calls: how many there were."""

    def __init__(self, arena: pathlib.Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self._arena = arena
        self._number = number
        self._process = os.getpid()
        for name in CALLS:
            monkeypatch.setattr(os, name, self._counting(getattr(os, name)))

    def _counting(self, real: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def call(path: t.Any, *arguments: t.Any, **options: t.Any) -> t.Any:
            if os.getpid() == self._process and not isinstance(path, int) and self._matters(os.fsencode(path)):
                self._count()
            return real(path, *arguments, **options)

        return call

    def _matters(self, name: bytes) -> bool:
        """Whether a call has to do with the tenant's directory, and not with the way to it, or the kernel's files."""
        return name in NAMES or name.startswith(os.fsencode(self._arena))

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self._number:
            vm = self._arena / "tenant/vm"
            os.rename(vm, self._arena / "tenant/away")
            os.symlink(self._arena / "root", vm)
            os.chown(vm, TENANT, TENANT, follow_symlinks=False)


@pytest.mark.parametrize("operation", [commit, commit_and_drop, detach, create])
def test_operation(operation: t.Callable[[pathlib.Path], None], origin: pathlib.Path, tmp_path: pathlib.Path) -> None:
    refused = done = 0
    for number in range(1, 100):
        arena = tmp_path / str(number)
        shutil.copytree(origin, arena)
        for path in (arena / "tenant", *(arena / "tenant").rglob("*")):
            os.chown(path, TENANT, TENANT)
        before = contents(arena / "root")
        with pytest.MonkeyPatch.context() as monkeypatch:
            exchange = Exchange(arena, number, monkeypatch)
            try:
                operation(arena / "tenant/vm")
                done += 1
            except errors.AirlockError:
                refused += 1
        assert contents(arena / "root") == before, f"exchanged in front of call {number}"
        assert not any(b"S" * 512 in content for content in contents(arena / "tenant").values())
        if exchange.calls < number:
            break
    assert exchange.calls < number  # so each has had its turn
    assert refused
    assert done > 1
