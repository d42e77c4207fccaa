# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chains with vmdk layers: what the host makes of them. Nothing is opened that they name against the rules."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

from sandbox import errors
from sandbox.images import vmdk
from sandbox.images.chain import drawing, open_chain
from sandbox.images.commits import commit, open_base
from sandbox.images.image import Image
from sandbox.vmm import machine
from tests.support import qemu
from tests.support.chain_images import overlay
from tests.support.vmdk import Recipe, Vmdk, patch

from .command_line import Airlock, qemu_img
from .guest_answers import Guest
from .test_chain_refusals import Trace, refusal

pytestmark = pytest.mark.kvm

MEGA = 1 << 20
RECIPE = Recipe(MEGA)


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    """base.vmdk <- top.vmdk <- upper.qcow2, and a file elsewhere that names want to lead to."""
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    outside.mkdir()
    RECIPE.make(outside / "bait.vmdk")
    RECIPE.make(home / "base.vmdk")
    qemu.must(["qemu-io", "-f", "vmdk", "-c", "write -P 1 0 256k", str(home / "base.vmdk")])
    RECIPE.on(home / "base.vmdk").make(home / "top.vmdk")
    qemu.must(["qemu-io", "-f", "vmdk", "-c", "write -P 2 64k 64k", str(home / "top.vmdk")])
    overlay(home / "upper.qcow2", b"top.vmdk", b"vmdk")
    return home


def test_chain(home: pathlib.Path) -> None:
    with open_chain(str(home / "upper.qcow2")) as chain:
        assert drawing(chain) == "base.vmdk <- top.vmdk <- upper.qcow2"
        assert [layer.format for layer in chain.layers] == ["qcow2", "vmdk", "vmdk"]
        assert chain.layers[1].backing_format == b"vmdk"
        assert (chain.base.virtual_size, chain.base.backing_name) == (MEGA, b"")


def test_recorded_format_is_what_counts(home: pathlib.Path) -> None:
    """A vmdk image that is recorded as raw is that, and one that is recorded as nothing is nothing."""
    with open_chain(str(overlay(home / "a.qcow2", b"top.vmdk", b"raw"))) as chain:
        assert drawing(chain) == "top.vmdk <- a.qcow2"
    path = overlay(home / "b.qcow2", b"top.vmdk", b"")
    assert refusal(path).code == "backing_format_missing"
    with open_chain(str(path), backing_format="vmdk") as chain:
        assert len(chain.layers) == 3
    assert refusal(overlay(home / "c.qcow2", b"top.vmdk", b"qcow2")).code == "not_qcow2"
    assert refusal(overlay(home / "d.qcow2", b"upper.qcow2", b"vmdk")).code == "not_vmdk"


