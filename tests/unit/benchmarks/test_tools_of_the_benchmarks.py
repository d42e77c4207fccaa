# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the benchmarks rest on: the metadata of an image, comparison of sparse files, memory of a process tree."""

from __future__ import annotations

import os
import pathlib
import sys
import types
from xml.etree import ElementTree

import pytest

from benchmarks import bitmaps, floor, growth, growth_chart, large_image, measure, tables
from sandbox import operations

SIZE = 64 << 20  # of the sparse files, bytes


def sparse(path: pathlib.Path, *written: tuple[int, bytes]) -> pathlib.Path:
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for offset, data in written:
            os.pwrite(file.fileno(), data, offset)
    return path


@pytest.mark.parametrize("offset", [0, 5 << 20, SIZE - 1])
def test_one_byte_of_difference_is_found(tmp_path: pathlib.Path, offset: int) -> None:
    common = (9 << 20, b"data")
    first = sparse(tmp_path / "first", common)
    assert large_image.same_bytes(first, sparse(tmp_path / "same", common))
    assert not large_image.same_bytes(first, sparse(tmp_path / "other", common, (offset, b"x")))
    assert not large_image.same_bytes(sparse(tmp_path / "third", common, (offset, b"x")), first)


def test_written_zeros_and_a_hole_are_the_same_bytes(tmp_path: pathlib.Path) -> None:
    written = sparse(tmp_path / "written", (1 << 20, bytes(1 << 20)))
    assert large_image.same_bytes(written, sparse(tmp_path / "hole"))


def test_another_length_is_a_difference(tmp_path: pathlib.Path) -> None:
    longer = sparse(tmp_path / "longer")
    os.truncate(longer, SIZE + 1)
    assert not large_image.same_bytes(longer, sparse(tmp_path / "file"))


def test_the_metadata_of_a_full_image_is_found_and_rewriting_it_changes_nothing(tmp_path: pathlib.Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    large_image.make_image(image, "4G")
    measure.run(["cp", "--sparse=auto", str(image), str(copy)])
    metadata = floor.metadata_of(str(image))
    assert len(metadata.l2_tables) == 4 << 30 >> 16 >> 13  # 8192 clusters of 64 KiB to an L2 table
    assert len(metadata.refcount_blocks) == -(-image.stat().st_size // (65536 * 32768))
    assert metadata.size == 65536 * (len(metadata.l2_tables) + len(metadata.refcount_blocks))
    floor.rewrite(str(image), metadata)
    assert large_image.same_bytes(image, copy)


def test_no_image_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(bytes(512))
    with pytest.raises(ValueError, match="no qcow2 image"):
        floor.metadata_of(str(tmp_path / "file"))


def test_memory_of_children_counts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child stays until both of its sizes have been seen."""
    seen, due = tmp_path / "seen", ["Pss:", "VmHWM:"]
    field = measure._field

    def note(path: str, name: str) -> int:
        size = field(path, name)
        if size > 32 << 20 and due[:1] == [name] and not (due.pop(0) and due):
            seen.touch()
        return size

    monkeypatch.setattr(measure, "_field", note)
    child = f"held = b'x' * (33 << 20); import os, time\nwhile not os.path.exists({str(seen)!r}): time.sleep(0.01)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    memory = measure.peak_memory([sys.executable, "-c", parent])
    assert memory.shared_once > 32 << 20
    assert memory.each_apart > 32 << 20


def test_contenders_take_turns() -> None:
    order = []

    def contender(name: str, seconds: float) -> float:
        order.append(name)
        return seconds * len(order)

    spreads = measure.take_turns({"a": lambda: contender("a", 1), "b": lambda: contender("b", 10)}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert spreads["a"] == (1, 4, 5)
    assert spreads["b"] == (20, 30, 60)


def test_a_command_that_fails_is_an_error_with_its_words() -> None:
    with pytest.raises(RuntimeError, match=r"exit 3: .*sorry"):
        measure.run([sys.executable, "-c", "import sys; print('sorry'); sys.exit(3)"])


def test_a_table_is_aligned() -> None:
    assert tables.table(["what", "n"], [["long name", "1"], ["x", "234"]]).splitlines() == [
        "| what      |   n |",
        "| :-------- | --: |",
        "| long name |   1 |",
        "| x         | 234 |",
    ]


def test_bitmaps_that_have_bits_in_every_cluster(tmp_path: pathlib.Path) -> None:
    image = tmp_path / "image"
    bitmaps.make_image(image, "1G")
    measure.run(["qemu-img", "check", "-q", str(image)])
    with operations.Image.open(str(image)) as opened:
        found = operations.list_bitmaps(opened).bitmaps
    bits = (1 << 30) // bitmaps.GRANULARITY
    assert [(b.name, b.granularity, b.recording) for b in found] == [
        (name, bitmaps.GRANULARITY, False) for name in (b"even", b"odd", b"sparse")
    ]
    # One bit in 512 bytes of the sparse one's first cluster.
    assert [b.dirty_count for b in found] == [bits // 2, bits // 2, 65536 // 512]


def test_steps_on_bitmaps_end_where_they_began(tmp_path: pathlib.Path) -> None:
    """And lead to the same as qemu-img's."""
    assert "check clean" in bitmaps.equal(tmp_path, "256M")
    assert list(tmp_path.iterdir()) == []
    assert bitmaps.STEPS[0].title == "add"
    assert bitmaps.STEPS[-1].title == "remove"


def test_a_file_that_claims_ten_thousand_bitmaps_is_answered(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "image"
    measure.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "64G"])
    measure.run(["qemu-img", "bitmap", "--add", str(path), "one"])
    bitmaps.claim(path)
    assert path.stat().st_size < 1 << 20
    bitmaps.listed(str(path))
    memory = measure.peak_memory([bitmaps.large_image.AIRLOCK, "bitmap", "--list", str(path)], may_fail=True)
    assert memory.each_apart < 160 << 20


def test_a_chart_has_a_line_with_a_label_for_each_row() -> None:
    """Both axes are logarithmic: ten times is as far everywhere. A name is text, whatever is in it."""
    sizes = [1 << 30, 10 << 30, 100 << 30]
    lines = {"create": [(size, size / (10 << 30)) for size in sizes], "<floor>": [(size, 0.01) for size in sizes]}
    root = ElementTree.fromstring(growth_chart.chart(lines, lambda size: f"{size >> 30} GiB"))
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"create", "<floor>", "1 GiB", "10 GiB", "100 GiB", "0.01 s", "0.1 s", "1 s", "10 s"} <= set(texts)
    circles = root.iter("{http://www.w3.org/2000/svg}circle")
    dots = [(float(circle.get("cx", "")), float(circle.get("cy", ""))) for circle in circles]
    assert len(dots) == 6
    (x1, y1), (x2, y2), (x3, y3) = dots[:3]
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y1 > y2
    assert [y for _x, y in dots[3:]] == pytest.approx([y1 + (y1 - y2)] * 3, abs=0.2)  # a tenth of the first one


def test_growth_needs_room_and_says_so(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert growth.room_for(12 << 40) > 2 * (12 << 40) // 65536 * 10
    monkeypatch.setattr(growth.shutil, "disk_usage", lambda _path: types.SimpleNamespace(free=1 << 30))
    with pytest.raises(RuntimeError, match="--directory"):
        growth.check_room(tmp_path, [1 << 30, 12 << 40])
    assert "are free" in growth.check_room(tmp_path, [1 << 30])
