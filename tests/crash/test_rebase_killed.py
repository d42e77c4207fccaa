# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A rebase is killed at every moment of its run: the image shows the same, and a second run ends it. qemu-img has a
moment at which that is not so: its header names the new file before what was pulled up is on the disk.

AIRLOCK_LONG=1 kills at every moment, not at some of them.
"""

from __future__ import annotations

import os
import pathlib
import shutil

import pytest

from sandbox import errors
from sandbox.images.chain import open_chain
from sandbox.images.info import image_info
from sandbox.images.rebases import open_backing, rebase
from tests.crash.killed import killing
from tests.support import qemu

LONG = os.environ.get("AIRLOCK_LONG") == "1"
MOMENTS = 10_000 if LONG else 10  # at most, of one chain

# Options of the image, what it is to stand on, and whether it is compressed.
CHAINS = {
    "clusters of 4 KiB": ("cluster_size=4096", b"new", False),
    "ancestor": ("cluster_size=65536", b"base", False),
    "detach": ("cluster_size=512", b"", False),
    "snapshots": ("cluster_size=16384,extended_l2=on,refcount_bits=2", b"new", False),
    "version 2": ("compat=0.10,cluster_size=2048", b"", False),
    "compressed": ("cluster_size=4096", b"new", True),
    "compressed, tiny": ("cluster_size=512,refcount_bits=2", b"", True),
    "compressed, snapshots": ("cluster_size=16384,extended_l2=on,compression_type=zstd", b"new", True),
}


def make(directory: pathlib.Path, kind: str) -> None:
    """base <- old <- top, and new, which has other data, and some that is the same."""
    directory.mkdir()
    for name, options, backing in (
        ("base", "", None),
        ("old", "cluster_size=4096", "base"),
        ("new", "cluster_size=8192", None),
        ("top", CHAINS[kind][0], "old"),
    ):
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else [])]
        command += ["-b", backing, "-F", "qcow2"] if backing else []
        qemu.must([*command, name, "3M"], cwd=str(directory))
    qemu.io(str(directory / "base"), "write -P 1 0 300k", "write -P 2 1M 64k")
    qemu.io(str(directory / "old"), "write -P 3 200k 100k", "write -z 1M 4k", "write -c -P 4 2M 64k")
    qemu.io(str(directory / "new"), "write -P 1 0 100k", "write -P 5 2M 128k", "write -P 6 2500k 30k")
    top = str(directory / "top")
    qemu.io(top, "write -P 7 64k 5k")
    if kind.endswith("snapshots"):
        qemu.snapshot(top, "-c", "s")
        qemu.io(top, "write -P 8 700k 4k")


def shown(path: pathlib.Path) -> bytes:
    """The disk as qemu-img reads it."""
    target = path.with_suffix(".shown")
    qemu.must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(target)])
    return target.read_bytes()


def rebased(directory: pathlib.Path, name: bytes, compressed: bool) -> bytes:
    """As `airlock rebase` does it; the name that is recorded now. Raises AirlockError."""
    with open_chain(str(directory / "top"), writable_layers=(0,)) as chain:
        if not name:
            rebase(chain, None, compressed=compressed)
        else:
            with open_backing(chain, name, "qcow2") as backing:
                rebase(chain, backing, compressed=compressed)
        return image_info(chain.top.image).backing_name


@pytest.mark.parametrize("kind", CHAINS)
def test_killed(kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, compressed = CHAINS[kind][1:]
    made, work = tmp_path / "made", tmp_path / "work"
    make(made, kind)
    wanted = shown(made / "top")
    with killing(-1, monkeypatch) as nobody:
        shutil.copytree(made, work)
        assert rebased(work, name, compressed) == name
    assert shown(work / "top") == wanted
    assert nobody.moments > 10
    for moment in range(0, nobody.moments, max(1, nobody.moments // MOMENTS)):
        shutil.rmtree(work)
        shutil.copytree(made, work)
        with killing(moment, monkeypatch) as killer, pytest.raises(errors.JailError):
            rebased(work, name, compressed)
        assert killer.killed
        assert shown(work / "top") == wanted, moment
        assert qemu.check(str(work / "top")).code in (0, 3), moment  # leaks are harmless
        assert rebased(work, name, compressed) == name
        assert shown(work / "top") == wanted, moment
        assert qemu.check(str(work / "top")).code in (0, 3), moment
        for lower in ("base", "old", "new"):
            assert (work / lower).read_bytes() == (made / lower).read_bytes()
