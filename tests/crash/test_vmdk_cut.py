# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Power cuts at every moment of commits to a vmdk base, with any subset of the writes since the last flush lost.

The top shows the same in every state, and the base in each sector what it showed before or what it is to show, by its
tables and by their copies. Each image knows the content id of its parent, or the base is complete and has its new id.
The second run leads to the end. AIRLOCK_LONG=1 runs again, and asks qemu-img, in more states.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.crash.chain_cut import Cut, cut_power
from tests.crash.cut import LONG
from tests.crash.scenarios import BASE_STEPS, KIB, SIZE, TOP_STEPS, Layer, Scenario, committed
from tests.support.vmdk import Recipe

# Tables of 64 entries: a commit writes several groups of them.
SMALL = Recipe(SIZE, 512, 64)
ZEROED = Recipe(SIZE, 4096, 64, zeroed_grains=True)
SINGLE = Recipe(SIZE, 1024, 128, redundant=False)
LARGE = Recipe(SIZE)
LOWEST = ("write -P 21 0 50k", "write -P 22 90k 60k")


def vmdk(recipe: Recipe, steps: tuple[str, ...]) -> Layer:
    return Layer(recipe, recipe.size, steps)


def pair(base: Recipe, top: Recipe) -> dict[str, Layer]:
    return {"base": vmdk(base, BASE_STEPS), "top": vmdk(top, TOP_STEPS)}


def three(low: Recipe, base: Recipe, top: Layer) -> dict[str, Layer]:
    return {"low": vmdk(low, LOWEST), "base": vmdk(base, BASE_STEPS), "top": top}


QCOW2 = Layer("cluster_size=4096", SIZE, TOP_STEPS)
TO_BASE, TO_LOW = committed(top_format="vmdk"), committed("low", top_format="vmdk")

SCENARIOS = {
    "grains of 512": Scenario(pair(SMALL, SMALL), TO_BASE),
    "zeroed grains": Scenario(pair(ZEROED, ZEROED), TO_BASE),
    "zeros in a base that has no zeroed grains": Scenario(pair(Recipe(SIZE, 4096, 64), ZEROED), TO_BASE),
    "no second table": Scenario(pair(SINGLE, Recipe(SIZE, 4096)), TO_BASE),
    "grains of 64 KiB": Scenario(pair(LARGE, LARGE), TO_BASE),
    "small grains on large ones": Scenario(pair(LARGE, SMALL), TO_BASE),
    "a larger base": Scenario(pair(Recipe(SIZE + 40 * KIB, 4096, 64), SMALL), TO_BASE),
    "a base on another image": Scenario(three(ZEROED, LARGE, vmdk(ZEROED, TOP_STEPS)), TO_BASE),
    "two layers": Scenario(three(ZEROED, SMALL, vmdk(ZEROED, TOP_STEPS)), TO_LOW, "low"),
    "two layers, of qcow2 and vmdk": Scenario(three(ZEROED, SMALL, QCOW2), committed("low"), "low"),
    "qcow2 on vmdk": Scenario({"base": vmdk(ZEROED, BASE_STEPS), "top": QCOW2}, committed()),
    "qcow2 that stays on vmdk": Scenario({"base": vmdk(LARGE, BASE_STEPS), "top": QCOW2}, committed(empties=False)),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_power_cut(name: str, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert SCENARIOS[name].cut(os.path.join(tmp_path, "images"), monkeypatch)["states"] > 15


def random_layer(rng: random.Random, size: int) -> Layer:
    grain, entries = rng.choice(((512, 64), (1024, 128), (4096, 64), (8192, 512), (65536, 512)))
    steps = []
    for turn in range(rng.randrange(2, 7)):
        offset = rng.randrange(0, size, 2 * KIB)
        length = min(size - offset, rng.choice((2, 6, 10, 22)) * KIB)
        steps.append(f"{rng.choice((f'write -P {turn + 40}', f'write -P {turn + 60}', 'write -z'))} {offset} {length}")
    recipe = Recipe(size, grain, entries, rng.random() < 0.5, rng.random() < 0.7, cid=rng.getrandbits(31))
    return vmdk(recipe, tuple(steps))


@pytest.mark.parametrize("seed", range(80 if LONG else 3))
def test_power_cuts_in_a_random_chain(seed: int, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """low <- base <- top of vmdk images; a larger one is below a smaller one, for none grows."""
    rng = random.Random(seed)
    sizes = sorted((rng.choice((48, 64, 90, 96)) * KIB for _unused in range(3)), reverse=True)
    layers = {name: random_layer(rng, size) for name, size in zip(("low", "base", "top"), sizes)}
    target = rng.choice(("low", "base"))
    operate: Callable[[str], None] = TO_LOW if target == "low" else TO_BASE
    directory = os.path.join(tmp_path, "images")
    Scenario(layers, operate, target).make(directory)
    tally = cut_power(Cut(directory, "top", target, operate), monkeypatch)
    print(f"seed {seed}, {target}: {dict(tally)}")
    assert tally["states"] > 0
