# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Golden vectors of commits to vmdk: what qemu-img 10.0.2 left on disk when it was watched, held against ours as
numbers.
"""

from __future__ import annotations

import pathlib

import pytest

from sandbox.images.chain import open_chain
from sandbox.images.commits import commit, open_base
from tests.support import qemu
from tests.support.vmdk import Vmdk

KILO64 = 65536
SECTORS = 128  # of a grain
# A new image of 4 MiB: directories and tables in sectors 21 to 30, data from sector 128 on.
FIRST = 1


def made(directory: pathlib.Path, options: str, top_format: str) -> None:
    for name, more, image_format in (("base", [], "vmdk"), ("top", ["-b", "base", "-F", "vmdk"], top_format)):
        chosen = ["-o", options] if image_format == "vmdk" else []
        command = ["qemu-img", "create", "-q", "-f", image_format, *chosen, *more, name, "4M"]
        qemu.must(command, cwd=str(directory))
        steps = ["write 0 128k"]
        if name == "top":
            steps = ["write -P 7 64k 64k", "write -P 8 1M 64k", "write -z 2M 64k", "write -P 9 4032k 64k"]
        commands = [part for step in steps for part in ("-c", step)]
        qemu.must(["qemu-io", "-f", image_format, *commands, name], cwd=str(directory))


def entries(image: Vmdk) -> dict[int, int]:
    """Offset on the disk in units of 64 KiB -> index of the grain in the file, 0 for zeros."""
    return {grain: entry // SECTORS for grain, entry in image.entries().items()}


def committed(directory: pathlib.Path, top_format: str) -> Vmdk:
    with open_chain(str(directory / "top"), writable_layers=(0,), top_format=top_format) as chain:
        open_base(chain, 1)
        commit(chain, 1)
    return Vmdk(directory / "base")


@pytest.mark.parametrize("top_format", ["vmdk", "qcow2"])
def test_zeros_in_a_table(top_format: str, tmp_path: pathlib.Path) -> None:
    """In place, new grains in the order of the disk, and a grain that reads as zeros without having any."""
    made(tmp_path, "zeroed_grain=on", top_format)
    before = Vmdk(tmp_path / "base")
    assert (before.header["flags"], before.header["version"], before.header["data"]) == (7, 2, SECTORS)
    after = committed(tmp_path, top_format)
    assert entries(after) == {0: FIRST, 1: FIRST + 1, 16: FIRST + 2, 32: 0, 63: FIRST + 3}
    assert after.entries()[32] == 1
    assert len(after.bytes) == 5 * KILO64
    assert after.bytes[2 * KILO64 : 3 * KILO64] == b"\x07" * KILO64


def test_zeros_written(tmp_path: pathlib.Path) -> None:
    """Without zeroed grains zeros are data, and take a grain even where there was nothing."""
    made(tmp_path, "zeroed_grain=off", "qcow2")
    after = committed(tmp_path, "qcow2")
    assert entries(after) == {0: FIRST, 1: FIRST + 1, 16: FIRST + 2, 32: FIRST + 3, 63: FIRST + 4}
    assert after.bytes[4 * KILO64 : 5 * KILO64] == bytes(KILO64)
    assert len(after.bytes) == 6 * KILO64


def test_ids(tmp_path: pathlib.Path) -> None:
    """FNV-1a of the ids above, so that a second run finds that nothing is new."""
    made(tmp_path, "zeroed_grain=on", "vmdk")
    hashed = 0x811C9DC5
    for byte in Vmdk(tmp_path / "top").cid.to_bytes(4, "little"):
        hashed = (hashed ^ byte) * 0x01000193 & 0xFFFFFFFF
    first, end = Vmdk(tmp_path / "base").places[b"CID"]
    after = committed(tmp_path, "vmdk")
    assert after.cid == hashed & (1 << 4 * (end - first)) - 1
    assert Vmdk(tmp_path / "top").parent_cid == after.cid
