# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Power cuts at every moment of commits, emptyings and rebases.

The top shows the same in every state, whatever the cut has left of the files of its chain. Each image can be opened; it
has leaked clusters at worst, or is marked dirty, which `qemu-img check -r all` repairs. Snapshots are as they were. A
bitmap that does not say that it is inconsistent knows of all that has changed. The second run leads to the end.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from sandbox.images.chain import open_chain
from sandbox.images.commits import empty
from sandbox.images.rebases import open_backing, rebase, relink
from tests.crash.chain_cut import Cut, cut_power
from tests.crash.cut import LONG
from tests.crash.scenarios import BASE_STEPS, KIB, SIZE, TOP_STEPS, Layer, Scenario, committed

Steps = tuple[str, ...]


def committed_and_emptied(directory: str) -> None:
    """In two steps, as a task that has something to do between them."""
    committed(empties=False)(directory)
    with open_chain(os.path.join(directory, "top"), writable_layers=(0,)) as chain:
        empty(chain)


def rebased(name: str, compressed: bool = False) -> Callable[[str], None]:
    """Onto a file of that name, "" for none, with all that differs."""

    def operate(directory: str) -> None:
        with open_chain(os.path.join(directory, "top"), writable_layers=(0,)) as chain:
            if not name:
                rebase(chain, None, compressed=compressed)
                return
            with open_backing(chain, name.encode(), "raw" if name == "raw" else "qcow2") as backing:
                rebase(chain, backing, compressed=compressed)

    return operate


def relinked(name: str) -> Callable[[str], None]:
    """The header alone."""

    def operate(directory: str) -> None:
        with open_chain(os.path.join(directory, "top"), writable_layers=(0,)) as chain:
            relink(chain.top.image, name.encode(), "qcow2")

    return operate


ALL_STEPS = (*TOP_STEPS, "write -c -P 6 128k 4k")  # where there are clusters of at most 4 KiB in the image itself
SMALL = "cluster_size=512"
MIDDLE = "cluster_size=4096"
RECORDING = (
    "bitmap --add -g 4096 -f qcow2",
    "bitmap --add -g 512 -f qcow2",
    "write -P 8 150k 3k",
    "bitmap --add --disable -f qcow2",
)


def pair(
    base: str, top: str = MIDDLE, more: int = 0, base_steps: Steps = (), top_steps: Steps = ()
) -> dict[str, Layer]:
    """base <- top. more: bytes that the top is larger. The steps come behind the usual ones."""
    plain = "65536" in top or "16384" in top or "data_file" in top
    return {
        "base": Layer(base, SIZE, (*BASE_STEPS, *base_steps)),
        "top": Layer(top, SIZE + more, (*(TOP_STEPS if plain else ALL_STEPS), *top_steps)),
    }


def three(low: Layer, base: Layer) -> dict[str, Layer]:
    """low <- base <- top"""
    return {"low": low, "base": base, "top": Layer(MIDDLE, SIZE, ALL_STEPS)}


OVERWRITTEN = ("snapshot", "write -P 7 60k 20k")
LOW = Layer(MIDDLE, SIZE, ("write -P 21 0 192k",))
SHORT = Layer(SMALL, SIZE - 33 * KIB, BASE_STEPS)
NEW = Layer(MIDDLE, SIZE, ("write -P 1 0 30k", "write -P 22 150k 30k"))
LARGE = Layer("cluster_size=65536", 400 * KIB, ("write -P 1 0 30k", "write -P 23 230k 150k"))
TWIN = Layer(SMALL, SIZE, BASE_STEPS)
LONG_NAME = "./" * 200 + "base"  # ends behind the first sector

