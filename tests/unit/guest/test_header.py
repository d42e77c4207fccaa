# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""guest/qcow2/header.c: every refusal of a header, the walk over its extensions, and the rewrite that QEMU does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import qemu
from tests.support.native import Guest
from tests.support.patching import (
    BACKING_FORMAT,
    BITMAPS,
    CRYPTO,
    DATA_FILE,
    FEATURES,
    extension,
    feature_name,
    field,
    patched,
    put,
    with_extensions,
)

TOP = 1 << 64
Change = Callable[[bytes], bytes]


def fields(**values: int) -> Change:
    """Sets header fields."""
    return lambda image: patched(image, **values)


def extensions(*wanted: bytes, **values: int) -> Change:
    """Sets extensions, and header fields."""
    return lambda image: with_extensions(patched(image, **values), *wanted)


def bitmaps(count: int = 1, reserved: int = 0, size: int = 32, offset: int = 512) -> bytes:
    """The bitmaps extension."""
    return extension(BITMAPS, struct.pack(">IIQQ", count, reserved, size, offset))


REFUSALS: list[tuple[str, tuple[int, ...], Change]] = [
    ("NOT_QCOW2", (), lambda _image: b""),
    ("NOT_QCOW2", (), lambda _image: b"QFI"),
    ("NOT_QCOW2", (), fields(magic=0x514649FA)),
    ("VERSION", (1,), fields(version=1)),
    ("VERSION", (0,), fields(version=0)),
    ("VERSION", (4,), fields(version=4)),
    ("VERSION", (0xFFFFFFFF,), fields(version=0xFFFFFFFF)),
    *(("CLUSTER_SIZE", (bits,), fields(cluster_bits=bits)) for bits in (0, 8, 22, 31, 32, 64, 0xFFFFFFFF)),
    ("HEADER_SHORT", (103,), fields(header_length=103)),
    ("HEADER_SHORT", (0,), fields(header_length=0)),
    ("HEADER_LONG", (513,), fields(header_length=513)),
    ("HEADER_LONG", (0xFFFFFFFF,), fields(header_length=0xFFFFFFFF)),
    ("BACKING_OFFSET", (), fields(backing_file_offset=513)),
    ("BACKING_OFFSET", (), fields(backing_file_offset=TOP - 1)),
    ("BACKING_NAME_LONG", (), fields(backing_file_offset=504, backing_file_size=9)),
    ("BACKING_NAME_LONG", (), fields(backing_file_offset=504, backing_file_size=0xFFFFFFFF)),
    ("BACKING_NAME_LONG", (), fields(backing_file_offset=512, backing_file_size=1)),
    ("INCOMPATIBLE_FEATURES", (1 << 5, 1 << 5), fields(incompatible_features=1 << 5)),
    ("INCOMPATIBLE_FEATURES", (1 << 63, 1 << 63), fields(incompatible_features=1 << 63)),
    ("COMPRESSION_BIT_SET", (), fields(incompatible_features=8)),
    ("COMPRESSION_BIT_CLEAR", (), fields(compression_type=1)),
    ("COMPRESSION_TYPE", (2,), fields(compression_type=2)),
    ("COMPRESSION_TYPE", (255,), fields(compression_type=255)),
    ("CORRUPT", (), fields(incompatible_features=2)),
    ("DIRTY", (), fields(incompatible_features=1)),
    ("REFCOUNT_WIDTH", (7,), fields(refcount_order=7)),
    ("REFCOUNT_WIDTH", (0xFFFFFFFF,), fields(refcount_order=0xFFFFFFFF)),
    ("EXTENDED_L2_CLUSTER", (9,), fields(incompatible_features=16)),
    ("NO_REFCOUNT_TABLE", (), fields(refcount_table_clusters=0)),
    ("REFCOUNT_TABLE_LARGE", (), fields(refcount_table_clusters=(8 << 20) // 512 + 1)),
    ("REFCOUNT_TABLE_LARGE", (), fields(refcount_table_clusters=0xFFFFFFFF)),
    ("REFCOUNT_TABLE_OFFSET", (), fields(refcount_table_offset=513)),
    ("REFCOUNT_TABLE_OFFSET", (), fields(refcount_table_offset=(1 << 63) - 511)),
    ("REFCOUNT_TABLE_OFFSET", (), fields(refcount_table_offset=TOP - 512)),
    ("L1_LARGE", (), fields(l1_size=(32 << 20) // 8 + 1)),
    ("L1_LARGE", (), fields(l1_size=0xFFFFFFFF)),
    ("L1_OFFSET", (), fields(l1_table_offset=1)),
    ("L1_OFFSET", (), fields(l1_table_offset=TOP - 512)),
    ("L1_SMALL", (), fields(l1_size=0)),
    ("L1_SMALL", (), fields(size=1 << 40)),
    ("SNAPSHOT_TABLE_LARGE", (), fields(nb_snapshots=65537)),
    ("SNAPSHOT_TABLE_LARGE", (), fields(nb_snapshots=0xFFFFFFFF)),
    ("SNAPSHOT_TABLE_OFFSET", (), fields(nb_snapshots=1, snapshots_offset=9)),
    ("SNAPSHOT_TABLE_OFFSET", (), fields(nb_snapshots=1, snapshots_offset=TOP - 512)),
    ("TRUNCATED", (6,), fields(nb_snapshots=1, snapshots_offset=1 << 40)),
    ("TRUNCATED", (6,), fields(nb_snapshots=65536, snapshots_offset=512)),
    ("VIRTUAL_SIZE", (1 << 63,), fields(size=1 << 63)),
    ("VIRTUAL_SIZE", (TOP - 512,), fields(size=TOP - 1)),
    ("ENCRYPTION_METHOD", (3,), fields(crypt_method=3)),
    ("NO_CRYPTO_HEADER", (), fields(crypt_method=2)),
    ("NO_CRYPTO_HEADER", (), extensions(extension(CRYPTO, struct.pack(">QQ", 512, 512)))),
    ("NO_CRYPTO_HEADER", (), extensions(extension(CRYPTO, struct.pack(">QQ", 512, 0)), crypt_method=2)),
    ("NO_CRYPTO_HEADER", (), extensions(extension(CRYPTO, struct.pack(">QQ", 8, 512)), crypt_method=2)),
    ("NO_CRYPTO_HEADER", (), extensions(extension(CRYPTO, bytes(8)), crypt_method=2)),
    ("EXTENSION_LARGE", (), extensions(extension(0x12345678, b"", 393))),
    ("EXTENSION_LARGE", (), extensions(extension(0x12345678, b"", 0xFFFFFFFF))),
    ("EXTENSION_LARGE", (), extensions(extension(0x12345678, b"", 0x7FFFFFFF))),
    ("EXTENSION_LARGE", (), extensions(extension(0x12345678, bytes(376)), backing_file_offset=500)),
    ("EXTENSION_LARGE", (), extensions(extension(BACKING_FORMAT, b"x" * 16))),
    ("DATA_FILE_MISSING", (), fields(incompatible_features=4)),
    ("RAW_WITHOUT_DATA_FILE", (), fields(autoclear_features=2)),
    ("BITMAPS_EXTENSION", (1, 16), extensions(extension(BITMAPS, bytes(16)), autoclear_features=1)),
    ("BITMAPS_EXTENSION", (1, 16), extensions(extension(BITMAPS, bytes(16)))),
    ("BITMAPS_EXTENSION", (2,), extensions(bitmaps(reserved=1), autoclear_features=1)),
    ("BITMAPS_EXTENSION", (3, 8), extensions(bitmaps(offset=8), autoclear_features=1)),
    ("BITMAPS_EXTENSION", (4, 65536), extensions(bitmaps(count=65536), autoclear_features=1)),
    ("BITMAPS_EXTENSION", (5, 1 << 40), extensions(bitmaps(size=1 << 40), autoclear_features=1)),
    ("BITMAPS_EXTENSION", (6,), extensions(bitmaps(count=0), autoclear_features=1)),
    ("BITMAPS_EXTENSION", (7,), extensions(bitmaps(size=0), autoclear_features=1)),
    ("TRUNCATED", (9,), extensions(bitmaps(offset=1 << 40), autoclear_features=1)),
    ("TRUNCATED", (9,), extensions(bitmaps(size=60 << 20), autoclear_features=1)),
]


# What is wrong with bitmaps alone concerns changes only.
READ_ALL_THE_SAME = ("CORRUPT", "DIRTY", "BITMAPS_EXTENSION")


@pytest.mark.parametrize(("refusal", "arguments", "change"), REFUSALS, ids=lambda value: value if value else None)
def test_a_broken_header_is_refused(
    guest: Guest, image: Callable[[str], Path], refusal: str, arguments: tuple[int, ...], change: Change
) -> None:
    broken = change(image("tiny").read_bytes())
    guest.load_bytes(broken)
    answer = guest.create(b"fresh")
    assert (answer.refusal, answer.arguments[: len(arguments)]) == (refusal, arguments)
    assert not answer.modified
    assert guest.image() == broken
    guest.load_bytes(broken)
    reads = guest.call("snapshot_list").refusal
    if refusal in READ_ALL_THE_SAME or (refusal, *arguments) == ("TRUNCATED", 9):
        assert reads == ""
    else:
        assert reads == refusal


def test_unknown_features_are_named(guest: Guest, image: Callable[[str], Path]) -> None:
    names = [feature_name(0, 40, b"forty"), feature_name(1, 41, b"compatible"), feature_name(0, 41, b"one and forty")]
    names += [feature_name(0, 42, b"n" * 46), feature_name(0, 200, b"no such bit"), feature_name(0, 40, b"twice")]
    bits = 1 << 40 | 1 << 41 | 1 << 42 | 1 << 43
    start = patched(image("tiny").read_bytes(), incompatible_features=bits)
    guest.load_bytes(with_extensions(start, extension(FEATURES, b"".join(names))))
    answer = guest.call("image_info")
    assert answer.refusal == "INCOMPATIBLE_FEATURES"
    assert answer.text == b"forty, one and forty, " + b"n" * 46
    assert answer.arguments[:2] == (1 << 43, bits)


def test_names_of_features_are_bounded(guest: Guest, image: Callable[[str], Path]) -> None:
    names = b"".join(feature_name(0, bit, b"%d" % bit + b"x" * 46) for bit in range(5, 64))
    start = patched(image("extended").read_bytes(), incompatible_features=0xFFFFFFFFFFFFFFE0)
    guest.load_bytes(with_extensions(start, extension(FEATURES, names)))
    answer = guest.call("image_info")
    assert answer.refusal == "INCOMPATIBLE_FEATURES"
    assert answer.text.startswith(b"5xxx")
    assert 900 < len(answer.text) <= 1024


def test_info_shows_what_the_header_has(guest: Guest, image: Callable[[str], Path]) -> None:
    start = patched(image("tiny").read_bytes(), backing_file_offset=480, backing_file_size=9)
    start = with_extensions(
        start,
        extension(0x11111111, b"unknown"),
        extension(BACKING_FORMAT, b"raw"),
        extension(FEATURES, bytes(48)),
        extension(DATA_FILE, b"data.raw"),
    )
    guest.load_bytes(put(start, 480, b"base.file"))
    answer = guest.call("image_info")
    assert answer.refusal == ""
    result = answer.result
    assert bytes(result.backing_name)[: result.backing_name_length] == b"base.file"
    assert bytes(result.backing_format)[: result.backing_format_length] == b"raw"
    assert bytes(result.data_file)[: result.data_file_length] == b"data.raw"
    assert (result.version, result.cluster_bits, result.refcount_order, result.virtual_size) == (3, 9, 4, 256 << 10)
    assert result.file_size == len(start)


@settings(max_examples=200)
@given(data=st.binary(min_size=400, max_size=400))
def test_any_bytes_as_extensions_end(library: Guest, tiny: bytes, data: bytes) -> None:
    """Accepted or refused: the walk ends, and reading changes nothing."""
    start = put(tiny, 112, data)
    library.load_bytes(start)
    assert library.call("image_info").refusal in ("", "EXTENSION_LARGE", "NO_CRYPTO_HEADER")
    assert library.image() == start


@pytest.fixture(scope="module")
def tiny(image: Callable[[str], Path]) -> bytes:
    return image("tiny").read_bytes()


REWRITES: dict[str, tuple[str, Change]] = {
    "unknown autoclear bits": ("tiny", fields(autoclear_features=0xF0F0F0F0F0F0F0F0)),
    "stale bitmaps": ("bitmaps", fields(autoclear_features=0)),
    "feature names": ("extended", fields(autoclear_features=1 << 9)),
    "unknown extensions": (
        "tiny",
        extensions(
            extension(0x11111111, b"first"),
            extension(0x22222222, b""),
            extension(0x11111111, b"again"),
            autoclear_features=4,
        ),
    ),
    "a backing file": (
        "tiny",
        lambda image: put(
            extensions(extension(BACKING_FORMAT, b"raw"), autoclear_features=4)(
                patched(image, backing_file_offset=400, backing_file_size=9)
            ),
            400,
            b"base.file",
        ),
    ),
    "two sectors, by way of a third": (
        "extended",
        extensions(extension(0x11111111, bytes(range(250)) * 2), extension(0x22222222, b"next"), autoclear_features=4),
    ),
    "two sectors that were one": ("extended", extensions(extension(0x11111111, b"u" * 40), autoclear_features=4)),
    "one sector that was two": (
        "bits8",
        extensions(extension(FEATURES, bytes(384)), extension(0x11111111, b"u" * 99), autoclear_features=4),
    ),
    "two sectors without room for others": (
        "bits8",
        extensions(extension(0x11111111, b"u" * 200), extension(0x22222222, b"v" * 256), autoclear_features=4),
    ),
    "an odd disk size": ("tiny", fields(size=(256 << 10) - 100, autoclear_features=4)),
}


@pytest.mark.parametrize("what", REWRITES)
def test_the_header_is_rewritten_as_qemu_does(
    guest: Guest, image: Callable[[str], Path], tmp_path: Path, what: str
) -> None:
    name, change = REWRITES[what]
    start = change(image(name).read_bytes())
    theirs = tmp_path / "theirs.qcow2"
    theirs.write_bytes(start)
    (tmp_path / "base.file").write_bytes(bytes(4096))
    assert qemu.snapshot(str(theirs), "-c", "fresh").code == 0
    guest.load_bytes(start)
    rewritten = guest.ffi.new("uint32_t *")
    assert guest.probe("header", rewritten).refusal == ""
    assert rewritten[0] == 1
    cluster = 1 << field(start, "cluster_bits")
    # All but the fields that the snapshot changes.
    expected = patched(theirs.read_bytes()[:cluster], nb_snapshots=0, snapshots_offset=0)
    assert patched(guest.image()[:cluster], nb_snapshots=0, snapshots_offset=0) == expected
    assert guest.image()[cluster:] == start[cluster:]


def test_a_header_in_order_is_left_alone(guest: Guest, image: Callable[[str], Path]) -> None:
    for name in ("tiny", "bitmaps", "v2", "extended"):
        guest.load(image(name))
        rewritten = guest.ffi.new("uint32_t *")
        assert guest.probe("header", rewritten).refusal == ""
        assert rewritten[0] == 0
        assert guest.image() == image(name).read_bytes()


def test_a_header_that_would_not_fit_is_refused_untouched(guest: Guest, image: Callable[[str], Path]) -> None:
    """Feature names that QEMU adds find no room beside a large unknown extension."""
    start = patched(image("large").read_bytes(), autoclear_features=4)
    start = with_extensions(start, extension(0x11111111, bytes((2 << 20) - 300)))
    guest.load_bytes(start)
    answer = guest.create(b"fresh")
    assert (answer.refusal, answer.modified) == ("EXTENSION_LARGE", False)
    assert guest.image() == start


def test_the_place_of_a_luks_header_is_kept(guest: Guest, image: Callable[[str], Path]) -> None:
    crypto = extension(CRYPTO, struct.pack(">QQ", 1024, 512))
    guest.load_bytes(with_extensions(patched(image("tiny").read_bytes(), crypt_method=2, autoclear_features=4), crypto))
    rewritten = guest.ffi.new("uint32_t *")
    guest.probe("header", rewritten)
    assert rewritten[0] == 1
    assert guest.image()[112 : 112 + len(crypto)] == crypto
