# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Chains as long as they may be, of the largest clusters: what is held of each layer has to be little."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from sandbox.images.chain import open_chain
from sandbox.images.commits import commit, find_base, open_base
from sandbox.images.rebases import open_backing, rebase
from tests.support import qemu
from tests.support.apart import printed_apart

LAYERS = 64
GIGA = 1 << 30
CLUSTER = 2 << 20
TOP = f"l{LAYERS - 1}"
MEMORY_MAX = 160 << 20  # bytes


def place(layer: int) -> int:
    """Where a layer writes: on both sides of what is loaded together of an L2 table, which is 64 GiB of the disk here,
    and elsewhere."""
    return (64 * GIGA * (1 + layer % 4) - CLUSTER * (layer % 3)) + layer // 12 * 5 * CLUSTER


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Each layer is written before it has a backing file: where it writes, the others have nothing, and QEMU would open
    all that are below."""
    home = tmp_path_factory.mktemp("deep")
    assert len({place(layer) // CLUSTER for layer in range(LAYERS)}) == LAYERS
    for layer in range(LAYERS):
        options = f"cluster_size={CLUSTER}" + (",extended_l2=on" if layer % 5 == 1 else "")
        qemu.create(str(home / f"l{layer}"), "320G", options)
        qemu.io(str(home / f"l{layer}"), f"write -P {layer + 1} {place(layer)} 4k")
        if layer:
            command = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", f"l{layer - 1}", "-F", "qcow2", f"l{layer}"]
            qemu.must(command, cwd=str(home))
    return home


@pytest.fixture
def directory(made: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    shutil.copytree(made, tmp_path / "work", copy_function=lambda one, other: qemu.copy(str(one), str(other)))
    return tmp_path / "work"


def shows_all(path: pathlib.Path, last: int) -> bool:
    """What the layers up to `last` have written, the higher ones over the lower."""
    held = {place(layer): layer + 1 for layer in range(last + 1)}
    reads = [part for at, value in held.items() for part in ("-c", f"read -P {value} {at} 4k")]
    done = qemu.must(["qemu-io", "-r", "-f", "qcow2", *reads, path.name], cwd=str(path.parent))
    return b"failed" not in done.output + done.errors and qemu.check(path.name, str(path.parent)).clean


@pytest.mark.parametrize("base", [0, 40, LAYERS - 2])
def test_commit(directory: pathlib.Path, base: int) -> None:
    with open_chain(str(directory / TOP), writable_layers=(0,)) as chain:
        depth = find_base(chain, f"l{base}".encode())
        open_base(chain, depth)
        commit(chain, depth)
    assert shows_all(directory / f"l{base}", LAYERS - 1)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("base", ["", "l0", "l40"])
def test_rebase(directory: pathlib.Path, base: str, compressed: bool) -> None:
    with open_chain(str(directory / TOP), writable_layers=(0,)) as chain:
        if not base:
            rebase(chain, None, compressed=compressed)
        else:
            with open_backing(chain, base.encode(), "qcow2") as backing:
                rebase(chain, backing, compressed=compressed)
    assert shows_all(directory / TOP, LAYERS - 1)


def test_memory(directory: pathlib.Path) -> None:
    """What takes most: all layers, and clusters that are compressed."""
    peak = printed_apart(f"""if True:
        from sandbox.images.chain import open_chain
        from sandbox.images.rebases import rebase
        with open_chain({str(directory / TOP)!r}, writable_layers=(0,)) as chain:
            print(rebase(chain, None, compressed=True).report.peak_memory)
    """)
    assert 16 << 20 < peak < MEMORY_MAX
