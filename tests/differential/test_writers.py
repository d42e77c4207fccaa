# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that other programs wrote: read as qemu-img reads them, and changed to the bytes that it leaves."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from sandbox import errors
from sandbox.images.bitmaps import list_bitmaps
from sandbox.images.chain import open_chain
from sandbox.images.commits import commit, open_base
from sandbox.images.image import Image
from sandbox.images.info import image_info
from sandbox.images.rebases import open_backing, rebase
from sandbox.images.snapshot_changes import create_snapshot
from sandbox.images.snapshots import list_snapshots
from sandbox.images.vmdk import vmdk_info
from tests.support import qemu
from tests.support.chains import Arena
from tests.support.compare import differences
from tests.support.vmdk import SECTOR, Vmdk
from tests.support.writers import (
    GIGA,
    KILO64,
    MEGA,
    QCOW2_WRITERS,
    VMDK_WRITERS,
    vmdk_mkimg,
    vmdk_vmware,
    written_by_virtualbox,
)

SIZE = 8 * MEGA
DATA = {index: bytes([index + 1]) * KILO64 for index in (0, 1, 5, 127)}
FAULT = 21 * SECTOR - 1  # where qemu-img puts a NUL, whatever lies there


def made_by_qemu(path: str, size: int, data: dict[int, bytes], *parent: object) -> None:
    qemu.must(["qemu-img", "create", "-q", "-f", "vmdk", path, str(size)])
    steps = [f"write -P {grain[0]} {index * KILO64} {KILO64}" for index, grain in data.items()]
    qemu.must(["qemu-io", "-f", "vmdk", *(part for step in steps for part in ("-c", step)), path])


VMDK = {**VMDK_WRITERS, "qemu": made_by_qemu}


