# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection under its full name, and modules run in this process against a script instead of a guest."""

from __future__ import annotations

import importlib
import pathlib
import sys
import typing as t

import pytest

from tests.unit.plugins.running import PLUGINS, Result, make_tree, run
from tests.unit.plugins.scripted import Script


@pytest.fixture(scope="session", autouse=True)
def collection_tree(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[None]:
    """Makes ansible_collections.airlock.images importable, from this checkout."""
    tree = tmp_path_factory.mktemp("tree")
    make_tree(tree)
    yield
    sys.path.remove(str(tree))


@pytest.fixture
def operations(collection_tree: None) -> t.Any:
    """The sandbox as the modules know it."""
    return importlib.import_module(f"{PLUGINS}.module_utils.sandbox.operations")


@pytest.fixture
def bitmaps(collection_tree: None) -> t.Any:
    return importlib.import_module(f"{PLUGINS}.module_utils.sandbox.images.bitmaps")


@pytest.fixture
def errors(collection_tree: None) -> t.Any:
    return importlib.import_module(f"{PLUGINS}.module_utils.sandbox.errors")


@pytest.fixture
def outcome(collection_tree: None) -> t.Any:
    return importlib.import_module(f"{PLUGINS}.module_utils._module.outcome")


@pytest.fixture
def image_module(collection_tree: None) -> t.Any:
    return importlib.import_module(f"{PLUGINS}.module_utils._module.image_module")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, operations: t.Any, bitmaps: t.Any) -> t.Iterator[Script]:
    """Stands in for operations; at the end of the test all that it expected must have happened."""
    flows = pathlib.Path(__file__).parents[3] / "plugins" / "module_utils" / "_module"
    for path in flows.rglob("*.py"):  # first, for what is imported later would keep the stand-ins
        name = ".".join(path.relative_to(flows).with_suffix("").parts)
        importlib.import_module(f"{PLUGINS}.module_utils._module.{name}")
    scripted = Script(operations, bitmaps)
    for name, value in scripted.stand_ins().items():
        real = getattr(bitmaps if "bitmap" in name else operations, name)
        for module in [module for key, module in sys.modules.items() if key.startswith(PLUGINS)]:
            if getattr(module, name, None) is real:  # where it is from, and who has it from there
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_000_000_005)
    group = importlib.import_module(f"{PLUGINS}.module_utils._module.group")
    monkeypatch.setattr(group, "AT_ONCE", 1)  # in order
    yield scripted
    scripted.finish()


@pytest.fixture
def run_module(collection_tree: None, capsys: pytest.CaptureFixture[str]) -> t.Callable[..., Result]:
    """Runs a module with arguments; returns its answer, with `rc` added. check, diff: the modes."""

    def run_one(module: str, check: bool = False, diff: bool = False, **arguments: t.Any) -> Result:
        return run(capsys, module, check, diff, arguments)

    return run_one
