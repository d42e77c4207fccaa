# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images with one wrong field: refused in qemu-img's words, by every operation, with the file untouched."""

from __future__ import annotations

import pathlib
import struct
import subprocess
import typing as t

import pytest

from sandbox.cli import main as cli

pytestmark = pytest.mark.kvm

Patch = tuple[int, bytes]
OPERATIONS = [[b"-l"], [b"-c", b"x"], [b"-d", b"s1"], [b"-a", b"s1"]]
SNAPSHOTS_AT = 64
FIRST_EXTENSION = 112


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image with data and two snapshots."""
    path = str(tmp_path_factory.mktemp("sound") / "image")
    for command in (
        ["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"],
        ["qemu-io", "-c", "write 0 64k", path],
        ["qemu-img", "snapshot", "-c", "s1", path],
        ["qemu-img", "snapshot", "-c", "s2", path],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return pathlib.Path(path).read_bytes()


def u32(at: int, value: int) -> Patch:
    return at, struct.pack(">I", value)


def u64(at: int, value: int) -> Patch:
    return at, struct.pack(">Q", value)


def extension(kind: int, data: bytes, length: int | None = None) -> Patch:
    return FIRST_EXTENSION, struct.pack(">II", kind, len(data) if length is None else length) + data + bytes(16)


def bitmaps(count: int, reserved: int, size: int, offset: int) -> list[Patch]:
    return [u64(88, 1), extension(0x23852875, struct.pack(">IIQQ", count, reserved, size, offset))]


HEADERS: dict[str, list[Patch]] = {
    "magic": [(0, b"QFI\xfa")],
    "version 0": [u32(4, 0)],
    "version 4": [u32(4, 4)],
    "clusters of 2^8": [u32(20, 8)],
    "clusters of 2^22": [u32(20, 22)],
    "clusters of 2^4294967295": [u32(20, 0xFFFFFFFF)],
    "header too short": [u32(100, 103)],
    "header too long": [u32(100, 70000)],
    "backing name behind the header": [u64(8, 65537), u32(16, 4)],
    "backing name too long": [u64(8, 2000), u32(16, 1024)],
    "unknown feature": [u64(72, 1 << 20)],
    "two unknown features": [u64(72, 1 << 63 | 1 << 5)],
    "a named feature": [u64(72, 1 << 20), extension(0x6803F857, struct.pack(">BB46s", 0, 20, b"frobnicate"))],
    "a named and a nameless one": [u64(72, 3 << 20), extension(0x6803F857, struct.pack(">BB46s", 0, 20, b"frob"))],
    "compression bit without type": [u64(72, 8)],
    "compression type without bit": [(104, b"\1")],
    "unknown compression": [(104, b"\2"), u64(72, 8)],
    "refcounts of 128 bits": [u32(96, 7)],
    "no refcount table": [u32(56, 0)],
    "refcount table too large": [u32(56, 1000)],
    "refcount table unaligned": [u64(48, 65537)],
    "L1 too large": [u32(36, 0x400001)],
    "L1 too small": [u32(36, 0)],
    "L1 unaligned": [u64(40, 0x30001)],
    "virtual size": [u64(24, 1 << 63)],
    "too many snapshots": [u32(60, 65537)],
    "snapshot table unaligned": [u64(SNAPSHOTS_AT, 0x30001)],
    "encryption 3": [u32(32, 3)],
    "LUKS without header": [u32(32, 2)],
    "data file without name": [u64(72, 4)],
    "extension too large": [extension(0x12345678, b"", 0x7FFFFFFF)],
    "bitmaps: length": [u64(88, 1), extension(0x23852875, bytes(20))],
    "bitmaps: reserved": bitmaps(1, 1, 32, 65536),
    "bitmaps: offset": bitmaps(1, 0, 32, 65537),
    "bitmaps: count": bitmaps(65536, 0, 32, 65536),
    "bitmaps: size": bitmaps(1, 0, 1 << 40, 65536),
    "bitmaps: none": bitmaps(0, 0, 32, 65536),
}


def patched(image: bytes, patches: t.Iterable[Patch]) -> bytes:
    data = bytearray(image)
    for at, value in patches:
        data[at : at + len(value)] = value
    return bytes(data)


class Bench:
    """A directory with one image in it, that the command line and qemu-img work on."""

    def __init__(self, image: pathlib.Path, capture: pytest.CaptureFixture[bytes]) -> None:
        self.image = image
        self._capture = capture

    def ours(self, operation: list[bytes], data: bytes) -> tuple[int, bytes, bytes]:
        """Exit code, stdout and stderr; a refusal leaves the file alone."""
        self.image.write_bytes(data)
        self._capture.readouterr()
        code = cli.main([b"snapshot", *operation, b"image"])
        if code != 0:
            assert self.image.read_bytes() == data
        return (code, *self._capture.readouterr())

    def both_refuse(self, operation: list[bytes], data: bytes) -> None:
        """In the same words."""
        ours = self.ours(operation, data)
        command = [b"qemu-img", b"snapshot", b"-f", b"qcow2", *operation, b"image"]
        theirs = subprocess.run(command, capture_output=True, check=False)
        assert theirs.returncode == 1
        assert ours == (1, b"", theirs.stderr.replace(b"qemu-img: ", b"airlock: "))


@pytest.fixture
def bench(tmp_path: pathlib.Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path / "image", capfdbinary)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("case", HEADERS)
def test_header(case: str, operation: list[bytes], sound: bytes, bench: Bench) -> None:
    data = patched(sound, HEADERS[case])
    if case.startswith("bitmaps: ") and operation == [b"-l"]:  # which needs no bitmaps, and qemu-img refuses
        assert bench.ours(operation, data) == bench.ours(operation, sound)
        return
    bench.both_refuse(operation, data)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("size", [1025, 0xFFFFFFFF])
def test_snapshot_extra_data(size: int, operation: list[bytes], sound: bytes, bench: Bench) -> None:
    (table,) = struct.unpack_from(">Q", sound, SNAPSHOTS_AT)
    bench.both_refuse(operation, patched(sound, [u32(table + 36, size)]))


@pytest.mark.parametrize("operation", OPERATIONS[1:], ids=str)
def test_corrupt_bit(operation: list[bytes], sound: bytes, bench: Bench) -> None:
    bench.both_refuse(operation, patched(sound, [u64(72, 2)]))


@pytest.mark.parametrize("operation", OPERATIONS[2:], ids=str)
@pytest.mark.parametrize("patch", [u32(8, 0x400001), u64(0, 0x30001)], ids=["too large", "unaligned"])
def test_snapshot_l1(patch: Patch, operation: list[bytes], sound: bytes, bench: Bench) -> None:
    (table,) = struct.unpack_from(">Q", sound, SNAPSHOTS_AT)
    bench.both_refuse(operation, patched(sound, [(table + patch[0], patch[1])]))


# ---- what differs on purpose: docs/divergences.md --------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS[1:], ids=str)
def test_a_dirty_image_is_not_repaired_but_refused(operation: list[bytes], sound: bytes, bench: Bench) -> None:
    dirty = patched(sound, [u64(72, 1)])
    code, _stdout, stderr = bench.ours(operation, dirty)
    assert code == 1
    assert b'if you trust it, repair a copy of it: "qemu-img check -f qcow2 -r all COPY"' in stderr
    assert bench.ours([b"-l"], dirty)[0] == 0


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_an_encrypted_image_needs_no_key(operation: list[bytes], sound: bytes, bench: Bench) -> None:
    """Snapshots touch no data; qemu-img wants the secret all the same."""
    code, _stdout, stderr = bench.ours(operation, patched(sound, [u32(32, 1)]))
    assert (code, stderr) == (0, b"")


@pytest.mark.parametrize("operation", OPERATIONS[1:], ids=str)
def test_a_snapshot_table_behind_the_file_is_refused(operation: list[bytes], sound: bytes, bench: Bench) -> None:
    """qemu-img reads zeros there, and works on snapshots that never were."""
    code, _stdout, stderr = bench.ours(operation, patched(sound, [u32(60, 5)]))
    assert code == 1
    assert b"snapshot table" in stderr


@pytest.mark.parametrize("operation", OPERATIONS[1:], ids=str)
def test_a_snapshot_whose_l1_lies_outside_is_refused(operation: list[bytes], sound: bytes, bench: Bench) -> None:
    """qemu-img exits with 0 and leaves damage, or marks the image as corrupt."""
    (table,) = struct.unpack_from(">Q", sound, SNAPSHOTS_AT)
    code, _stdout, stderr = bench.ours(operation, patched(sound, [u64(table, 1 << 32)]))
    assert code == 1
    assert b"Entry 0 of the snapshot table" in stderr
    assert b"outside the file" in stderr


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_a_bitmap_directory_without_its_feature_bit_is_passed_over(
    operation: list[bytes], sound: bytes, bench: Bench
) -> None:
    """As qemu-img does; but it warns each time."""
    code, _stdout, stderr = bench.ours(operation, patched(sound, bitmaps(1, 0, 32, 65536)[1:]))
    assert (code, stderr) == (0, b"")


def test_names_out_of_an_image_are_made_printable_in_messages(sound: bytes, bench: Bench) -> None:
    names = extension(0x6803F857, struct.pack(">BB46s", 0, 20, b"\x1b[31m\n\xff"))
    wanted = "airlock: Could not open 'image': Unsupported qcow2 feature(s): \ufffd[31m\ufffd\ufffd\n".encode()
    assert bench.ours([b"-l"], patched(sound, [u64(72, 1 << 20), names])) == (1, b"", wanted)
