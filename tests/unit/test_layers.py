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
SANDBOX = sorted(path for path in (TOP / "sandbox").rglob("*.py") if not path.name.startswith("_guest_"))
FLOWS = sorted((TOP / "plugins/module_utils/_module").rglob("*.py"))
MODULES = sorted((TOP / "plugins/modules").glob("*.py"))

FLOORS = [
    {"abi"},
    {"start"},
    {"disk"},
    {"qcow2", "vmdk"},
    {"bitmaps", "chain"},
    {"operations"},
]  # of the guest: a room knows itself and the floors before its own
# Rooms of sandbox/, from the ground up: each knows those before it. "" are errors.py and operations.py beside them.
SANDBOX_FLOORS = ["guests", "", "words", "host", "vmm", "images", "facts", "cli"]
FACE = {"", "words", "host", "images", "facts"}  # for flows


def imports(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of every import, wherever it stands: level 0 is absolute, 1 the file's own package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, alias.name) for alias in node.names)


def rooms_of(path: pathlib.Path) -> Iterator[str]:
    """The rooms of sandbox/ that one of its files knows."""
    inside = path.parent != TOP / "sandbox"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                if node.level == 1 and inside:
                    yield path.parent.name
                else:
                    room = name.split(".")[0]
                    yield room if (TOP / "sandbox" / room).is_dir() else ""


@pytest.mark.parametrize("path", SANDBOX, ids=lambda path: str(path.relative_to(TOP)))
def test_the_sandbox_knows_the_standard_library_and_itself(path: pathlib.Path) -> None:
    beyond = {name for level, name in imports(path) if level == 0 and name.split(".")[0] not in sys.stdlib_module_names}
    assert beyond <= ({"_cffi_backend"} if path.name in ("_abi.py", "kvm.py") else set())
    assert not [name for level, name in imports(path) if level > (1 if path.parent == TOP / "sandbox" else 2)]


@pytest.mark.parametrize("path", SANDBOX, ids=lambda path: str(path.relative_to(TOP)))
def test_a_room_of_the_sandbox_knows_those_below(path: pathlib.Path) -> None:
    if path.name == "operations.py":
        return  # the public face, which nobody in here knows
    room = "" if path.parent == TOP / "sandbox" else path.parent.name
    assert set(rooms_of(path)) <= set(SANDBOX_FLOORS[: SANDBOX_FLOORS.index(room) + 1])


def test_no_room_is_a_hall() -> None:
    rooms = [path for path in (TOP / "sandbox").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert {room.name for room in rooms} == set(SANDBOX_FLOORS) - {""}
    assert {path.name for path in (TOP / "sandbox").glob("*.py")} == {"__init__.py", "errors.py", "operations.py"}
    for room in rooms:
        assert len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= 18


@pytest.mark.parametrize("path", FLOWS, ids=lambda path: str(path.relative_to(TOP)))
def test_a_flow_knows_the_face_of_the_sandbox(path: pathlib.Path) -> None:
    inside = path.parent.name != "_module"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2 + inside:
            package, *rest = (node.module or "").split(".")
            assert package == "sandbox"
            if rest == ["guests", "_limits"]:
                continue  # numbers
            names = rest[:1] or [alias.name for alias in node.names]
            assert {name if (TOP / "sandbox" / name).is_dir() else "" for name in names} <= FACE
            assert rest[:1] != ["operations"]


def test_a_class_has_a_name_of_its_own() -> None:
    found: dict[str, list[str]] = {}
    for path in (*SANDBOX, *FLOWS):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(TOP)))
    assert len(found) > 100
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_no_flow_leans_on_another() -> None:
    rooms = {path.parent.name for path in FLOWS} - {"_module"}
    assert len(rooms) >= 4
    for path in FLOWS:
        for level, name in imports(path):
            if level and path.parent.name in rooms and level == 2:
                assert name.split(".")[0] not in rooms, path


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


def test_a_limit_of_the_guest_is_written_in_one_place() -> None:
    limits = re.findall(r"^(\w+) =", (TOP / "sandbox/guests/_limits.py").read_text(), re.MULTILINE)
    assert len(limits) >= 15
    for path in [path for path in (*SANDBOX, *FLOWS) if path.name != "_limits.py"]:
        for name in re.findall(r"^([A-Z]\w+_M(?:AX|IN)) = \d", path.read_text(), re.MULTILINE):
            assert not [limit for limit in limits if limit.endswith(name)], f"{path}: {name}"


def test_a_macro_of_the_guest_has_one_meaning() -> None:
    found: dict[str, list[str]] = {}
    for path in sorted((TOP / "guest").rglob("*.[ch]")):
        for name in re.findall(r"^#define (\w+)(?:\(| +\S)", path.read_text(), re.MULTILINE):
            found.setdefault(name, []).append(str(path.relative_to(TOP)))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_an_operation_has_one_name_in_the_guest() -> None:
    """Its call, its file and its function; removing damaged bitmaps is a kind of CALL_BITMAP_CHANGE."""
    text = (TOP / "guest/abi/calls.h").read_text()
    calls = re.findall(r"CALL_(\w+)", re.findall(r"enum call_operation \{(.*?)\};", text, re.DOTALL)[0])
    verbs = {name.lower() for name in calls} | {"bitmap_remove_damaged"}
    files = {path.stem: path.read_text() for path in (TOP / "guest/operations").glob("*.c") if path.stem != "main"}
    assert set(files) == verbs
    for name, content in files.items():
        assert f"_Noreturn void operation_{name}(" in content


def test_a_verb_begins_with_what_a_crash_leaves() -> None:
    for path in (TOP / "guest/operations").glob("*.c"):
        headline = path.read_text().split("*/")[0]
        assert path.stem == "main" or "commit point" in headline or "Reads only" in headline, path.name


def test_no_operation_of_the_guest_touches_the_doorbell() -> None:
    for path in (TOP / "guest/operations").iterdir():
        assert "doorbell" not in path.read_text().lower(), path.name
