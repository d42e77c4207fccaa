# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refusals about bitmaps in words: which image, which bitmap, which action. Beside qemu-img: test_cli_bitmap.py."""

from __future__ import annotations

import pytest

from sandbox import errors
from sandbox.cli import qemu_words
from sandbox.words import bitmap_refusals, refused
from sandbox.words.wording import names_of

from .saying import said

PATHS = ["a.qcow2", "dir/b\udcff.qcow2"]
VOICE = qemu_words.bitmap(["add", "merge"])
NUMBERS = {name: number for number, name in names_of("refusal", "REFUSAL_").items()}
CODES = sorted(name for name, number in NUMBERS.items() if 160 <= number < 200)  # their group in refusals.h
WORST = (1 << 64) - 1


def refusal(
    code: str,
    arguments: tuple[int, ...] = (),
    text: bytes = b"",
    disk: int = 0,
    names: tuple[str, ...] = ("b0", "src"),
    modified: int = 0,
) -> errors.AirlockError:
    padded = text + bytes(1024 - len(text))
    values = (*arguments, *(0,) * (6 - len(arguments)))
    header = refused.ResultHeader(NUMBERS[code], modified, len(text), 0, values, padded, disk)
    return bitmap_refusals.from_bitmap_refusal(header, PATHS, names)


@pytest.mark.parametrize("code", sorted(bitmap_refusals.WORDINGS))
@pytest.mark.parametrize("disk", [0, 1])
@pytest.mark.parametrize("number", [0, 1, WORST])
def test_message_is_bounded_and_printable(code: str, disk: int, number: int) -> None:
    error = refusal(code, (number,) * 6, (b"\x1b[31m{a}\n|\xff\xe2\x80\xae" * 90)[:1024], disk, names=("s{1}|",))
    assert error.code == code
    assert error.message.startswith(("a.qcow2: ", "dir/b\ufffd.qcow2: ")[disk])
    assert error.message.isprintable()
    assert len(error.message.encode()) <= errors.MESSAGE_LIMIT
    assert "\x1b" not in said(error, VOICE)


@pytest.mark.parametrize("code", CODES)
def test_a_bitmaps_refusal_says_what_to_do_and_which_action(code: str) -> None:
    error = refusal(code, (512, 1024, 0, 0, 0, 1), b"src")
    assert isinstance(error, errors.BitmapError)
    assert isinstance(error, errors.BitmapNotFoundError) == (error.code == "bitmap_not_found")
    assert said(error, VOICE).startswith("Operation merge on bitmap b0 failed: ")
    assert error.message.rstrip(".").split(". ")[1:], "what to do"


def test_the_image_that_is_meant_is_named() -> None:
    error = refusal("bitmap_not_found", (0,) * 5 + (1,), b"src", disk=1)
    assert error.message.startswith("dir/b\ufffd.qcow2: There is no bitmap 'src' in the image. ")
    assert "lists what there is" in error.message
    assert said(error, VOICE) == "Operation merge on bitmap b0 failed: Dirty bitmap 'src' not found"
    assert (
        said(refusal("not_qcow2", disk=1), VOICE) == "Could not open 'dir/b\udcff.qcow2': Image is not in qcow2 format"
    )
    assert said(refusal("not_qcow2"), VOICE) == "Could not open 'a.qcow2': Image is not in qcow2 format"


def test_a_node_is_called_by_its_file() -> None:
    assert said(refusal("bitmap_version_2", text=b"b0"), VOICE) == (
        "Operation add on bitmap b0 failed: Can't make bitmap 'b0' persistent in 'a.qcow2': "
        "Cannot store dirty bitmaps in qcow2 v2 files"
    )


def test_what_is_wrong_with_the_image_is_no_failure_of_an_action() -> None:
    arguments = (10, 0x30000, 7, 0x50000, 0x50000, 1)
    assert said(refusal("overlap", arguments), VOICE).startswith(
        "Could not change bitmap 'b0': Entry 7 of the bitmap table"
    )
    assert said(refusal("overlap", arguments, disk=1), VOICE).startswith(
        "Could not open 'dir/b\udcff.qcow2': Entry 7 of the"
    )
    reading = refusal("overlap", arguments, names=("",))
    assert said(reading).startswith("Could not open 'a.qcow2': Entry 7 of the bitmap table")
    assert refusal("no_space", modified=1).modified is True


def test_a_name_is_quoted_as_it_was_given() -> None:
    names = ("\x1b\udcff", "n" * 1500)
    assert said(refusal("bitmap_exists", text=b"\x1b\xff", names=names), VOICE) == (
        "Operation add on bitmap \x1b\udcff failed: Bitmap already exists: \x1b\udcff"
    )
    assert said(refusal("bitmap_not_found", text=b"n" * 1024, names=names), VOICE).endswith(
        f"Dirty bitmap '{names[1]}' not found"
    )
    foreign = refusal("bitmap_not_found", text=b"\x1b\xfe", names=names)
    assert said(foreign, VOICE).endswith("Dirty bitmap '\ufffd\ufffd' not found")


@pytest.mark.parametrize("disk", [2, 63, (1 << 32) - 1])
def test_a_disk_that_is_none_is_a_lie(disk: int) -> None:
    assert isinstance(refusal("bitmap_not_found", disk=disk), errors.GuestProtocolError)


def test_a_fault_of_a_bitmap_names_it() -> None:
    assert "Bitmap 'b0' is smaller or larger than the disk needs" in refusal("bitmaps_extension", (14,), b"b0").message
