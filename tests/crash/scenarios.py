# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Chains that power is cut to, and commits of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from sandbox.images.chain import open_chain
from sandbox.images.commits import commit, find_base, open_base
from tests.crash.chain_cut import Cut, cut_power
from tests.support import qemu
from tests.support.vmdk import Recipe

KIB = 1 << 10
SIZE = 192 * KIB
BASE_STEPS = ("write -P 1 0 40k", "write -P 2 96k 24k")
TOP_STEPS = ("write -P 3 8k 12k", "write -P 4 64k 8k", "write -z 100k 12k", "write -P 5 190k 2k")


@dataclass(frozen=True)
class Layer:
    """options: of qemu-img create, "raw" for such a file; a recipe for a vmdk image. size: bytes. steps: of qemu-io,
    "snapshot", "resize SIZE", or arguments of qemu-img bitmap."""

    options: str | Recipe
    size: int
    steps: tuple[str, ...] = ()

    @property
    def format(self) -> str:
        if isinstance(self.options, Recipe):
            return "vmdk"
        return "raw" if self.options == "raw" else "qcow2"

    def make(self, directory: str, name: str, below: tuple[str, str] | None) -> None:
        """below: name and format of the backing file."""
        if isinstance(self.options, Recipe):
            recipe = self.options.on(os.path.join(directory, below[0])) if below else self.options
            recipe.make(os.path.join(directory, name))
        else:
            command = ["qemu-img", "create", "-q", "-f", self.format]
            command += ["-o", self.options] if self.format == "qcow2" else []
            command += ["-b", below[0], "-F", below[1]] if below else []
            qemu.must([*command, name, str(self.size)], cwd=directory)
        for number, step in enumerate(self.steps):
            if step == "snapshot":
                qemu.must(["qemu-img", "snapshot", "-c", "s", name], cwd=directory)
            elif step.startswith("resize "):
                qemu.must(["qemu-img", "resize", "-q", "-f", self.format, name, step.split()[1]], cwd=directory)
            elif step.startswith("bitmap "):
                qemu.must(["qemu-img", *step.split(), name, f"b{number}"], cwd=directory)
            else:
                qemu.must(["qemu-io", "-f", self.format, "-c", step, name], cwd=directory)


def committed(base: str | None = None, empties: bool = True, top_format: str = "qcow2") -> Callable[[str], None]:
    """As `airlock commit` does it."""

    def operate(directory: str) -> None:
        top = os.path.join(directory, "top")
        with open_chain(top, writable_layers=(0,), top_format=top_format) as chain:
            depth = find_base(chain, base.encode() if base else None)
            open_base(chain, depth)
            commit(chain, depth, empties=empties and depth == 1, allow_resize=True)

    return operate


@dataclass(frozen=True)
class Scenario:
    """layers: from the lowest to the top, by name. others: files that are no part of the chain yet. target: the layer
    whose disk changes."""

    layers: dict[str, Layer]
    operate: Callable[[str], None]
    target: str = "base"
    others: tuple[tuple[str, Layer], ...] = ()

    def make(self, directory: str) -> None:
        os.makedirs(directory)
        for name, layer in self.others:
            layer.make(directory, name, None)
        below = None
        for name, layer in self.layers.items():
            layer.make(directory, name, below)
            below = (name, layer.format)

    def cut(self, directory: str, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
        """Makes it there, and cuts the power at every moment: what was counted, see cut_power()."""
        self.make(directory)
        tally = cut_power(Cut(directory, "top", self.target, self.operate), monkeypatch)
        print(dict(tally))
        return tally
