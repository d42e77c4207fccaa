# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes, beside what the real qemu-img makes of them."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.cli.sizes import SizeRangeError, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (b"0", 0),
        (b"512", 512),
        (b" \t+512", 512),
        (b"007", 7),
        (b"1b", 1),
        (b"64k", 65536),
        (b"64K", 65536),
        (b"1.5M", 3 << 19),
        (b".5k", 512),
        (b"1.k", 1024),
        (b"5.", 5),
        (b"5.000", 5),
        (b"2T", 2 << 40),
        (b"3P", 3 << 50),
        (b"7E", 7 << 60),
        (b"0x200", 512),
        (b"0X10B", 0x10B),
        (b"9223372036854775807", (1 << 63) - 1),
        (b"0.99999999999999999999", 1),
        (b"0.0005k", 1),
        (b"1.3k", 1331),
    ],
)
def test_sizes(text: bytes, size: int) -> None:
    assert parse_size(text) == size
    assert theirs(text) == ""


@pytest.mark.parametrize(
    "text", ["", "x", "k", ".", ".k", "1.5", "1.5B", "1kB", "1 ", "1 k", "1e3", "0x", "0x1k", "0x1.8"]
)
@pytest.mark.parametrize("sign", ["", "+", "-", "--", " "])
def test_no_sizes(sign: str, text: str) -> None:
    compare((sign + text).encode())


@pytest.mark.parametrize(
    "text",
    ["-1", "-0", "-1k", "-.5", "-.5k", "-1.5", "-0x1", "8E", "8Ek", "9223372036854775808", "9" * 40, "9" * 40 + "k"],
)
def test_sizes_out_of_range(text: str) -> None:
    compare(text.encode())


PIECES = st.sampled_from(
    ["0", "1", "9", "512", "0x", "x", "f", ".", "..", "-", "+", " ", "\t", "k", "K", "b", "e", "E", "T", "9" * 19]
)


@settings(max_examples=150)
@given(text=st.lists(PIECES, max_size=5).map("".join))
def test_any_text_is_taken_as_qemu_img_takes_it(text: str) -> None:
    compare(text.encode())


def theirs(text: bytes) -> str:
    """qemu-img's complaint of a granularity, or nothing; no file is opened."""
    done = subprocess.run([b"qemu-img", b"bitmap", b"--add", b"-g", text], capture_output=True, check=False)
    assert done.returncode == 1
    message = done.stderr.decode()
    return "" if "Expecting filename" in message else message


def compare(text: bytes) -> None:
    ours = ""
    try:
        parse_size(text)
    except SizeRangeError:
        ours = "qemu-img: Invalid granularity specified. Must be between 0 and 9223372036854775807.\n"
    except ValueError:
        ours = f"qemu-img: Invalid granularity specified: '{text.decode()}'.\n"
    assert ours == theirs(text)
