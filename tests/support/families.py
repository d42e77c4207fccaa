# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The random families: what is made of a seed, where it is run, and how one that fails is run again."""

from __future__ import annotations

import shlex
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Union

from . import commits, vmdk_chains
from .bitmap_chains import BitmapArena, BitmapTally
from .bitmap_drivers import BITMAP_DRIVERS
from .bitmap_steps import BitmapChain, make_bitmap_chain
from .chains import ALL_VERBS, Arena, Tally
from .commits import CommitArena
from .compressed_rebases import CompressedArena, make_compressed
from .drivers import DRIVERS
from .rebases import RebaseArena, make_rebase
from .steps import Chain, make_chain
from .vmdk_chains import VmdkArena

StepArena = Union[Arena, BitmapArena]
StepChain = Union[Chain, BitmapChain]


@dataclass(frozen=True)
class StepFamily:
    """Chains of operations on one image. make(seed, cell): a chain, of a drawn cell where none is given.
    drivers: who can be compared with qemu-img, by name."""

    make: Callable[..., Any]
    arena: Callable[..., Any]
    tally: Callable[[], Any]
    drivers: Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class ScenarioFamily:
    """Chains of images, and one operation on each. run(arena, scenario): what is wrong with ours."""

    make: Callable[[int], Any]
    arena: Callable[[str], Any]
    run: Callable[[Any, Any], list[str]]


STEPS = {
    "snapshot": StepFamily(make_chain, Arena, Tally, DRIVERS),
    "bitmap": StepFamily(make_bitmap_chain, BitmapArena, BitmapTally, BITMAP_DRIVERS),
}
SCENARIOS = {
    "commit": ScenarioFamily(commits.make_scenario, CommitArena, CommitArena.run),
    "commit-slow": ScenarioFamily(commits.make_slow_scenario, CommitArena, CommitArena.run),
    "rebase": ScenarioFamily(make_rebase, RebaseArena, RebaseArena.run),
    "rebase-compressed": ScenarioFamily(make_compressed, CompressedArena, CompressedArena.run),
    "vmdk": ScenarioFamily(vmdk_chains.make_scenario, VmdkArena, VmdkArena.run),
    "vmdk-slow": ScenarioFamily(vmdk_chains.make_slow_scenario, VmdkArena, VmdkArena.run),
    "vmdk-rebase": ScenarioFamily(vmdk_chains.make_rebase, VmdkArena, VmdkArena.rebase),
}
KINDS = (*STEPS, *SCENARIOS)


def replay(kind: str, seed: int, **options: str) -> str:
    """The command that runs this one again; for what fails in a log on another machine."""
    command = ["python", "-m", "tests.differential.run", "--kind", kind, "--seed", str(seed)]
    for name, value in options.items():
        command += [f"--{name}", value]
    return shlex.join(command)


def _replay_steps(arena: StepArena, chain: StepChain, directory: str) -> str:
    kind = "bitmap" if isinstance(arena, BitmapArena) else "snapshot"
    options = {}
    driver = next(name for name, made in STEPS[kind].drivers.items() if made is type(arena.driver))
    if driver != "airlock":
        options["driver"] = driver
    if chain.cell != STEPS[kind].make(chain.seed).cell:
        options["cell"] = str(chain.cell)
    if isinstance(arena, Arena) and arena.verbs != ALL_VERBS:
        options["verbs"] = ",".join(sorted(arena.verbs))
    if directory:
        options["directory"] = directory
    return replay(kind, chain.seed, **options)


def failure_of_steps(arena: StepArena, chain: StepChain, reduce: bool = False, directory: str = "") -> str:
    """Runs a chain. Returns "", or all there is to say of a mismatch and of how to see it again.

    reduce: whether a failing chain is shortened. directory: where it has to be run again, "" for anywhere.
    """
    again = _replay_steps(arena, chain, directory)
    try:
        mismatch = arena.run(chain)  # type: ignore[arg-type]
        if mismatch is not None and reduce:
            mismatch = arena.reduce(mismatch)  # type: ignore[arg-type]
    except Exception:
        return f"{chain}\n{traceback.format_exc()}\nagain: {again}"
    if mismatch is None:
        return ""
    return f"{mismatch.chain}\nstep {mismatch.step}: {mismatch.operation}\n{mismatch.report}\nagain: {again}"


def failure_of_seed(kind: str, arena: Any, seed: int, directory: str = "") -> str:
    """The same for a seed of a family of SCENARIOS."""
    family = SCENARIOS[kind]
    scenario = family.make(seed)
    again = replay(kind, seed, **({"directory": directory} if directory else {}))
    try:
        faults = family.run(arena, scenario)
    except Exception:
        faults = [traceback.format_exc()]
    return "\n".join((str(scenario), *faults, f"again: {again}")) if faults else ""


def agree_on_steps(arena: StepArena, chain: StepChain, directory: str = "") -> None:
    """Asserts that a chain comes out the same. A raised text is printed whole; a compared one pytest would cut."""
    failure = failure_of_steps(arena, chain, directory=directory)
    if failure:
        raise AssertionError(failure)


def agree_on_seed(kind: str, arena: Any, seed: int) -> None:
    """The same for a seed of a family of SCENARIOS."""
    failure = failure_of_seed(kind, arena, seed)
    if failure:
        raise AssertionError(failure)


def counted(arena: Any) -> dict[str, Counter[str]]:
    """What an arena has counted, by what it is."""
    return vars(arena.tally) if hasattr(arena, "tally") else {"outcomes": arena.outcomes}
