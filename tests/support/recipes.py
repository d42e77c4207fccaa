# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small images with a history, made by qemu-img and qemu-io."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support import qemu
from tests.support.steps import trim_l1

KILO = 1 << 10


@dataclass(frozen=True)
class Recipe:
    """How an image is made: the -o options, the size in bytes, and what happens to it: "+name" creates a snapshot,
    "=name" applies it, "-name" deletes it, "<size" and ">size" resize, "%name" adds a bitmap, "~name" disables it, "!"
    cuts the L1 table to what the disk needs, anything else is a command of qemu-io."""

    options: str
    size: int
    history: tuple[str, ...]

    def make(self, path: Path) -> Path:
        """Makes the image. Raises RuntimeError with what a tool printed."""
        qemu.create(str(path), self.size, self.options)
        flags = {"+": "-c", "=": "-a", "-": "-d"}
        for step in self.history:
            kind, rest = step[0], step[1:]
            if kind == "!":
                trim_l1(str(path))
                continue
            if kind in flags:
                done = qemu.snapshot(str(path), flags[kind], rest)
            elif kind in "<>":
                done = qemu.run(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", str(path), rest])
            elif kind == "%":
                done = qemu.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", "-g", "64k", str(path), rest])
            elif kind == "~":
                done = qemu.run(["qemu-img", "bitmap", "--disable", "-f", "qcow2", str(path), rest])
            else:
                done = qemu.io(str(path), step)
            if done.code or b"failed" in done.output + done.errors:
                raise RuntimeError(f"{step}: {(done.output + done.errors)!r}")
        return path


TINY = "cluster_size=512"

RECIPES = {
    "empty": Recipe(TINY, 64 * KILO, ()),
    "no-disk": Recipe(TINY, 0, ()),
    "tiny": Recipe(TINY, 256 * KILO, ("write -P 1 0 100k",)),
    "shared": Recipe(
        TINY,
        512 * KILO,
        (
            *("write -P 1 0 90k", "+one", "write -P 2 40k 8k", "+two"),
            *("write -P 3 200k 70k", "write -z 3k 2k", "+three", "write -P 4 300k 9k"),
        ),
    ),
    "mixed": Recipe(
        TINY,
        512 * KILO,
        (
            *(f"write -c -P {i} {i * 512} 512" for i in range(1, 12)),
            "write -P 7 64k 64k",
            "+a",
            "discard 70k 9k",
            "write -z -u 80k 3k",
            *(f"write -c -P {i} {8192 + i * 1024} 512" for i in range(1, 5)),
            "+b",
            "write -P 9 0 20k",
            "=a",
            "write -P 10 66k 3k",
            "+c",
        ),
    ),
    "resized": Recipe(
        TINY, 300 * KILO, ("write -P 1 0 299k", "+small", ">700k", "write -P 2 400k 290k", "+large", "<500k", "+middle")
    ),
    "trimmed": Recipe(  # by another writer: QEMU never does
        TINY, 900 * KILO, ("write -P 1 600k 200k", "+long", "<100k", "!", "write -P 2 0 50k", "+short")
    ),
    "v2": Recipe(
        "compat=0.10,cluster_size=1024", 900 * KILO, ("write -P 1 0 300k", "+x", "write -P 2 100k 20k", "+y", "=x")
    ),
    "bit": Recipe("cluster_size=512,refcount_bits=1", 256 * KILO, ("write -P 1 0 60k",)),
    "bits2": Recipe("cluster_size=512,refcount_bits=2", 256 * KILO, ("write -P 1 0 60k", "+p", "write -P 2 0 6k")),
    "bits8": Recipe("cluster_size=1024,refcount_bits=8", 700 * KILO, ("write -P 1 0 400k", "+p", "write -P 2 0 60k")),
    "bits32": Recipe("cluster_size=512,refcount_bits=32", 512 * KILO, ("write -P 1 0 60k", "+p", "write -P 2 0 6k")),
    "bits64": Recipe(
        "cluster_size=512,refcount_bits=64",
        1024 * KILO,
        ("write -P 1 0 200k", "+p", "write -P 2 100k 60k", "+q", "-p", "write -P 3 5k 9k"),
    ),
    "extended": Recipe(
        "cluster_size=16k,extended_l2=on",
        4096 * KILO,
        (
            "write -P 1 0 100k",
            "write -P 2 201k 1k",
            "+e",
            "write -P 3 33k 5k",
            "write -z 40k 2k",
            "+f",
            "write -c 1M 16k",
        ),
    ),
    "shrunk": Recipe(  # the disk is larger now, in all that can be larger
        "cluster_size=512,refcount_bits=64",
        128 * KILO,
        (
            "write -P 1 0 20k",
            "+before",
            ">6M",
            "write -P 2 5M 600k",
            "write -P 3 100k 90k",
            "+between",
            "write -P 4 2M 9k",
        ),
    ),
    "bitmaps": Recipe(TINY, 512 * KILO, ("%first", "%second", "write -P 1 0 90k", "+one", "write -P 2 9k 9k")),
    "coarse": Recipe(  # bitmaps that differ, and one that records no more
        "cluster_size=1024,refcount_bits=32",
        900 * KILO,
        ("%first", "write -P 1 0 70k", "%second", "write -P 2 300k 200k", "+one", "~first", "write -P 3 700k 9k"),
    ),
    "large": Recipe("cluster_size=2M", 64 << 20, ("write -P 1 0 1M", "+l", "write -P 2 5M 1k")),
}
NAMES = {
    name: [step[1:].encode() for step in recipe.history if step[0] == "+" and f"-{step[1:]}" not in recipe.history]
    for name, recipe in RECIPES.items()
}
"""The snapshots that each image has."""


def check(path: Path) -> int:
    """qemu-img check: 0 clean, 3 leaks only, anything else is bad."""
    return qemu.check(str(path)).code
