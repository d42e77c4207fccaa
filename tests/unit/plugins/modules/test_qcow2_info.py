# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qcow2_info: how the facts of an image are told."""

from __future__ import annotations

import typing as t

from tests.unit.plugins.scripted import Script

Run = t.Callable[..., dict[str, t.Any]]


def test_a_plain_image(run_module: Run, script: Script) -> None:
    script.expect("open", "a", False, False)
    script.expect("image_info", "a", gives=script.info(snapshots=(script.snapshot(1, b"s"),))).expect("close", "a")
    answer = run_module("qcow2_info", path="a")
    assert (answer["rc"], answer["changed"]) == (0, False)
    (image,) = answer["images"]
    assert image["snapshots"] == answer["snapshots"]
    assert image["listing"] == answer["listing"]
    assert [snapshot["name"] for snapshot in image.pop("snapshots")] == ["s"]
    assert image.pop("listing").count("\n") == 3
    assert image == {
        "path": "a",
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
    }


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
    script.expect("open", "a", False, True).expect("image_info", "a", gives=facts).expect("close", "a")
    answer = run_module("qcow2_info", path="a", force_share=True)
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
    script.expect("close", "b").expect("close", "a")
    answer = run_module("qcow2_info", path=["a", "b"], check=True)
    assert [image["path"] for image in answer["images"]] == ["a", "b"]
    assert "snapshots" not in answer
    assert answer["sandbox"]["exits"] == 6


def test_a_refusal(run_module: Run, script: Script, errors: t.Any) -> None:
    script.expect("open", "a", False, False)
    script.expect("image_info", "a", gives=errors.NotQcow2Error("a: This is not a qcow2 image.", code="not_qcow2"))
    script.expect("close", "a")
    answer = run_module("qcow2_info", path="a")
    assert (answer["rc"], answer["error_code"]) == (1, "not_qcow2")
    assert answer["msg"] == "a: This is not a qcow2 image."
