# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qcow2_info: how the facts of an image are told."""

from __future__ import annotations

import typing as t

import pytest

from tests.unit.plugins.scripted import Script

Run = t.Callable[..., dict[str, t.Any]]


def test_a_plain_image(run_module: Run, script: Script) -> None:
    script.expect("open", "a", False, False)
    script.expect("image_info", "a", gives=script.info(snapshots=(script.snapshot(1, b"s"),)))
    script.expect("list_bitmaps", "a", True, gives=script.with_bitmaps()).expect("close", "a")
    answer = run_module("qcow2_info", path="a")
    assert (answer["rc"], answer["changed"]) == (0, False)
    (image,) = answer["images"]
    assert image["snapshots"] == answer["snapshots"]
    assert image["listing"] == answer["listing"]
    assert [snapshot["name"] for snapshot in image.pop("snapshots")] == ["s"]
    assert image.pop("listing").count("\n") == 3
    assert image == {
        "path": "a",
        "format": "qcow2",
        "version": 3,
        "virtual_size": 1 << 20,
        "file_size": 196624,
        "cluster_size": 65536,
        "refcount_bits": 16,
        "dirty": False,
        "corrupt": False,
        "lazy_refcounts": False,
        "extended_l2": False,
        "compression_type": "zlib",
        "encryption": None,
        "features": {"incompatible": [], "compatible": [], "autoclear": []},
        "backing_file": None,
        "backing_format": None,
        "data_file": None,
        "bitmap_count": 0,
        "bitmaps": [],
        "snapshot_count": 1,
        "truncated": False,
        "bitmaps_damage": None,
    }
    assert "dirty_extents" not in answer


def test_an_image_with_everything(run_module: Run, script: Script) -> None:
    facts = script.info(
        incompatible_features=1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4,
        compatible_features=1 << 0 | 1 << 63,
        autoclear_features=1 << 1,
        encryption="luks",
        compression_type="zstd",
        backing_name=b"base\x1b\xff.qcow2",
        backing_format=b"qcow2",
        data_file=b"data.raw",
        bitmap_count=2,
    )
    script.expect("open", "a", False, True).expect("image_info", "a", gives=facts)
    there = script.bitmap(b"b\x1b", dirty=2), script.bitmap(b"c", stale=True, recording=False)
    script.expect("list_bitmaps", "a", True, gives=script.with_bitmaps(*there)).expect("close", "a")
    answer = run_module("qcow2_info", path="a", force_share=True)
    assert answer["bitmaps"] == [
        {
            "name": "b\ufffd",
            "granularity": 65536,
            "recording": True,
            "in_use": False,
            "stale": False,
            "inconsistent": False,
            "dirty_bytes": 131072,
            "dirty_count": 2,
        },
        {
            "name": "c",
            "granularity": 65536,
            "recording": False,
            "in_use": False,
            "stale": True,
            "inconsistent": True,
            "dirty_bytes": None,
            "dirty_count": None,
        },
    ]
    image = answer["images"][0]
    assert image["features"] == {"incompatible": [0, 1, 2, 3, 4], "compatible": [0, 63], "autoclear": [1]}
    assert all(image[flag] for flag in ("dirty", "corrupt", "lazy_refcounts", "extended_l2"))
    assert (image["encryption"], image["compression_type"], image["bitmap_count"]) == ("luks", "zstd", 2)
    assert (image["backing_file"], image["backing_format"]) == ("base\ufffd\ufffd.qcow2", "qcow2")
    assert image["data_file"] == "data.raw"
    assert answer["listing"] == ""


def test_several_images(run_module: Run, script: Script) -> None:
    for path in "ab":
        script.expect("open", path, False, False)
    for path in "ab":
        script.expect("image_info", path, gives=script.info())
        script.expect("list_bitmaps", path, True, gives=script.with_bitmaps())
    script.expect("close", "b").expect("close", "a")
    answer = run_module("qcow2_info", path=["a", "b"], check=True)
    assert [image["path"] for image in answer["images"]] == ["a", "b"]
    assert "snapshots" not in answer
    assert answer["sandbox"]["exits"] == 12


def test_a_refusal(run_module: Run, script: Script, errors: t.Any) -> None:
    script.expect("open", "a", False, False)
    script.expect("image_info", "a", gives=errors.NotQcow2Error("a: This is not a qcow2 image.", "not_qcow2"))
    script.expect("close", "a")
    answer = run_module("qcow2_info", path="a")
    assert (answer["rc"], answer["error_code"]) == (1, "not_qcow2")
    assert answer["msg"] == "a: This is not a qcow2 image."


@pytest.mark.parametrize(("end", "following"), [(1 << 20, None), (300000, 300000)])
def test_dirty_ranges(run_module: Run, script: Script, end: int, following: int | None) -> None:
    script.expect("open", "a", False, False).expect("image_info", "a", gives=script.info(bitmap_count=1))
    listed = script.with_bitmaps(script.bitmap(b"b", dirty=2), extents=[(65536, 65536), (262144, 65536)], end=end)
    script.expect("list_bitmaps", "a", True, b"b", 2, 4096, gives=listed).expect("close", "a")
    answer = run_module("qcow2_info", path="a", dirty_extents=True, bitmap="b", extents_limit=2, extents_start=4096)
    assert answer["dirty_extents"] == [{"offset": 65536, "length": 65536}, {"offset": 262144, "length": 65536}]
    assert answer["extents_next"] == following
    assert answer["images"][0]["dirty_extents"] == answer["dirty_extents"]
    assert [bitmap["name"] for bitmap in answer["bitmaps"]] == ["b"]


