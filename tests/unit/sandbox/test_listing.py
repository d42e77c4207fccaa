# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table, byte for byte as the real qemu-img prints it."""

from __future__ import annotations

import os
import pathlib
import random
import subprocess
import time
import typing as t

import pytest

from sandbox.facts import listing
from sandbox.images.calls import Snapshot

from .snapshot_tables import make_image, snapshot

SIZES = [0, 1, 999, 1000, 1001, 1023, 1024, 1023999, 1024000, 197120, 196608, 198144, (1 << 32) - 1, 1 << 32]
SIZES += [10**n for n in range(4, 20)] + [1000 << (10 * n) for n in range(1, 6)] + [(1 << n) - 1 for n in range(10, 65)]
CLOCKS = [
    0,
    999999,
    1000000,
    10**9 - 1,
    59 * 10**9,
    3600 * 10**9,
    9999 * 3600 * 10**9,
    10**4 * 3600 * 10**9,
    (1 << 64) - 1,
]
ICOUNTS = [0, 1, 10**10, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, None]
DATES = [0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1711846800, 1729994400]
NAMES = [
    b"",
    b"s1",
    b"a" * 16,
    b"a" * 17,
    b"a" * 255,
    "Zürich".encode(),
    b"\x1b[31m\n\x07",
    b"\xff\xfe",
    b"%s%n",
    b"a b\tc",
]
IDENTIFIERS = [b"", b"1", b"1234567", b"12345678", b"9" * 127, b"\x1b]0;x\x07"]


@pytest.fixture
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[str]:
    """The process is in this time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def qemu_listing(path: str) -> bytes:
    return subprocess.run(["qemu-img", "snapshot", "-l", path], check=True, stdout=subprocess.PIPE).stdout


def variety(count: int) -> list[Snapshot]:
    """Every special value at least once, and chance."""
    choose = random.Random(7)

    def pick(values: t.Sequence[t.Any], number: int, other: t.Callable[[], t.Any]) -> t.Any:
        return values[number] if number < len(values) else other()

    return [
        snapshot(
            pick(IDENTIFIERS, number, lambda: b"%d" % choose.randrange(10**6)),
            pick(NAMES, number, lambda: choose.randbytes(choose.randrange(40)).replace(b"\0", b"x")),
            (pick(DATES, number, lambda: choose.randrange(1 << 32)), choose.randrange(10**9)),
            pick(SIZES, number, lambda: choose.randrange(1 << choose.randrange(1, 65))),
            pick(CLOCKS, number, lambda: choose.randrange(1 << choose.randrange(1, 65))),
            pick(ICOUNTS, number, lambda: choose.randrange(1 << choose.randrange(1, 65))),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/St_Johns", "<+1245>-12:45"], indirect=True)
def test_table_is_that_of_qemu_img(tmp_path: pathlib.Path, zone: str) -> None:
    assert os.environ["TZ"] == zone
    snapshots = variety(2000)
    theirs = qemu_listing(make_image(tmp_path / "disk.qcow2", snapshots))
    assert listing.format_listing(snapshots).split(b"\n") == theirs.split(b"\n")


def test_no_snapshots_no_table(tmp_path: pathlib.Path) -> None:
    assert listing.format_listing([]) == qemu_listing(make_image(tmp_path / "disk.qcow2", [])) == b""


@pytest.mark.parametrize(
    ("size", "text"),
    [(999, "999 B"), (1000, "0.977 KiB"), (1023999, "1e+03 KiB"), (197120, "192 KiB"), ((1 << 64) - 1, "16 EiB")],
)
def test_sizes_of_the_fact_sheet(size: int, text: str) -> None:
    assert listing.format_size(size) == text


def test_control_characters_are_escaped_on_request() -> None:
    evil = snapshot(b"\x1b[2J", b"a\n1       fake\x9b\xff\xe2\x80\xae")
    table = listing.format_listing([evil], listing.escape_unprintable)
    assert table.count(b"\n") == 3
    assert table.decode().replace("\n", "").isprintable()
    assert rb"\x1b[2J" in table
    assert rb"a\n1       fake\x9b\xff\u202e" in table


def test_printable_names_are_left_alone() -> None:
    assert listing.escape_unprintable("Zürich 日本 \\".encode()) == "Zürich 日本 \\".encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"\x1b[31m\n\t\r\x00\x7f", rb"\x1b[31m\n\t\r\x00\x7f"),
        ("\u0085\u009b".encode(), rb"\x85\x9b"),
        (b"\x80\x9b0m\x9f", rb"\x80\x9b0m\x9f"),
    ],
)
def test_controls_are_escaped_for_files_too(text: bytes, shown: bytes) -> None:
    assert listing.escape_controls(text) == shown


@pytest.mark.parametrize(
    "text", [b"", b"before-upgrade", "Z\u00fcrich \u65e5\u672c \\ \u202e".encode(), b"\xff\xa0\xe9 latin"]
)
def test_what_is_no_control_character_is_left_as_it_is(text: bytes) -> None:
    assert listing.escape_controls(text) == text
