# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A commit is killed at every moment of its run: the top shows the same, and a second run ends it.

AIRLOCK_LONG=1 kills at every moment, not at some of them.
"""

from __future__ import annotations

import os
import pathlib
import shutil

import pytest

from sandbox import errors
from sandbox.images.chain import open_chain
from sandbox.images.commits import commit, open_base
from sandbox.images.image import Image
from sandbox.images.info import image_info
from tests.crash.killed import killing
from tests.support import qemu

LONG = os.environ.get("AIRLOCK_LONG") == "1"
MOMENTS = 10_000 if LONG else 16  # at most, of one chain

CHAINS = {
    "clusters of 4 KiB": ("cluster_size=4096", "cluster_size=65536"),
    "snapshots": ("refcount_bits=2", "cluster_size=16384,extended_l2=on"),
    "lazy refcounts": ("lazy_refcounts=on,cluster_size=2048", "compression_type=zstd"),
    "version 2": ("compat=0.10,cluster_size=512", "compat=0.10"),
    "raw": ("", "cluster_size=4096"),
}


def make(directory: pathlib.Path, kind: str) -> None:
    """base <- top, whose data lies partly where the base has some; the top is larger."""
    base_options, top_options = CHAINS[kind]
    base_format = "qcow2" if base_options else "raw"
    directory.mkdir()
    base, top = str(directory / "base"), str(directory / "top")
    create = ["qemu-img", "create", "-q", "-f"]
    qemu.must([*create, base_format, *(["-o", base_options] if base_options else []), base, "2M"])
    qemu.must(["qemu-io", "-f", base_format, "-c", "write -P 1 0 300k", "-c", "write -P 2 1M 64k", base])
    if kind == "snapshots":
        qemu.snapshot(base, "-c", "s")
    qemu.must([*create, "qcow2", "-o", top_options, "-b", "base", "-F", base_format, top, "2560k"], cwd=str(directory))
    qemu.io(top, "write -P 3 64k 100k", "write -z 1M 64k", "write -P 4 2M 128k", "write -c -P 5 512k 64k")
    if kind == "snapshots":
        qemu.snapshot(top, "-c", "s")
        qemu.io(top, "write -P 6 700k 4k")


def shown(path: pathlib.Path, image_format: str = "qcow2") -> bytes:
    """The disk as qemu-img reads it."""
    target = path.with_suffix(".shown")
    qemu.must(["qemu-img", "convert", "-f", image_format, "-O", "raw", str(path), str(target)])
    return target.read_bytes()


def committed(directory: pathlib.Path) -> None:
    """As `airlock commit` does it. Raises AirlockError."""
    with open_chain(str(directory / "top"), writable_layers=(0,)) as chain:
        open_base(chain, 1)
        commit(chain, 1, allow_resize=True)


@pytest.mark.parametrize("kind", CHAINS)
def test_killed(kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base_format = "qcow2" if CHAINS[kind][0] else "raw"
    made, work = tmp_path / "made", tmp_path / "work"
    make(made, kind)
    wanted = shown(made / "top")
    with killing(-1, monkeypatch) as nobody:
        shutil.copytree(made, work)
        committed(work)
    assert shown(work / "base", base_format) == wanted
    assert nobody.moments > 30
    for moment in range(0, nobody.moments, max(1, nobody.moments // MOMENTS)):
        shutil.rmtree(work)
        shutil.copytree(made, work)
        with killing(moment, monkeypatch) as killer, pytest.raises(errors.JailError):
            committed(work)
        assert killer.killed
        assert shown(work / "top") == wanted, moment
        finish(work, base_format)
        assert shown(work / "top") == shown(work / "base", base_format) == wanted, moment
        for name in ("base", "top") if base_format == "qcow2" else ("top",):
            assert qemu.check(str(work / name)).code in (0, 3), moment  # leaks are harmless


def finish(directory: pathlib.Path, base_format: str) -> None:
    """A second run. What was killed while it was dirty is repaired before."""
    for name, image_format in (("base", base_format), ("top", "qcow2")):
        if image_format == "qcow2" and is_dirty(directory / name):
            qemu.run(["qemu-img", "check", "-q", "-r", "all", "-f", "qcow2", str(directory / name)])
    committed(directory)


def is_dirty(path: pathlib.Path) -> bool:
    with Image.open(str(path)) as image:
        return image_info(image).dirty