def test_dirty_ranges_of_what_is_not_there(run_module: Run, script: Script, errors: t.Any) -> None:
    script.expect("open", "a", False, False).expect("image_info", "a", gives=script.info())
    failure = errors.BitmapNotFoundError("a: There is no bitmap 'b' in the image.", "bitmap_not_found")
    script.expect("list_bitmaps", "a", True, b"b", 10000, 0, gives=failure).expect("close", "a")
    answer = run_module("qcow2_info", path="a", dirty_extents=True, bitmap="b")
    assert (answer["rc"], answer["error_code"]) == (1, "bitmap_not_found")


BAD_ARGUMENTS: list[tuple[dict[str, t.Any], str]] = [
    ({"bitmap": ""}, "empty_name"),
    ({"bitmap": "b" * 1024}, "name_too_long"),
    ({"bitmap": "b", "extents_limit": 0}, "bad_extents"),
    ({"bitmap": "b", "extents_limit": (1 << 20) + 1}, "bad_extents"),
    ({"bitmap": "b", "extents_start": -1}, "bad_extents"),
    ({"bitmap": "b", "extents_start": 1 << 63}, "bad_extents"),
]


@pytest.mark.parametrize(("arguments", "code"), BAD_ARGUMENTS)
def test_bad_arguments(run_module: Run, script: Script, arguments: dict[str, t.Any], code: str) -> None:
    answer = run_module("qcow2_info", path="a", dirty_extents=True, **arguments)
    assert (answer["rc"], answer["error_code"]) == (1, code)


def test_dirty_ranges_need_a_bitmap(run_module: Run, script: Script) -> None:
    answer = run_module("qcow2_info", path="a", dirty_extents=True)
    assert answer["rc"] == 1
    assert "bitmap" in answer["msg"]


# ---- images that cannot be read -------------------------------------------------------------------------------------


def three(script: Script, errors: t.Any) -> None:
    """Of a, b and c, b is in use, and c is damaged."""
    held = errors.ImageInUseError("b is in use.")
    held.pids = (4711,)
    script.expect("open", "a", False, False).expect("open", "b", False, False, gives=held)
    script.expect("open", "c", False, False)
    script.expect("image_info", "a", gives=script.info())
    script.expect("list_bitmaps", "a", True, gives=script.with_bitmaps())
    script.expect("image_info", "c", gives=errors.RefusalError("c is damaged.", "overlap"))
    script.expect("close", "c").expect("close", "a")


@pytest.mark.parametrize("fail_on", ["any", "all", "none"])
def test_one_bad_image_does_not_hide_the_others(run_module: Run, script: Script, errors: t.Any, fail_on: str) -> None:
    three(script, errors)
    answer = run_module("qcow2_info", path=["a", "b", "c"], fail_on=fail_on)
    first, second, third = answer["images"]
    assert (first["path"], first["virtual_size"]) == ("a", 1 << 20)
    reasons = {"path": "b", "error_code": "in_use", "msg": "b is in use.", "truncated": False, "pids": [4711]}
    assert second == reasons
    assert (third["path"], third["error_code"], third["msg"]) == ("c", "overlap", "c is damaged.")
    assert answer.get("failed", False) == (fail_on == "any")
    if fail_on == "any":
        assert (answer["error_code"], answer["pids"]) == ("in_use", [4711])
        assert answer["msg"] == "b is in use. Of 3 images, 2 could not be read; see images."


@pytest.mark.parametrize(("fail_on", "failed"), [("any", True), ("all", True), ("none", False)])
def test_no_image_can_be_read(run_module: Run, script: Script, errors: t.Any, fail_on: str, failed: bool) -> None:
    script.expect("open", "a", False, False, gives=errors.ImageOpenError("a is not there.", "not_found"))
    answer = run_module("qcow2_info", path="a", fail_on=fail_on)
    assert answer.get("failed", False) == failed
    assert answer["images"][0]["error_code"] == "not_found"
    assert answer.get("msg") == ("a is not there." if failed else None)
    assert "snapshots" not in answer


def test_wrong_options_are_no_fault_of_an_image(run_module: Run, script: Script) -> None:
    script.expect("open", "a", False, False).expect("close", "a")
    answer = run_module("qcow2_info", path="a", format="vmdk", dirty_extents=True, bitmap="b", fail_on="none")
    assert (answer["failed"], answer["error_code"]) == (True, "bitmap_not_found")


@pytest.mark.parametrize("given", ["128M", "128MiB", "134217728", 134217728, "1g", "1GB", "0.5T"])
def test_a_memory_limit(
    run_module: Run, script: Script, image_module: t.Any, monkeypatch: pytest.MonkeyPatch, given: object
) -> None:
    """And a warning, where it was too little."""
    memory, limits = image_module.memory, []
    shortage = {f"{given!r}": (3, memory.LEAST)}  # a text of its own: the same warning is given once
    monkeypatch.setattr(memory, "set_limit", limits.append)
    monkeypatch.setattr(memory, "short", shortage)
    script.expect("open", "a", False, False)
    script.expect("image_info", "a", gives=script.info(snapshots=()))
    script.expect("list_bitmaps", "a", True, gives=script.with_bitmaps()).expect("close", "a")
    answer = run_module("qcow2_info", path="a", memory_limit=given)
    assert limits == [{"1g": 1 << 30, "1GB": 1 << 30, "0.5T": 1 << 39}.get(str(given), memory.LEAST)]
    (warning,) = answer["warnings"]
    assert "128 MiB" in str(warning)
    assert "3 times" in str(warning)


@pytest.mark.parametrize("given", ["127M", 0, "", "1.5 elephants", "-1", "9" * 400])
def test_what_is_no_memory_limit(run_module: Run, script: Script, given: object) -> None:
    answer = run_module("qcow2_info", path="a", memory_limit=given)
    assert answer["error_code"] == "bad_memory_limit"
    assert "128M or more" in answer["msg"]
