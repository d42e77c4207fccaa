# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The grid: what kinds of qcow2 images there are, and how one of each is made."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

from . import qemu

CLUSTER_BITS = tuple(range(9, 22))
REFCOUNT_BITS = (1, 2, 4, 8, 16, 32, 64)
EXTENDED_L2_MIN_BITS = 14  # a subcluster (1/32 cluster) is at least 512 bytes
KILO, MEGA = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Cell:
    """One point of the grid. Sizes in bytes; `compression` is none, zlib or zstd."""

    compat: str = "1.1"
    cluster_bits: int = 16
    refcount_bits: int = 16
    extended_l2: bool = False
    compression: str = "none"
    data_file: bool = False
    lazy: bool = False
    backing: bool = False
    preallocation: str = "off"
    size: int = 64 * MEGA

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def l2_reach(self) -> int:
        """Guest bytes that one L2 table maps."""
        return self.cluster_size * (self.cluster_size // (16 if self.extended_l2 else 8))

    def options(self, directory: str) -> str:
        """The -o argument of qemu-img create."""
        parts = [f"compat={self.compat}", f"cluster_size={self.cluster_size}"]
        if self.compat == "1.1":
            parts.append(f"refcount_bits={self.refcount_bits}")
            parts.append(f"lazy_refcounts={'on' if self.lazy else 'off'}")
            if self.extended_l2:
                parts.append("extended_l2=on")
            if self.compression == "zstd":
                parts.append("compression_type=zstd")
            if self.data_file:
                parts.append(f"data_file={os.path.join(directory, 'data.raw')}")
        if self.preallocation != "off":
            parts.append(f"preallocation={self.preallocation}")
        return ",".join(parts)

    def make(self, directory: str) -> str:
        """Creates the image `disk.qcow2` (and its backing or data file) in an empty directory; returns its path."""
        path = os.path.join(directory, "disk.qcow2")
        if self.backing:
            qemu.create(os.path.join(directory, "base.qcow2"), self.size, "cluster_size=4096")
            qemu.io(os.path.join(directory, "base.qcow2"), "write -P 0xbb 0 8k", f"write -P 0xbc {self.size // 2} 512")
        qemu.create(path, self.size, self.options(directory), "base.qcow2" if self.backing else None)
        return path

    def __str__(self) -> str:
        parts = [f"{name}={value}" for name, value in self.__dict__.items() if value != getattr(Cell, name)]
        return ",".join(parts) or "default"

    @classmethod
    def parse(cls, text: str) -> Cell:
        """The inverse of str(): comma-separated name=value pairs. Raises ValueError."""
        values: dict[str, object] = {}
        for part in [] if text == "default" else text.split(","):
            name, _unused, value = part.partition("=")
            if name not in cls.__dataclass_fields__:
                raise ValueError(f"a cell has no {name!r}")
            default = getattr(cls, name)
            if isinstance(default, bool):
                values[name] = value == "True"
            else:
                values[name] = int(value) if isinstance(default, int) else value
        return cls(**values)  # type: ignore[arg-type]


def random_size(rng: random.Random, cluster_bits: int, extended: bool) -> int:
    """A virtual size of one to three L2 tables' reach (bounded), seldom a whole number of clusters."""
    cluster = 1 << cluster_bits
    reach = cluster * cluster // (16 if extended else 8)
    if cluster_bits <= 11:
        top = rng.choice((reach // 2, 3 * reach, 24 * reach, 4 * MEGA, 16 * MEGA))
    else:
        top = rng.choice((reach // 2, reach, 3 * reach))
    size = rng.randrange(max(top // 2, cluster), max(top, 2 * cluster) + 1)
    if rng.random() < 0.3:
        return size // cluster * cluster
    return size // 512 * 512


def random_cell(rng: random.Random) -> Cell:
    """A cell of the whole grid. Small clusters are likelier: they are quick, and they make tables grow."""
    compat = rng.choice(("0.10", "1.1", "1.1", "1.1"))
    bits = rng.choice((9, 9, 9, 10, 11, 12, 12, 13, 14, 14, 15, 16, 16, 16, 17, 18, 19, 20, 21))
    v3 = compat == "1.1"
    extended = v3 and bits >= EXTENDED_L2_MIN_BITS and rng.random() < 0.35
    backing = rng.random() < 0.25
    data_file = v3 and not backing and rng.random() < 0.03
    compression = "none" if data_file else rng.choice(("none", "none", "zlib", "zstd" if v3 else "zlib"))
    size = random_size(rng, bits, extended)
    preallocation = "off"
    if not backing and not data_file and rng.random() < 0.2:
        preallocation = "metadata" if size > 16 * MEGA else rng.choice(("metadata", "falloc", "full"))
        if size // (1 << bits) > 1 << 17:
            preallocation = "off"
    return Cell(
        compat=compat,
        cluster_bits=bits,
        refcount_bits=rng.choice(REFCOUNT_BITS) if v3 else 16,
        extended_l2=extended,
        compression=compression,
        data_file=data_file,
        lazy=v3 and rng.random() < 0.2,
        backing=backing,
        preallocation=preallocation,
        size=size,
    )


def every_axis() -> Iterator[Cell]:
    """The systematic part: every cluster size with every refcount width, then the features on their own."""
    for bits in CLUSTER_BITS:
        size = min(3 * (1 << 2 * bits - 3), 1 << 40) - 512
        yield Cell(compat="0.10", cluster_bits=bits, size=size)
        for width in REFCOUNT_BITS:
            yield Cell(cluster_bits=bits, refcount_bits=width, size=size)
        if bits >= EXTENDED_L2_MIN_BITS:
            yield Cell(cluster_bits=bits, extended_l2=True, size=size)
        for compression in ("zlib", "zstd"):
            yield Cell(cluster_bits=bits, compression=compression, size=size)
    for bits in (9, 12, 16):
        size = min(3 * (1 << 2 * bits - 3), 1 << 30)
        yield Cell(cluster_bits=bits, data_file=True, size=size)
        yield Cell(cluster_bits=bits, lazy=True, size=size)
        yield Cell(cluster_bits=bits, backing=True, size=size)
        for preallocation in ("metadata", "falloc", "full"):
            yield Cell(cluster_bits=bits, preallocation=preallocation, size=min(size, 16 * MEGA))
