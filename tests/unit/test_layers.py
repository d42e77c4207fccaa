# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who may know whom (the design's section 2), and what travels to a managed host."""

from __future__ import annotations

import ast
import pathlib
import re
import sys
from collections.abc import Iterator

import pytest

TOP = pathlib.Path(__file__).parents[2]
SANDBOX = sorted(path for path in (TOP / "sandbox").glob("*.py") if not path.name.startswith("_guest_"))
FLOWS = sorted((TOP / "plugins/module_utils/_module").glob("*.py"))
MODULES = sorted((TOP / "plugins/modules").glob("*.py"))
LINKS = TOP / "plugins/module_utils/sandbox"

FLOORS = [
    {"abi"},
    {"start"},
    {"disk"},
    {"qcow2", "vmdk"},
    {"bitmaps", "chain"},
    {"operations"},
]  # of the guest: a room knows itself and the floors before its own
FACE = {
    "advice",
    "bitmaps",
    "chain",
    "chain_facts",
    "commits",
    "descriptors",
    "drafts",
    "ending",
    "errors",
    "facts",
    "images",
    "info",
    "listing",
    "opening",
    "overlays",
    "places",
    "rebases",
    "snapshot_changes",
    "snapshot_facts",
    "snapshots",
    "transaction",
    "trees",
    "vmdk",
}  # for flows


def imports(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of every import, wherever it stands: level 0 is absolute, 1 the file's own package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, alias.name) for alias in node.names)


def siblings(name: str) -> set[str]:
    """The modules of the sandbox that sandbox/`name`.py imports."""
    return {imported for level, imported in imports(TOP / "sandbox" / f"{name}.py") if level == 1}


@pytest.mark.parametrize("path", SANDBOX, ids=lambda path: path.name)
def test_the_sandbox_knows_the_standard_library_and_itself(path: pathlib.Path) -> None:
    beyond = {name for level, name in imports(path) if level == 0 and name.split(".")[0] not in sys.stdlib_module_names}
    assert beyond <= ({"_cffi_backend"} if path.name in ("_abi.py", "kvm.py") else set())
    assert not [name for level, name in imports(path) if level > 1]


@pytest.mark.parametrize("path", FLOWS, ids=lambda path: path.name)
def test_a_flow_knows_the_face_of_the_sandbox(path: pathlib.Path) -> None:
    seen = {name for level, name in imports(path) if level == 2}
    assert {name for name in seen if name != "sandbox"} <= FACE | {f"sandbox.{name}" for name in FACE}
    from_package = re.findall(r"^from \.\.sandbox import (.+)$", path.read_text(), re.MULTILINE)
    assert {name.strip() for names in from_package for name in names.split(",")} <= FACE


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_knows_its_flow(path: pathlib.Path) -> None:
    own = [name for _level, name in imports(path) if name.startswith("ansible_collections.")]
    assert own
    assert all(".module_utils._module." in name for name in own)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_saves_time_ahead_of_its_other_imports(path: pathlib.Path) -> None:
    lines = re.findall(r"^(?:from ansible_collections\S+ import \w*|save_time\(\))", path.read_text(), re.MULTILINE)
    assert lines[0].endswith("._module.startup import save_time")
    assert lines[1] == "save_time()"


def test_all_that_a_flow_needs_travels() -> None:
    needed, found = set(FACE), set()
    while needed:
        name = needed.pop()
        found.add(name)
        if name not in ("_abi", "_guest_snapshot"):
            needed |= siblings(name) - found
    linked = {path.stem for path in LINKS.iterdir()}
    assert found | {"_abi", "_guest_snapshot"} <= linked
    for path in LINKS.glob("*.py"):
        assert path.is_symlink()
        assert str(path.readlink()) == f"../../../sandbox/{path.name}"


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_a_room_of_the_guest_knows_those_below(floor: int) -> None:
    for room in FLOORS[floor]:
        files = [path for path in (TOP / "guest" / room).iterdir() if path.suffix in (".c", ".h")]
        assert files
        for path in files:
            included = set(re.findall(r'^#include "(\w+)/', path.read_text(), re.MULTILINE))
            assert included <= {room}.union(*FLOORS[:floor]), path.name


def test_every_room_of_the_guest_has_its_floor() -> None:
    rooms = {path.name for path in (TOP / "guest").iterdir() if path.is_dir()}
    assert rooms == {"families"}.union(*FLOORS)


def test_a_macro_of_the_guest_has_one_meaning() -> None:
    found: dict[str, list[str]] = {}
    for path in sorted((TOP / "guest").rglob("*.[ch]")):
        for name in re.findall(r"^#define (\w+)(?:\(| +\S)", path.read_text(), re.MULTILINE):
            found.setdefault(name, []).append(str(path.relative_to(TOP)))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_no_operation_of_the_guest_touches_the_doorbell() -> None:
    for path in (TOP / "guest/operations").iterdir():
        assert "doorbell" not in path.read_text().lower(), path.name