SCENARIOS = {
    "commit, 512": Scenario(pair(SMALL), committed()),
    "commit, 4096": Scenario(pair(MIDDLE, SMALL), committed()),
    "commit, 64 KiB": Scenario(pair("cluster_size=65536"), committed()),
    "commit, version 2": Scenario(pair("compat=0.10,cluster_size=512", "compat=0.10,cluster_size=4096"), committed()),
    "commit, narrow refcounts": Scenario(pair(SMALL + ",refcount_bits=1", SMALL + ",refcount_bits=1"), committed()),
    "commit, wide refcounts": Scenario(pair(SMALL + ",refcount_bits=64", SMALL + ",refcount_bits=64"), committed()),
    "commit, lazy refcounts": Scenario(pair(SMALL + ",lazy_refcounts=on", SMALL + ",lazy_refcounts=on"), committed()),
    "commit, extended L2": Scenario(
        pair("cluster_size=16384,extended_l2=on", "cluster_size=16384,extended_l2=on"), committed()
    ),
    "commit, snapshots": Scenario(pair(SMALL, MIDDLE, 0, OVERWRITTEN, OVERWRITTEN), committed()),
    "commit, data file": Scenario(pair(SMALL + ",data_file=base.data"), committed()),
    "commit, raw data file": Scenario(pair(SMALL + ",data_file=base.data,data_file_raw=on"), committed()),
    "commit, compressed base": Scenario(pair(SMALL, SMALL, 0, ("write -c -P 9 120k 20k",)), committed()),
    "commit, raw": Scenario(pair("raw"), committed()),
    "commit, raw grows": Scenario(pair("raw", more=40 * KIB), committed()),
    "commit, base grows": Scenario(pair(SMALL, more=64 * KIB + 512), committed()),
    "commit, base grows over its backing file": Scenario(three(LOW, SHORT), committed()),
    "commit, base with a backing file": Scenario(three(LOW, Layer(SMALL, SIZE, BASE_STEPS)), committed()),
    "commit, two layers": Scenario(three(LOW, SHORT), committed("low"), "low"),
    "commit, bitmaps record": Scenario(pair(SMALL, MIDDLE, 0, RECORDING), committed()),
    "commit, bitmaps record and grow": Scenario(pair(SMALL, MIDDLE, 64 * KIB, RECORDING), committed()),
    "commit, tables of the top in the way": Scenario(
        pair(SMALL, SMALL, 0, (), ("resize 2200k", "write -P 24 2100k 8k")), committed()
    ),
    "commit, bitmaps in the top": Scenario(pair(SMALL, SMALL, 0, (), RECORDING), committed()),
    "commit, then empty": Scenario(pair(SMALL, SMALL), committed_and_emptied),
    "commit, then empty with snapshots": Scenario(pair(SMALL, SMALL, 0, (), OVERWRITTEN), committed_and_emptied),
    "commit, then empty a data file": Scenario(pair(SMALL, SMALL + ",data_file=top.data"), committed_and_emptied),
    "rebase": Scenario(pair(SMALL), rebased("new"), "", (("new", NEW),)),
    "rebase, 64 KiB": Scenario(
        {"base": LARGE, "top": Layer("cluster_size=65536", 400 * KIB, TOP_STEPS[:3])},
        rebased("new"),
        "",
        (("new", NEW),),
    ),
    "rebase onto raw": Scenario(pair(SMALL, SMALL), rebased("raw"), "", (("raw", Layer("raw", SIZE, BASE_STEPS[1:])),)),
    "rebase onto an ancestor": Scenario(three(LOW, SHORT), rebased("low"), ""),
    "rebase, snapshots": Scenario(pair(SMALL, MIDDLE, 0, (), OVERWRITTEN), rebased("new"), "", (("new", NEW),)),
    "rebase, bitmaps record": Scenario(pair(SMALL, SMALL, 0, (), RECORDING), rebased("new"), "", (("new", NEW),)),
    "rebase, compressed": Scenario(pair(SMALL, MIDDLE), rebased("new", True), "", (("new", NEW),)),
    "detach, compressed": Scenario(pair(SMALL, SMALL, 40 * KIB), rebased("", True), ""),
    "rebase, data file": Scenario(pair(SMALL, SMALL + ",data_file=top.data"), rebased("new"), "", (("new", NEW),)),
    "detach": Scenario(pair(SMALL), rebased(""), ""),
    "detach, 64 KiB": Scenario(
        {"base": LARGE, "top": Layer("cluster_size=65536", 400 * KIB, TOP_STEPS[:3])}, rebased(""), ""
    ),
    "relink": Scenario(pair(SMALL, SMALL), relinked("twin"), "", (("twin", TWIN),)),
    "relink, 64 KiB": Scenario(pair(SMALL, "cluster_size=65536"), relinked("twin"), "", (("twin", TWIN),)),
    **{
        f"relink, {size}, a {title} name": Scenario(
            {old: Layer(SMALL, SIZE, BASE_STEPS), "top": Layer(f"cluster_size={size}", SIZE, TOP_STEPS[:3])},
            relinked(new),
            "",
        )
        for size in (1024, 2048, 65536)
        for title, old, new in (("longer", "base", LONG_NAME), ("shorter", LONG_NAME, "base"))
    },
    "relink, 4096, other long names": Scenario(
        {LONG_NAME: Layer(SMALL, SIZE, BASE_STEPS), "top": Layer(MIDDLE, SIZE, ALL_STEPS)},
        relinked("././" + LONG_NAME),
        "",
    ),
}
if LONG:  # some megabytes in each state
    SCENARIOS["commit, the refcount table moves"] = Scenario(
        {
            "base": Layer(f"{SMALL},refcount_bits=64", 4 << 20, ("write -P 1 0 1780k",)),
            "top": Layer(MIDDLE, 4 << 20, ("write -P 2 2M 16k", "write -P 3 1M 8k")),
        },
        committed(),
    )


