# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Inputs of the fuzzer of chains (chain_input.h): images of several formats on each other, with an operation each."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.support.recipes import KILO, RECIPES, TINY, Recipe
from tests.support.vmdk import Recipe as VmdkRecipe
from tests.support.vmdk import filled

OPERATIONS = ("commit", "rebase", "compress", "relink", "empty", "overlay", "facts")
FLAGS = ("may_resize", "empties", "records_id", "backed", "no_format")
FORMATS = ("data", "qcow2", "raw", "vmdk")
PARTS = 6

QCOW2 = {
    **{name: RECIPES[name] for name in ("tiny", "shared", "v2", "bit", "bits64", "extended", "bitmaps", "trimmed")},
    "top": Recipe(
        TINY, 300 * KILO, ("write -P 5 3k 60k", "write -z 90k 30k", "write -c -P 6 150k 512", "write -P 7 200k 99k")
    ),
    "zstd": Recipe(
        "cluster_size=4k,compression_type=zstd",
        512 * KILO,
        (*(f"write -c -P {i} {i * 8}k 4k" for i in range(1, 20)), "write -z 100k 40k", "write -P 1 300k 9k"),
    ),
    "lazy": Recipe("cluster_size=1024,lazy_refcounts=on", 256 * KILO, ("write -P 3 7k 90k", "discard 20k 30k")),
}
WITH_DATA = Recipe("cluster_size=512,data_file={}", 256 * KILO, ("write -P 8 1k 70k", "write -z 9k 4k"))
GRAINS = [bytes([number]) * 512 for number in range(1, 100)]
VMDK = VmdkRecipe(64 * KILO, 512, 64, zeroed_grains=True, cid=0x1111AAAA)
ABOVE = dataclasses.replace(VMDK, parent=b"base.vmdk", parent_cid=VMDK.cid, cid=0x2222BBBB)
PLAIN = VmdkRecipe(300 * KILO, 4096, 8, redundant=False, cid=0x3333CCCC)
VMDKS = {
    "vmdk": filled(VMDK, GRAINS[:40]),
    "vmdk-top": filled(ABOVE, GRAINS[40:80]),
    "vmdk-highest": filled(dataclasses.replace(ABOVE, parent_cid=ABOVE.cid, cid=0x4444DDDD), GRAINS[80:]),
    "vmdk-plain": filled(PLAIN, [grain * 8 for grain in GRAINS[:30]]),
}
RAW = {"raw": bytes(70) + b"\x55" * 100000 + bytes(40000), "empty": b""}

CHAINS = (
    ("top", "tiny"),
    ("top", "shared", "v2"),
    ("tiny", "top", "bitmaps"),
    ("zstd", "bit"),
    ("top", "raw"),
    ("shared", "zstd", "raw"),
    ("extended", "bits64"),
    ("bits64", "extended"),
    ("zstd", "extended", "lazy"),
    ("lazy", "trimmed", "empty"),
    ("bitmaps", "top", "zstd", "raw"),
    ("with-data", "top"),
    ("top", "with-data"),
    ("vmdk-top", "vmdk"),
    ("vmdk-highest", "vmdk-top", "vmdk"),
    ("tiny", "vmdk"),
    ("top", "vmdk-plain"),
    ("zstd", "top", "vmdk-plain"),
    ("v2", "top", "tiny", "zstd"),
)


def images(directory: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Name -> the parts of an image, each a format and its bytes."""
    found = {name: [("vmdk", image)] for name, image in VMDKS.items()}
    found.update({name: [("raw", image)] for name, image in RAW.items()})
    path, data = directory / "made.qcow2", directory / "made.data"
    for name, recipe in QCOW2.items():
        found[name] = [("qcow2", recipe.make(path).read_bytes())]
        path.unlink()
    with_data = dataclasses.replace(WITH_DATA, options=WITH_DATA.options.format(data))
    found["with-data"] = [("qcow2", with_data.make(path).read_bytes()), ("data", data.read_bytes())]
    path.unlink()
    data.unlink()
    return found


def pack(operation: str, parts: list[tuple[str, bytes]], *flags: str, **fields: int) -> bytes:
    """An input in which no request fails. fields: base, old_count, shared, cluster_bits, name_length, size."""
    bits = sum(1 << FLAGS.index(flag) for flag in flags)
    names = ("base", "old_count", "shared", "cluster_bits", "name_length")
    numbers = (OPERATIONS.index(operation), bits, *(fields.get(name, 0) for name in names), 0)
    head = struct.pack("<8BHBBIQ", *numbers, 0xFFFF, 0, 0, 0, fields.get("size", 0))
    rows = [struct.pack("<IB3x", len(content), FORMATS.index(kind)) for kind, content in parts]
    return (head + b"".join(rows)).ljust(len(head) + 8 * PARTS, b"\0") + b"".join(content for _kind, content in parts)


def inputs(layers: tuple[str, ...], parts: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """(title, input) of the operations that make sense on this chain."""
    last = len(layers) - 1
    if layers[0].startswith("vmdk"):
        for base in range(last):
            yield f"commit-{base}", pack("commit", parts, "records_id", base=base)
        yield "facts", pack("facts", parts)
        return
    for base in range(last):
        yield f"commit-{base}", pack("commit", parts, "may_resize", "empties", base=base)
    yield "commit-kept", pack("commit", parts, "may_resize", base=last - 1)
    for kind in ("rebase", "compress"):
        yield f"{kind}-none", pack(kind, parts, old_count=last)
        yield f"{kind}-first", pack(kind, parts, old_count=0, name_length=3)
        yield f"{kind}-other", pack(kind, parts, old_count=last - 1, name_length=3)
        if last > 1:
            yield f"{kind}-shared", pack(kind, parts, old_count=last, shared=last, name_length=200)
    yield "relink", pack("relink", parts, name_length=7)
    yield "empty", pack("empty", parts)


def seeds(directory: Path) -> list[Path]:
    """Writes the inputs."""
    made = []
    there = images(directory)
    for layers in CHAINS:
        parts = [part for name in layers for part in there[name]]
        for title, content in inputs(layers, parts):
            made.append(directory / f"{'-'.join(layers)}-{title}")
            made[-1].write_bytes(content)
    for bits in (9, 12, 16, 21):
        made.append(directory / f"overlay-{bits}")
        new = pack("overlay", [("raw", b"x")], "may_resize", "backed", cluster_bits=bits, name_length=5, size=1 << 30)
        made[-1].write_bytes(new)
    return made