def shown(data: dict[int, bytes], size: int = SIZE) -> bytes:
    return b"".join(data.get(index, bytes(KILO64)) for index in range(size // KILO64))


def facts(path: pathlib.Path, kind: str) -> dict[str, object]:
    command = ["qemu-img", "info", "--output=json", "-f", kind, str(path)]
    return dict(json.loads(qemu.must(command).output))


def content(path: pathlib.Path, kind: str) -> bytes:
    target = path.with_name(path.name + ".raw")
    qemu.must(["qemu-img", "convert", "-f", kind, "-O", "raw", str(path), str(target)])
    return target.read_bytes()


def committed(top: pathlib.Path, kind: str = "qcow2") -> None:
    with open_chain(str(top), writable_layers=(0,), top_format=kind) as chain:
        open_base(chain, 1)
        commit(chain, 1)


def overlay(path: pathlib.Path, backing: str, kind: str, *steps: str) -> None:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", kind, path.name]
    qemu.must(command, cwd=str(path.parent))
    qemu.must(["qemu-io", "-f", "qcow2", *(part for step in steps for part in ("-c", step)), str(path)])


def both(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """What has been made in `made`, once for qemu-img and once for us."""
    for who in ("theirs", "ours"):
        shutil.copytree(tmp_path / "made", tmp_path / who)
    return tmp_path / "theirs", tmp_path / "ours"


# ---- vmdk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", VMDK)
def test_facts_of_vmdk(tmp_path: pathlib.Path, writer: str) -> None:
    path = tmp_path / "disk.vmdk"
    VMDK[writer](str(path), SIZE, DATA)
    theirs = facts(path, "vmdk")
    with Image.open(str(path)) as image:
        ours = vmdk_info(image)
    assert (ours.virtual_size, ours.cluster_size) == (theirs["virtual-size"], theirs["cluster-size"])
    assert ours.content_id == theirs["format-specific"]["data"]["cid"]  # type: ignore[index]
    assert content(path, "vmdk") == shown(DATA)
    assert Vmdk(path).shown() == shown(DATA)


@pytest.mark.parametrize("where", ["there", "new"])
@pytest.mark.parametrize("writer", VMDK)
def test_commit_to_vmdk(tmp_path: pathlib.Path, writer: str, where: str) -> None:
    """One write, so that qemu-img has no choice: the same bytes, but for the one that it damages and the random id."""
    (tmp_path / "made").mkdir()
    base = tmp_path / "made/base.vmdk"
    VMDK[writer](str(base), SIZE, DATA)
    offset = KILO64 if where == "there" else 3 * KILO64
    overlay(tmp_path / "made/top.qcow2", "base.vmdk", "vmdk", f"write -P 7 {offset} 64k")
    theirs, ours = both(tmp_path)
    qemu.must(["qemu-img", "commit", "-q", "top.qcow2"], cwd=str(theirs))
    committed(ours / "top.qcow2")
    expected, got = Vmdk(theirs / "base.vmdk"), Vmdk(ours / "base.vmdk")
    image = bytearray(expected.bytes)
    if got.header["descriptor_size"] < 20:
        assert image[FAULT] == 0 != base.read_bytes()[FAULT]
        image[FAULT] = got.bytes[FAULT]
    masked = Vmdk(bytes(image)).masked, got.masked
    if writer == "ovftool":  # of the line that it writes qemu-img ends with a line feed alone
        assert masked[0] != masked[1]
        masked = masked[0].replace(b"\r\n", b"\n"), masked[1].replace(b"\r\n", b"\n")
    same = masked[0] == masked[1]
    assert same, [at for at, pair in enumerate(zip(*masked)) if pair[0] != pair[1]][:40]
    assert got.cid not in (0, Vmdk(base).cid)
    assert got.shown() == shown({**DATA, offset // KILO64: b"\x07" * KILO64}) == got.shown(redundant=True)
    again = (ours / "base.vmdk").read_bytes()
    committed(ours / "top.qcow2")
    assert (ours / "base.vmdk").read_bytes() == again


@pytest.mark.parametrize("writer", VMDK)
def test_vmdk_overlay_on_vmdk(tmp_path: pathlib.Path, writer: str) -> None:
    """The content id of a base that has none yet is one, too."""
    base, top = tmp_path / "base.vmdk", tmp_path / "top.vmdk"
    VMDK[writer](str(base), SIZE, DATA)
    command = ["qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "top.vmdk"]
    qemu.must(command, cwd=str(tmp_path))
    qemu.must(["qemu-io", "-f", "vmdk", "-c", "write -P 7 64k 64k", str(top)])
    committed(top, "vmdk")
    wanted = shown({**DATA, 1: b"\x07" * KILO64})
    assert Vmdk(base).shown() == wanted == content(top, "vmdk")


@pytest.mark.parametrize("writer", [name for name in VMDK_WRITERS if name != "mkimg"])
def test_vmdk_with_a_parent(tmp_path: pathlib.Path, writer: str) -> None:
    """Snapshots of these programs: the parent is named in the descriptor, and known by its content id."""
    VMDK[writer](str(tmp_path / "base.vmdk"), SIZE, DATA)
    VMDK[writer](str(tmp_path / "top.vmdk"), SIZE, {1: b"\x07" * KILO64}, "base.vmdk", Vmdk(tmp_path / "base.vmdk").cid)
    wanted = shown({**DATA, 1: b"\x07" * KILO64})
    assert content(tmp_path / "top.vmdk", "vmdk") == wanted
    committed(tmp_path / "top.vmdk", "vmdk")
    assert Vmdk(tmp_path / "base.vmdk").shown() == wanted == content(tmp_path / "top.vmdk", "vmdk")


def test_parent_on_windows(tmp_path: pathlib.Path) -> None:
    """Its path leads nowhere here. What the message says to do is done, and then it is opened."""
    base, top = tmp_path / "base.vmdk", tmp_path / "top.vmdk"
    vmdk_vmware(str(base), SIZE, DATA)
    vmdk_vmware(str(top), SIZE, {}, r"C:\VMs\base.vmdk", Vmdk(base).cid)
    before = top.read_bytes()
    with pytest.raises(errors.ChainError) as caught:
        open_chain(str(top), top_format="vmdk")
    assert caught.value.code == "backing_protocol"
    assert "rebase" not in caught.value.message
    steps = re.findall(r'"((?:dd|truncate) [^"]*)"', caught.value.message)
    assert len(steps) == 3
    out, *back = steps
    environment = {**os.environ, "HOME": str(tmp_path)}
    subprocess.run(out, shell=True, check=True, cwd="/", capture_output=True, env=environment)
    text = (tmp_path / "descriptor.txt").read_bytes()
    (tmp_path / "descriptor.txt").write_bytes(text.replace(b"C:\\VMs\\base.vmdk", b"base.vmdk"))
    for step in back:
        subprocess.run(step, shell=True, check=True, cwd="/", capture_output=True, env=environment)
    with open_chain(str(top), top_format="vmdk") as chain:
        assert [os.path.basename(layer.path) for layer in chain.layers] == ["top.vmdk", "base.vmdk"]
    assert top.read_bytes()[21 * SECTOR :] == before[21 * SECTOR :]
    assert content(top, "vmdk") == shown(DATA)


@pytest.mark.parametrize("writer", VMDK)
def test_rebase_onto_vmdk(tmp_path: pathlib.Path, writer: str) -> None:
    (tmp_path / "made").mkdir()
    VMDK[writer](str(tmp_path / "made/old.vmdk"), SIZE, DATA)
    VMDK[writer](str(tmp_path / "made/new.vmdk"), SIZE, {5: DATA[5], 9: DATA[0]})
    overlay(tmp_path / "made/top.qcow2", "old.vmdk", "vmdk", "write -P 7 64k 64k")
    theirs, ours = both(tmp_path)
    qemu.must(["qemu-img", "rebase", "-b", "new.vmdk", "-F", "vmdk", "top.qcow2"], cwd=str(theirs))
    with (
        open_chain(str(ours / "top.qcow2"), writable_layers=(0,)) as chain,
        open_backing(chain, b"new.vmdk", "vmdk") as backing,
    ):
        rebase(chain, backing)
    for name in ("top.qcow2", "old.vmdk", "new.vmdk"):
        assert differences(str(theirs / name), str(ours / name)) == []


def test_extent_without_a_name_leads_nowhere(tmp_path: pathlib.Path) -> None:
    """Not to the directory of the image either, which is what a name of no bytes would be beside it."""
    vmdk_mkimg(str(tmp_path / "disk.vmdk"), SIZE, DATA)
    opened = f"open_chain({str(tmp_path / 'disk.vmdk')!r}, top_format='vmdk').close()"
    script = f"from sandbox.images.chain import open_chain; {opened}"
    command = ["strace", "-f", "-e", "trace=%file", "-o", str(tmp_path / "trace"), "python3", "-c", script]
    subprocess.run(command, check=True, cwd=pathlib.Path(__file__).parents[2], capture_output=True)
    trace = (tmp_path / "trace").read_text()
    (found,) = re.findall(r'openat\((\d+), "disk\.vmdk"', trace)
    # By its name in the directory that was looked up, and nothing else below that, nor by a path.
    assert set(re.findall(rf'openat\({found}, "([^"]*)"', trace)) <= {"disk.vmdk", *tmp_path.parts}
    assert str(tmp_path) not in re.sub(r"execve\(.*", "", trace)


# ---- qcow2 ---------------------------------------------------------------------------------------------------------

LEAKS = {"e2image -Q"}


@pytest.mark.parametrize("writer", QCOW2_WRITERS)
def test_facts_of_qcow2(tmp_path: pathlib.Path, writer: str) -> None:
    path = tmp_path / "disk.qcow2"
    QCOW2_WRITERS[writer](str(path), SIZE, DATA)
    checked = qemu.check(str(path))
    assert checked.code == (3 if writer in LEAKS else 0), checked.text
    theirs = facts(path, "qcow2")
    with Image.open(str(path)) as image:
        ours, listed, bitmaps = image_info(image), list_snapshots(image), list_bitmaps(image)
    assert (ours.virtual_size, ours.cluster_size) == (theirs["virtual-size"], theirs["cluster-size"])
    assert [each.name.decode() for each in listed.snapshots] == [
        each["name"]
        for each in theirs.get("snapshots", [])  # type: ignore[attr-defined]
    ]
    assert bitmaps.bitmaps == ()


@pytest.mark.parametrize("size", [SIZE, 40 * GIGA])
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("writer", QCOW2_WRITERS)
def test_snapshots_of_qcow2(arena: Arena, writer: str, empty: bool, size: int) -> None:
    """The same bytes as qemu-img leaves, operation by operation."""
    last = {size // KILO64 - 1: b"\x55" * KILO64} if size > SIZE and writer != "e2image -Q" else {}
    QCOW2_WRITERS[writer](
        arena.disk, min(size, GIGA) if writer == "e2image -Q" else size, {} if empty else {**DATA, **last}
    )
    arena.agree("create", b"new")
    qemu.io(arena.disk, "write -P 77 0 128k", "write -P 78 5M 64k")
    arena.agree("create", b"newer")
    arena.agree("apply", b"new")
    arena.agree("delete", b"newer")
    if writer == "qemu 0.12" and not empty:
        arena.agree("apply", b"old")
        arena.agree("delete", b"old")
    arena.agree("delete", b"new")


@pytest.mark.parametrize("writer", QCOW2_WRITERS)
def test_commit_and_rebase_of_qcow2(tmp_path: pathlib.Path, writer: str) -> None:
    """As the base of a commit; then as what a rebase takes away."""
    (tmp_path / "made").mkdir()
    QCOW2_WRITERS[writer](str(tmp_path / "made/base.qcow2"), SIZE, DATA)
    qemu.create(str(tmp_path / "made/other.qcow2"), SIZE)
    overlay(tmp_path / "made/top.qcow2", "base.qcow2", "qcow2", "write -P 7 64k 64k")
    theirs, ours = both(tmp_path)
    qemu.must(["qemu-img", "commit", "-q", "top.qcow2"], cwd=str(theirs))
    committed(ours / "top.qcow2")
    assert differences(str(theirs / "base.qcow2"), str(ours / "base.qcow2")) == []
    qemu.must(["qemu-img", "rebase", "-b", "other.qcow2", "-F", "qcow2", "top.qcow2"], cwd=str(theirs))
    with (
        open_chain(str(ours / "top.qcow2"), writable_layers=(0,)) as chain,
        open_backing(chain, b"other.qcow2", "qcow2") as backing,
    ):
        rebase(chain, backing)
    assert differences(str(theirs / "top.qcow2"), str(ours / "top.qcow2")) == []
    assert content(ours / "base.qcow2", "qcow2") == content(theirs / "base.qcow2", "qcow2")


@pytest.mark.parametrize("writer", QCOW2_WRITERS)
def test_overlays_of_other_programs(tmp_path: pathlib.Path, writer: str) -> None:
    """None of them records a format, which is stated then. The name stands right behind the header."""
    (tmp_path / "made").mkdir()
    qemu.create(str(tmp_path / "made/base.qcow2"), SIZE)
    qemu.io(str(tmp_path / "made/base.qcow2"), "write -P 3 2M 64k")
    QCOW2_WRITERS[writer](str(tmp_path / "made/top.qcow2"), SIZE, {1: b"\x07" * KILO64}, b"base.qcow2")
    theirs, ours = both(tmp_path)
    with pytest.raises(errors.ChainError) as caught:
        open_chain(str(ours / "top.qcow2"))
    assert caught.value.code == "backing_format_missing"
    wanted = content(theirs / "top.qcow2", "qcow2")
    with open_chain(str(ours / "top.qcow2"), writable_layers=(0,), backing_format="qcow2") as chain:
        open_base(chain, 1)
        commit(chain, 1, empties=False)
    assert content(ours / "base.qcow2", "qcow2")[: len(wanted)] == wanted
    qemu.must(["qemu-img", "rebase", "-u", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"], cwd=str(theirs))
    with (
        open_chain(str(ours / "top.qcow2"), writable_layers=(0,), backing_format="qcow2") as chain,
        open_backing(chain, b"base.qcow2", "qcow2") as backing,
    ):
        rebase(chain, backing)
    assert facts(ours / "top.qcow2", "qcow2")["backing-filename-format"] == "qcow2"
    assert qemu.check(str(ours / "top.qcow2")).code in (0, 3)


@pytest.mark.parametrize("index", [1, 9, GIGA // KILO64])
def test_written_to_by_virtualbox(tmp_path: pathlib.Path, index: int) -> None:
    """It counts nothing: the image can be read, and every program that goes by the refcounts would overwrite it."""
    path = tmp_path / "disk.qcow2"
    qemu.create(str(path), 2 * GIGA)
    qemu.io(str(path), "write -P 1 0 64k")
    written_by_virtualbox(str(path), index, b"\x07" * KILO64)
    assert qemu.check(str(path)).code == 2
    before = path.read_bytes()
    with Image.open(str(path), writable=True) as image:
        assert image_info(image).virtual_size == 2 * GIGA
        assert list_snapshots(image).snapshots == ()
        with pytest.raises(errors.InconsistentImageError) as caught:
            create_snapshot(image, b"new", qemu.DATE)
    assert (caught.value.code, caught.value.modified) == ("refcount_too_low", False)
    assert path.read_bytes() == before
    # What the message advises for a copy helps: without bitmaps qemu-img repairs such an image.
    qemu.must(["qemu-img", "check", "-q", "-r", "all", str(path)])
    with Image.open(str(path), writable=True) as image:
        create_snapshot(image, b"new", qemu.DATE)
    assert qemu.check(str(path)).clean
    qemu.must(["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P 7 {index * KILO64} 64k", str(path)])
