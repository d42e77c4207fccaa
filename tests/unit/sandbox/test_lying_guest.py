# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever bytes a guest answers with, each operation returns values in bounds or raises an AirlockError."""

from __future__ import annotations

import os
import pathlib
import struct
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import errors, operations
from sandbox.cli import main as cli
from sandbox.operations import Image, Selector
from sandbox.vmm import machine
from sandbox.vmm.machine import Answer

from .guest_answers import Guest, bitmap_record, records
from .snapshot_tables import snapshot

SELECTOR = Selector.by_name(b"x")
OPERATIONS: dict[str, t.Callable[[Image], t.Any]] = {
    "list": operations.list_snapshots,
    "info": operations.image_info,
    "compare": lambda image: operations.compare_snapshot(image, SELECTOR),
    "create": lambda image: operations.create_snapshot(image, b"x", (0, 0)),
    "apply": lambda image: operations.apply_snapshot(image, SELECTOR, allow_resize=True),
    "delete": lambda image: operations.delete_snapshot(image, SELECTOR),
    "bitmaps": lambda image: operations.list_bitmaps(image, extents_of=b"x", extents_limit=9),
    "change_bitmap": lambda image: operations.change_bitmap(image, b"x", [operations.Action.clear()]),
}
WORD = st.one_of(st.integers(0, 180), st.sampled_from([0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
GOOD_PAYLOAD = records([snapshot(b"1", b"one"), snapshot(b"2", b"\x1b[2J")])


@st.composite
def results(draw: st.DrawFn) -> bytes:
    """A result area: the right ABI version, then words at random, small ones and extreme ones, or plain bytes."""
    words = draw(st.lists(WORD, min_size=3, max_size=40))
    area = struct.pack(f"<I{len(words)}I", 1, *words) + draw(st.binary(max_size=64)) * draw(st.integers(0, 30))
    return (area + bytes(8192))[:8192]


@pytest.mark.parametrize("operation", OPERATIONS)
@settings(max_examples=150)
@given(result=results(), payload=st.one_of(st.binary(max_size=200), st.just(GOOD_PAYLOAD)))
def test_any_answer(
    operation: str, result: bytes, payload: bytes, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_arguments: object, **_more: object) -> Answer:
        return Answer(result, payload, Guest.report)

    monkeypatch.setattr(machine, "run", run)
    path = tmp_path / "image"
    path.write_bytes(b"opaque")
    found = refused = None
    with Image.open(str(path), writable=True) as image:
        try:
            found = OPERATIONS[operation](image)
        except errors.AirlockError as error:
            refused = error
    message = refused.message if refused else ""
    assert message.isprintable()
    assert len(message.encode()) <= errors.MESSAGE_LIMIT
    assert len(getattr(found, "snapshots", ())) <= 65536
    assert len(getattr(found, "id", b"")) <= 127
    assert len(getattr(found, "bitmaps", ())) <= 65535
    assert len(getattr(found, "extents", ())) <= 9


@pytest.mark.parametrize("field", ["text", "id", "name", "bitmap"])
def test_escapes_and_newlines_do_not_reach_an_operator(
    field: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    evil = b"\x1b]0;owned\x07\nairlock: all is well\x9b2J\xe2\x80\xae"
    guest = Guest()
    command = b"snapshot"
    if field == "bitmap":
        guest.family, command = "bitmap", b"bitmap"
        row = bitmap_record(operations.Bitmap(evil, 512, True, False, True, None, None))
        guest.answers("bitmap_list", row, bitmap_count=1)
    elif field == "text":
        guest.answers("snapshot_list", header_code=27, header_text=evil, header_text_length=len(evil))
    else:
        entry = snapshot(evil) if field == "id" else snapshot(name=evil)
        guest.answers("snapshot_list", records([entry]), snapshot_count=1)
    monkeypatch.setattr(machine, "run", guest.run)
    monkeypatch.setattr(os, "isatty", lambda _descriptor: True)
    path = tmp_path / "image"
    path.write_bytes(b"opaque")
    cli.main([command, *([b"--list"] if field == "bitmap" else []), bytes(path)])
    out, err = capfdbinary.readouterr()
    shown = (out + err).decode()
    assert "owned" in shown
    assert shown.replace("\n", "").isprintable()
    assert "\nairlock: all is well" not in shown