@pytest.mark.parametrize("name", SCENARIOS)
def test_power_cut(name: str, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert SCENARIOS[name].cut(os.path.join(tmp_path, "images"), monkeypatch)["states"] > 1


def _random_layer(rng: random.Random, size: int) -> Layer:
    options = rng.choice((SMALL, SMALL, MIDDLE, "cluster_size=1024", "compat=0.10,cluster_size=512"))
    options += rng.choice(("", "", ",refcount_bits=64", ",refcount_bits=1")) if "compat" not in options else ""
    # A version 2 image with snapshots cannot grow, and may have to.
    shared = not options.endswith("refcount_bits=1") and "compat" not in options
    steps = []
    for turn in range(rng.randrange(2, 7)):
        offset = rng.randrange(0, size, 2 * KIB)
        length = min(size - offset, rng.choice((2, 6, 10, 22)) * KIB)
        verb = rng.choice((f"write -P {turn + 40}", f"write -P {turn + 60}", "write -z", "discard"))
        steps.append(f"{verb} {offset} {length}")
        if shared and rng.random() < 0.12:
            steps.append("snapshot")
        if "compat" not in options and rng.random() < 0.12:
            steps.append("bitmap --add -g 1024 -f qcow2")
    return Layer(options, size, tuple(steps))


@pytest.mark.parametrize("seed", range(150 if LONG else 3))
def test_power_cuts_in_a_random_chain(seed: int, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """low <- base <- top, of any sizes."""
    rng = random.Random(seed)
    layers = {name: _random_layer(rng, rng.choice((48, 64, 90, 96)) * KIB) for name in ("low", "base", "top")}
    target, operate = rng.choice(
        (
            ("base", committed()),
            ("base", committed()),
            ("base", committed_and_emptied),
            ("low", committed("low")),
            ("", rebased("low")),
            ("", rebased("")),
            ("", rebased("new")),
            ("", rebased("new", True)),
        )
    )
    directory = os.path.join(tmp_path, "images")
    Scenario(layers, operate, target, (("new", _random_layer(rng, 64 * KIB)),)).make(directory)
    tally = cut_power(Cut(directory, "top", target, operate), monkeypatch)
    print(f"seed {seed}, {target}: {dict(tally)}")
    assert tally["states"] > 0
