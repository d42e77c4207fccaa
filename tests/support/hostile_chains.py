# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hostile images in a chain: at its top, in its middle, as its base; and the lies that a vmdk image can tell."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from sandbox.cli import main as cli

from . import qemu
from .hostile import MEGA, sound_image
from .vmdk import FIELDS, HEADER, SECTOR, Recipe, filled

SECONDS = 60  # what takes longer has hung
CHAINS = {"top": ("base", "ours"), "middle": ("base", "ours", "upper"), "base": ("ours", "upper")}
"""From the base up, with the hostile image `ours` as top, between, or as base."""


@dataclass(frozen=True)
class Outcome:
    """code: of the process. errors: what it said. changed: names of files that are not what they were."""

    code: int
    errors: bytes
    changed: frozenset[str]


class Workshop:
    """Sound chains to tell lies in; each kind of image is made once. directory: for what stays."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._made: dict[tuple[str, str], str] = {}

    def _image(self, options: str, below: str) -> str:
        if (options, below) not in self._made:
            path = os.path.join(self._directory, str(len(self._made)))
            sound_image(path, options)
            if below:
                qemu.must(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, path])
            self._made[options, below] = path
        return self._made[options, below]

    def chain(self, directory: str, role: str, options: str) -> None:
        """The chain of that role, of qcow2 images, `ours` still without a lie."""
        below = ""
        for name in CHAINS[role]:
            shutil.copy(self._image(options if name == "ours" else "", below), os.path.join(directory, name))
            below = name


@contextlib.contextmanager
def alarm() -> Iterator[None]:
    """Raises TimeoutError in what hangs."""

    def ring(*_unused: object) -> None:
        raise TimeoutError(f"it takes more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(directory: str) -> dict[str, tuple[int, bytes]]:
    """Of each file its length, and its first 64 MiB."""
    found = {}
    for name in os.listdir(directory):
        with open(os.path.join(directory, name), "rb") as file:
            found[name] = (os.fstat(file.fileno()).st_size, file.read(64 * MEGA))
    return found


def airlock(directory: str, capture: pytest.CaptureFixture[bytes], *arguments: str) -> Outcome:
    """Runs the command line there. Raises AssertionError for what is no refusal, TimeoutError."""
    before = contents(directory)
    capture.readouterr()
    with contextlib.ExitStack() as stack:
        stack.callback(os.chdir, os.getcwd())
        os.chdir(directory)
        stack.enter_context(alarm())
        code = cli.main([os.fsencode(argument) for argument in arguments])
    said = capture.readouterr().err
    if len(said) > 4200 or (not said.decode().replace("\n", "").isprintable() and said):
        raise AssertionError(f"nothing to be shown to anybody: {said!r}")
    if b" guest " in said or b"guest's" in said or (code != 0 and not said.startswith(b"airlock: ")):
        raise AssertionError(f"exit {code}: no refusal: {said!r}")
    after = contents(directory)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    return Outcome(code, said, frozenset(changed))


# ---- vmdk ----------------------------------------------------------------------------------------------------------

VMDK = Recipe(256 << 10, 4096, 16, zeroed_grains=True)
GRAINS = [bytes([number]) * VMDK.grain for number in range(1, 25)]
Lie = Callable[[bytearray], object]


def vmdk_chain(directory: str, role: str, lie: Lie) -> None:
    """ours.vmdk as the base of a qcow2 overlay, or on base.vmdk as its top."""
    ours = dataclasses.replace(VMDK, parent=b"base", parent_cid=VMDK.cid, cid=7) if role == "top" else VMDK
    image = bytearray(filled(ours, GRAINS))
    lie(image)
    with open(os.path.join(directory, "ours"), "wb") as file:
        file.write(image)
    if role == "top":
        with open(os.path.join(directory, "base"), "wb") as file:
            file.write(filled(VMDK, GRAINS[:9]))
    else:
        upper = os.path.join(directory, "upper")
        qemu.create(upper, VMDK.size, "cluster_size=4k")
        qemu.io(upper, "write -P 9 8k 32k")
        qemu.must(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "ours", "-F", "vmdk", upper])


def field(name: str, value: int) -> Lie:
    """Of the header."""

    def lie(image: bytearray) -> None:
        values = dict(zip(FIELDS, HEADER.unpack_from(image)))
        HEADER.pack_into(image, 0, *{**values, name: value}.values())

    return lie


def place_of(image: bytearray, name: str) -> int:
    """Where a directory stands, in bytes."""
    return int(dict(zip(FIELDS, HEADER.unpack_from(image)))[name]) * SECTOR


def table_of(image: bytearray, index: int = 0, directory: str = "directory") -> int:
    """Where a grain table stands, in bytes."""
    return int(struct.unpack_from("<I", image, place_of(image, directory) + 4 * index)[0]) * SECTOR


def table_entry(index: int, sector: Callable[[bytearray], int], directory: str = "directory") -> Lie:
    """Of a directory: the grain table is at that sector."""
    return lambda image: struct.pack_into(
        "<I", image, place_of(image, directory) + 4 * index, sector(image) & 0xFFFFFFFF
    )


def grain_entry(index: int, sector: Callable[[bytearray], int]) -> Lie:
    """Of the first grain table."""
    return lambda image: struct.pack_into("<I", image, table_of(image) + 4 * index, sector(image) & 0xFFFFFFFF)


def first_grain(image: bytearray) -> int:
    return int(struct.unpack_from("<I", image, table_of(image))[0])


def _same_tables(image: bytearray) -> None:
    """The copies are the tables themselves: whoever writes one writes the other."""
    directory, redundant = place_of(image, "directory"), place_of(image, "redundant")
    image[redundant : redundant + 4 * VMDK.tables] = image[directory : directory + 4 * VMDK.tables]


VMDK_ROWS: dict[str, tuple[Lie, bool]] = {
    "directory on the descriptor": (field("directory", 1), True),
    "directory on the header": (field("directory", 0), True),
    "directory among the grains": (lambda i: field("directory", first_grain(i))(i), True),
    "directory behind the end": (field("directory", 1 << 40), True),
    "redundant directory is the directory": (
        lambda i: field("redundant", place_of(i, "directory") // SECTOR)(i),
        False,
    ),
    "redundant directory among the grains": (lambda i: field("redundant", first_grain(i))(i), True),
    "redundant tables are the tables": (_same_tables, False),  # as other programs have it
    "table behind the end": (table_entry(2, lambda i: len(i) // SECTOR), True),
    "table at the last sector": (table_entry(2, lambda _unused: -1), True),
    "table on the descriptor": (table_entry(2, lambda _unused: 1), True),
    "table on a directory": (table_entry(2, lambda i: place_of(i, "redundant") // SECTOR), True),
    "table on a grain": (table_entry(2, first_grain), True),
    "one table twice": (table_entry(2, lambda i: table_of(i) // SECTOR), True),
    "redundant table behind the end": (table_entry(2, lambda i: len(i) // SECTOR, "redundant"), True),
    "redundant table on a table": (table_entry(2, lambda i: table_of(i, 1) // SECTOR, "redundant"), True),
    "grain on the descriptor": (grain_entry(2, lambda _unused: 2), True),
    "grain on its table": (grain_entry(2, lambda i: table_of(i) // SECTOR), True),
    "grain on the directory": (grain_entry(2, lambda i: place_of(i, "directory") // SECTOR), True),
    "grain behind the end": (grain_entry(2, lambda i: len(i) // SECTOR), True),
    "grain half behind the end": (grain_entry(2, lambda i: len(i) // SECTOR - 4), True),
    "grain at the last sector": (grain_entry(2, lambda _unused: -1), True),
    "one grain twice": (grain_entry(2, first_grain), True),
    "grains that overlap": (grain_entry(2, lambda i: first_grain(i) + 3), True),
    "grains begin at the header": (field("data", 0), True),
    "grains begin in the tables": (lambda i: field("data", table_of(i) // SECTOR)(i), True),
    "grains begin behind some": (lambda i: field("data", first_grain(i) + 16)(i), True),
    "larger than its tables": (field("capacity", VMDK.size // SECTOR + 1), True),
    "disk of 2^63": (field("capacity", 1 << 54), True),
    "grains of 2^63": (field("grain", 1 << 54), True),
    "grains of a sector": (field("grain", 1), False),
    "tables of 4 Gi entries": (field("table_entries", 0xFFFFFFFF), True),
    "tables of 64 entries": (field("table_entries", 64), False),
    "version 3": (field("version", 3), True),
    "marked as compressed": (field("flags", 1 << 16), True),
    "zeroed grains that are none": (lambda i: (field("flags", 3)(i), grain_entry(2, lambda _unused: 1)(i)), True),
    "half of its descriptor": (field("descriptor_size", 0), True),
    "a tail of zeros": (lambda i: i.extend(bytes(MEGA)), False),
    "cut off in the midst of a grain": (lambda i: i.__delitem__(slice(len(i) - 100, None)), True),
}
"""The lie, and whether the image must not be written to."""