NAMES = {
    "absolute path": (b"{outside}/bait.vmdk", "backing_absolute"),
    "file of the host": (b"/etc/shadow", "backing_absolute"),
    "..": (b"../outside/bait.vmdk", "backing_outside"),
    "nbd": (b"nbd://127.0.0.1:10809/x", "backing_protocol"),
    "json": (b"json:{}", "backing_protocol"),
    "itself": (b"evil.vmdk", "backing_loop"),
    "the one above": (b"link-to-upper", "backing_loop"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_of_parents_open_nothing(home: pathlib.Path, case: str) -> None:
    """Row 15 of the hostile images: a parentFileNameHint goes the way of every name of a backing file."""
    name, code = NAMES[case]
    name = name.replace(b"{outside}", bytes(home.parent / "outside"))
    (home / "link-to-upper").symlink_to("evil-top.qcow2")
    evil = home / "evil.vmdk"
    Recipe(MEGA, parent=name, parent_cid=1).make(evil)
    top = overlay(home / "evil-top.qcow2", b"evil.vmdk", b"vmdk")
    trace = Trace(home, top)
    assert trace.answer == code
    assert trace.read == {str(top), str(evil)}
    assert not [line for line in trace.lines if re.search(r"\b(socket|connect|sendto|sendmsg)\(", line)]
    assert not [line for line in trace.lines if "bait" in line or "/etc/shadow" in line]


EXTENTS = {
    "flat": (b"monolithicFlat", b'RW 2048 FLAT "{bait}" 0\n', "vmdk_subformat"),
    "flat, behind a device": (b"vmfs", b'RW 2048 VMFS "{bait}"\n', "vmdk_subformat"),
    "split": (b"twoGbMaxExtentSparse", b'RW 2048 SPARSE "{bait}"\n', "vmdk_subformat"),
    "sparse": (b"monolithicSparse", b'RW 2048 SPARSE "{bait}"\n', "vmdk_extent"),
    "flat and sparse": (b"monolithicSparse", b'RW 2048 FLAT "{bait}" 0\n', "vmdk_subformat"),
    "second one": (b"monolithicSparse", b'RW 2048 SPARSE "disk.vmdk"\nRW 1 FLAT "{bait}" 0\n', "vmdk_descriptor"),
}


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("case", EXTENTS)
def test_names_of_extents_open_nothing(home: pathlib.Path, case: str, embedded: bool) -> None:
    """Rows 14 and 16: whatever an extent's name is, it is not opened."""
    kind, lines, code = EXTENTS[case]
    bait = bytes(home.parent / "outside/bait.vmdk")
    text = RECIPE.descriptor().replace(b"monolithicSparse", kind)
    text = text.replace(b'RW 2048 SPARSE "disk.vmdk"\n', lines.replace(b"{bait}", bait))
    evil = home / "evil.vmdk"
    evil.write_bytes(RECIPE.image(text) if embedded else text)
    top = overlay(home / "evil-top.qcow2", b"evil.vmdk", b"vmdk")
    trace = Trace(home, top)
    assert trace.answer == (code if embedded else "vmdk_subformat")
    assert trace.read == {str(top), str(evil)}
    assert not [line for line in trace.lines if "bait" in line]


def test_descriptor_of_a_megabyte(home: pathlib.Path) -> None:
    (home / "evil.vmdk").write_bytes(RECIPE.image(descriptor_size=2048) + bytes(MEGA))
    assert refusal(overlay(home / "e.qcow2", b"evil.vmdk", b"vmdk")).code == "vmdk_header"


def committed(home: pathlib.Path, empties: bool = True) -> None:
    with open_chain(str(home / "top.vmdk"), writable_layers=(0,), top_format="vmdk") as chain:
        open_base(chain, 1)
        commit(chain, 1, empties)


def test_commit_keeps_the_overlay_in_use(home: pathlib.Path) -> None:
    """It records the base's new content id, so that QEMU goes on to read through it; with -d it is not touched."""
    before = (home / "top.vmdk").read_bytes()
    committed(home, empties=False)
    assert (home / "top.vmdk").read_bytes() == before
    assert Vmdk(home / "base.vmdk").cid != RECIPE.cid
    committed(home)
    assert Vmdk(home / "top.vmdk").parent_cid == Vmdk(home / "base.vmdk").cid
    compare = ["qemu-img", "compare", "-f", "vmdk", "-F", "vmdk", "top.vmdk", "base.vmdk"]
    qemu.must(compare, cwd=str(home))
    after = [(home / name).read_bytes() for name in ("base.vmdk", "top.vmdk")]
    committed(home)
    assert [(home / name).read_bytes() for name in ("base.vmdk", "top.vmdk")] == after


def test_parent_that_was_written_to(home: pathlib.Path) -> None:
    qemu.must(["qemu-io", "-f", "vmdk", "-c", "write -P 9 512k 4k", str(home / "base.vmdk")])
    before = (home / "base.vmdk").read_bytes()
    with pytest.raises(errors.CommitError) as caught:
        committed(home)
    assert caught.value.code == "vmdk_parent_changed"
    assert f"{RECIPE.cid:08x}" not in caught.value.message  # the base had another one when the overlay was made
    assert f"{Vmdk(home / 'base.vmdk').cid:08x}" in caught.value.message
    assert (home / "base.vmdk").read_bytes() == before


def test_command_line(airlock: Airlock, home: pathlib.Path) -> None:
    """The recorded parent is the base, without -b."""
    done = airlock(b"commit", b"-f", b"vmdk", b"top.vmdk", directory=home)
    assert (done.code, done.stdout, done.stderr) == (0, b"Image committed.\n", b"")
    done = airlock(b"info", b"-f", b"vmdk", b"--chain", b"--output", b"json", b"top.vmdk", directory=home)
    facts = json.loads(done.stdout)
    assert (facts["format"], facts["virtual_size"], facts["cluster_size"]) == ("vmdk", MEGA, 65536)
    assert (facts["backing_file"], facts["backing_format"]) == ("base.vmdk", "vmdk")
    assert facts["parent_content_id"] == Vmdk(home / "base.vmdk").cid
    assert [layer["format"] for layer in facts["chain"]] == ["vmdk", "vmdk"]
    text = airlock(b"info", b"-f", b"vmdk", b"--chain", b"top.vmdk", directory=home).stdout
    assert b"file format: vmdk\nvirtual size: 1 MiB (1048576 bytes)\n" in text
    assert b"\n    parent cid: %d\n" % facts["parent_content_id"] in text
    assert b"Backing chain: base.vmdk <- top.vmdk\n" in text


@pytest.mark.parametrize("recipe", [RECIPE, Recipe(3 * MEGA + 512, 4096, 64, True, False, 2), Recipe(MEGA, version=3)])
def test_info_beside_qemu_img(airlock: Airlock, tmp_path: pathlib.Path, recipe: Recipe) -> None:
    """The same lines in the same order, but for what the file system alone knows, and what a node's child is."""
    recipe.make(tmp_path / "base.vmdk")
    recipe.on(tmp_path / "base.vmdk").make(tmp_path / "a disk.vmdk")
    for name in (b"base.vmdk", b"a disk.vmdk"):
        done = airlock(b"info", b"-f", b"vmdk", name, directory=tmp_path)
        assert (done.code, done.stderr) == (0, b"")
        theirs = qemu_img(b"info", b"-f", b"vmdk", name, directory=tmp_path).stdout.partition(b"Child node")[0]
        lines = [line for line in theirs.splitlines() if not line.startswith(b"disk size: ")]
        assert len(lines) > 12
        assert [line for line in done.stdout.splitlines() if not line.startswith(b"file length: ")] == lines
        facts = json.loads(airlock(b"info", b"-f", b"vmdk", b"--output=json", name, directory=tmp_path).stdout)
        theirs = json.loads(qemu_img(b"info", b"-f", b"vmdk", b"--output=json", name, directory=tmp_path).stdout)
        for key in ("virtual-size", "cluster-size", "format"):
            assert facts[key.replace("-", "_")] == theirs[key]
        assert facts["content_id"] == theirs["format-specific"]["data"]["cid"]
        assert facts["parent_content_id"] == theirs["format-specific"]["data"]["parent-cid"]
        assert facts["backing_file"] == theirs.get("backing-filename")
        assert facts["zeroed_grains"] == recipe.zeroed_grains


@pytest.mark.parametrize(
    ("line", "reports"),
    [
        (b"commit upper.vmdk", b"airlock: Could not open 'upper.vmdk': Image is not in qcow2 format\n"),
        (b"commit -f vmdk base.vmdk", b"airlock: Image does not have a backing file\n"),
        (b"commit -f vmdk larger.vmdk", b"airlock: Block job failed: Operation not supported\n"),
        (b"commit -f vmdk old.vmdk", b"airlock: Could not open 'old.vmdk': VMDK version 3 must be read only\n"),
        (b"commit -f vmdk new.vmdk", b"airlock: Could not open 'new.vmdk': Unsupported VMDK version 4\n"),
        (b"commit -f vdi top.vmdk", b"airlock: Could not open 'top.vmdk': Unknown driver 'vdi'\n"),
        (b"commit -f raw top.vmdk", b"airlock: Could not open 'top.vmdk': Unknown driver 'raw'\n"),
        (b"rebase -f vmdk -b base.vmdk upper.vmdk", b"airlock: Could not open 'upper.vmdk': Unknown driver 'vmdk'\n"),
    ],
)
def test_reports_of_qemu_img(airlock: Airlock, home: pathlib.Path, line: bytes, reports: bytes) -> None:
    RECIPE.make(home / "upper.vmdk")
    Recipe(2 * MEGA).on(home / "base.vmdk").make(home / "larger.vmdk")
    for name, version in (("old.vmdk", 3), ("new.vmdk", 4)):
        Recipe(MEGA, version=version).on(home / "base.vmdk").make(home / name)
    before = (home / "base.vmdk").read_bytes()
    done = airlock(*line.split(), directory=home)
    assert (done.code, done.stderr) == (1, reports)
    if b"Unknown driver" not in reports and b"-f" in line:
        assert qemu_img(*line.split(), directory=home).stderr == reports
    assert (home / "base.vmdk").read_bytes() == before


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 4},
        {"grain_size": 65535},
        {"grain_size": 1 << 31},
        {"virtual_size": 513},
        {"virtual_size": 1 << 63},
        {"backing_name_length": 1024},
        {"descriptor_sectors": 0},
        {"descriptor_sectors": 21},
    ],
)
def test_answers_that_cannot_be(home: pathlib.Path, fields: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Guest()
    stand_in.family = "chain"
    sound = {"version": 1, "grain_size": 65536, "virtual_size": 512, "descriptor_sectors": 20}
    stand_in.answers("vmdk_info", **{**sound, **fields})
    monkeypatch.setattr(machine, "run", stand_in.run)
    with Image.open(str(home / "top.vmdk")) as image, pytest.raises(errors.GuestProtocolError):
        vmdk.vmdk_info(image)


def test_grain_outside_the_file_is_not_read(home: pathlib.Path) -> None:
    """Found where it is followed, in a layer that is only read."""
    image = Vmdk(home / "top.vmdk")
    table = int.from_bytes(image.bytes[image.header["directory"] * 512 :][:4], "little") * 512
    patch(home / "top.vmdk", table + 4, (1 << 30).to_bytes(4, "little"))
    before = (home / "base.vmdk").read_bytes()
    with pytest.raises(errors.InconsistentImageError) as caught:
        committed(home)
    assert caught.value.code == "vmdk_outside"
    assert (home / "base.vmdk").read_bytes() == before


def test_commit_below_a_layer_that_stays(home: pathlib.Path) -> None:
    """Of a qcow2 top, two layers down: the layer between records the base's new id, so that both stay of use."""
    upper = home / "upper.qcow2"
    qemu.must(["qemu-io", "-f", "qcow2", "-c", "write -P 3 512k 64k", str(upper)])
    for _again in range(2):
        with open_chain(str(upper), writable_layers=(0,)) as chain:
            open_base(chain, 2)
            commit(chain, 2, empties=False)
        assert Vmdk(home / "top.vmdk").parent_cid == Vmdk(home / "base.vmdk").cid != RECIPE.cid
    reads = [f"read -P {pattern} {offset}k 64k" for pattern, offset in ((1, 0), (2, 64), (3, 512))]
    for path, kind in ((upper, "qcow2"), (home / "top.vmdk", "vmdk"), (home / "base.vmdk", "vmdk")):
        qemu.must(["qemu-io", "-r", "-f", kind, *(word for read in reads for word in ("-c", read)), str(path)])


def test_a_layer_between_in_an_allowed_root_is_not_written_to(home: pathlib.Path) -> None:
    """The layer that would record the base's new id is named by an image alone."""
    other = home.parent / "outside"
    layers = [other / name for name in ("top.vmdk", "base.vmdk")]
    for layer in layers:
        (home / layer.name).rename(layer)
    before = [layer.read_bytes() for layer in layers]
    upper = overlay(home / "upper.qcow2", bytes(layers[0]), b"vmdk")
    with open_chain(str(upper), writable_layers=(0,), allowed_roots=[str(other)]) as chain:
        open_base(chain, 2)
        with pytest.raises(errors.ChainError) as caught:
            commit(chain, 2, empties=False)
    assert caught.value.code == "backing_elsewhere"
    assert [layer.read_bytes() for layer in layers] == before
    with open_chain(str(upper), writable_layers=(0,), allowed_roots=[str(other), str(layers[0])]) as chain:
        open_base(chain, 2)
        commit(chain, 2, empties=False)
    assert Vmdk(layers[0]).parent_cid == Vmdk(layers[1]).cid != RECIPE.cid


def test_commit_that_ended_between_the_two_ids_is_run_again(home: pathlib.Path) -> None:
    """Not all layers above are of vmdk, so that their ids do not tell all that the base got."""
    upper = home / "upper.qcow2"
    qemu.must(["qemu-io", "-f", "qcow2", "-c", "write -P 3 512k 64k", str(upper)])
    before = (home / "top.vmdk").read_bytes()
    for _again in range(2):
        with open_chain(str(upper), writable_layers=(0,)) as chain:
            open_base(chain, 2)
            commit(chain, 2, empties=False)
        assert Vmdk(home / "top.vmdk").parent_cid == Vmdk(home / "base.vmdk").cid
        (home / "top.vmdk").write_bytes(before)


def test_grains_of_a_gibibyte(home: pathlib.Path) -> None:
    """The first new one begins behind a GiB, and is one."""
    recipe = Recipe(200 * MEGA, grain=1 << 30)
    recipe.make(home / "base.vmdk")
    upper = overlay(home / "upper.qcow2", b"base.vmdk", b"vmdk")
    qemu.must(["qemu-io", "-f", "qcow2", "-c", "write -P 3 512k 64k", str(upper)])
    with open_chain(str(upper), writable_layers=(0,)) as chain:
        open_base(chain, 1)
        commit(chain, 1)
    qemu.must(["qemu-io", "-r", "-f", "vmdk", "-c", "read -P 3 512k 64k", str(home / "base.vmdk")])
