# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qcow2_info with chain: real images and real guests, for the chain is more than one call."""

from __future__ import annotations

import pathlib
import typing as t

import pytest

from tests.support.chain_images import overlay, raw
from tests.support.vmdk import NO_PARENT, Recipe

Run = t.Callable[..., dict[str, t.Any]]


@pytest.fixture
def top(tmp_path: pathlib.Path) -> str:
    """top.qcow2 on other/base.raw, and that is not in its directory."""
    (tmp_path / "home").mkdir()
    (tmp_path / "other").mkdir()
    raw(tmp_path / "other/base.raw", 3 << 20)
    return str(overlay(tmp_path / "home/top.qcow2", b"../other/base.raw", b""))


def test_chain(run_module: Run, top: str, tmp_path: pathlib.Path) -> None:
    roots = [str(tmp_path / "other")]
    answer = run_module("qcow2_info", path=top, chain=True, allowed_roots=roots, backing_format="raw", check=True)
    assert answer["rc"] == 0, answer
    assert answer["changed"] is False
    assert answer["chain_drawing"] == "base.raw <- top.qcow2"
    assert answer["chain"] == [
        {
            "path": top,
            "format": "qcow2",
            "depth": 0,
            "virtual_size": 1 << 20,
            "file_size": 196616,
            "backing_file": "../other/base.raw",
            "backing_format": None,
            "data_file": None,
        },
        {
            "path": f"{tmp_path}/home/../other/base.raw",
            "format": "raw",
            "depth": 1,
            "virtual_size": 3 << 20,
            "file_size": 3 << 20,
            "backing_file": None,
            "backing_format": None,
            "data_file": None,
        },
    ]
    assert answer["images"][0]["chain"] == answer["chain"]
    assert answer["images"][0]["chain_drawing"] == answer["chain_drawing"]


def test_chain_is_not_opened_unasked(run_module: Run, top: str) -> None:
    answer = run_module("qcow2_info", path=top)
    assert answer["rc"] == 0
    assert "chain" not in answer
    assert "chain" not in answer["images"][0]
    assert answer["images"][0]["backing_file"] == "../other/base.raw"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, "backing_outside"),
        ({"allowed_roots": ["/nothing"]}, "bad_allowed_root"),
        ({"allowed_roots": ["/"]}, "backing_format_missing"),
        ({"allowed_roots": ["/"], "backing_format": "qcow2"}, "not_qcow2"),
    ],
)
def test_refusals(run_module: Run, top: str, options: dict[str, t.Any], code: str) -> None:
    answer = run_module("qcow2_info", path=top, chain=True, **options)
    assert (answer["rc"], answer["error_code"]) == (1, code)
    assert top in answer["msg"] or code in ("bad_allowed_root", "not_qcow2")


def test_several_images(run_module: Run, top: str, tmp_path: pathlib.Path) -> None:
    """Each has a chain of its own, and they may share a base."""
    second = str(overlay(tmp_path / "other/second.qcow2", b"base.raw", b"raw"))
    options = {"chain": True, "allowed_roots": [str(tmp_path / "other")], "backing_format": "raw"}
    answer = run_module("qcow2_info", path=[top, second], **options)
    assert answer["rc"] == 0, answer
    assert [image["chain_drawing"] for image in answer["images"]] == [
        "base.raw <- top.qcow2",
        "base.raw <- second.qcow2",
    ]
    assert "chain" not in answer


@pytest.fixture
def vmdk(tmp_path: pathlib.Path) -> str:
    """top.vmdk on other/base.vmdk."""
    (tmp_path / "other").mkdir()
    base = Recipe(1 << 20, cid=7)
    base.make(tmp_path / "other/base.vmdk")
    Recipe(1 << 20, 4096, zeroed_grains=True, parent=b"other/base.vmdk", parent_cid=7).make(tmp_path / "top.vmdk")
    return str(tmp_path / "top.vmdk")


def test_vmdk(run_module: Run, vmdk: str) -> None:
    answer = run_module("qcow2_info", path=vmdk, format="vmdk")
    assert (answer["rc"], answer["changed"]) == (0, False), answer
    assert answer["images"] == [
        {
            "path": vmdk,
            "format": "vmdk",
            "version": 1,
            "virtual_size": 1 << 20,
            "file_size": pathlib.Path(vmdk).stat().st_size,
            "cluster_size": 4096,
            "zeroed_grains": True,
            "content_id": 0x12345678,
            "parent_content_id": 7,
            "backing_file": "other/base.vmdk",
            "backing_format": "vmdk",
            "bitmaps": [],
            "bitmaps_damage": None,
            "snapshots": [],
            "snapshot_count": 0,
            "truncated": False,
            "listing": "",
        }
    ]
    assert (answer["snapshots"], answer["bitmaps"], answer["listing"]) == ([], [], "")
    assert "chain" not in answer


def test_vmdk_chain(run_module: Run, vmdk: str, tmp_path: pathlib.Path) -> None:
    answer = run_module("qcow2_info", path=vmdk, format="vmdk", chain=True)
    assert answer["chain_drawing"] == "base.vmdk <- top.vmdk"
    assert [layer["format"] for layer in answer["chain"]] == ["vmdk", "vmdk"]
    both = [vmdk, str(tmp_path / "other/base.vmdk")]
    answer = run_module("qcow2_info", path=both, format="vmdk", chain=True, force_share=True)
    assert [image["chain_drawing"] for image in answer["images"]] == ["base.vmdk <- top.vmdk", "base.vmdk"]
    assert answer["images"][1]["parent_content_id"] == NO_PARENT


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"format": "qcow2"}, "not_qcow2"),
        ({"format": "vmdk", "dirty_extents": True, "bitmap": "b"}, "bitmap_not_found"),
        ({"format": "vmdk", "chain": True}, "backing_outside"),
    ],
)
def test_vmdk_refusals(run_module: Run, vmdk: str, options: dict[str, t.Any], code: str) -> None:
    Recipe(1 << 20, parent=b"../base.vmdk", parent_cid=7).make(vmdk)
    answer = run_module("qcow2_info", path=vmdk, **options)
    assert (answer["rc"], answer["error_code"]) == (1, code)


def test_formats_are_not_guessed(run_module: Run, top: str) -> None:
    answer = run_module("qcow2_info", path=top, format="vmdk")
    assert (answer["rc"], answer["error_code"]) == (1, "not_vmdk")
