# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a role's variables, by their kind. tests/roles/test_variables_given.py has those of the roles."""

from __future__ import annotations

import datetime
import importlib
import types
import typing as t

import pytest


@pytest.fixture(scope="module")
def variables(collection_tree: None) -> types.ModuleType:
    return importlib.import_module("ansible_collections.airlock.images.plugins.plugin_utils._variables")


def settle(variables: types.ModuleType, option: dict[str, t.Any], *given: t.Any, **more: t.Any) -> t.Any:
    """The variable x of that option, given or not."""
    there = {"x": given[0]} if given else {}
    return variables.settle({"x": option}, there.__getitem__, there, **more)["x"]


DISKS = {"type": "list", "elements": "dict", "options": {"name": {"required": True}, "disks": {"type": "list"}}}
TAKEN: list[tuple[dict[str, t.Any], t.Any, t.Any]] = [
    *(({"type": "bool"}, text, False) for text in ("false", "no", "0", "off", "False", 0)),
    *(({"type": "bool"}, text, True) for text in ("true", "yes", "1", "on", "True", 1)),
    *(({"type": "int"}, given, 7) for given in (7, "7", " 7 ", 7.0)),
    ({"type": "str"}, 20261130, "20261130"),
    ({"type": "str"}, datetime.date(2026, 11, 30), "2026-11-30"),
    ({"type": "str"}, 1.5, "1.5"),
    ({"type": "str", "default": ""}, "", ""),
    ({"type": "str"}, None, None),
    ({"type": "list"}, "/a", ["/a"]),
    ({"type": "list"}, "/a ", ["/a "]),
    ({"type": "list"}, " a/b\n", [" a/b\n"]),
    ({"type": "list"}, "one,two", ["one", "two"]),
    ({"type": "list"}, " one, two ", ["one", "two"]),
    ({"type": "list"}, '["/a", "/b,c"]', ["/a", "/b,c"]),
    ({"type": "list"}, ["/a,b.qcow2", 1], ["/a,b.qcow2", "1"]),
    ({"type": "list", "default": []}, [], []),
    (DISKS, '[{"name": "db", "disks": ["/a", "/b"]}]', [{"name": "db", "disks": ["/a", "/b"]}]),
    (DISKS, [{"name": 1}], [{"name": "1"}]),
]


@pytest.mark.parametrize(("option", "given", "value"), TAKEN)
def test_taken(variables: types.ModuleType, option: dict[str, t.Any], given: t.Any, value: t.Any) -> None:
    settled = settle(variables, option, given)
    assert (settled, type(settled)) == (value, type(value))


REFUSED: list[tuple[dict[str, t.Any], t.Any, str]] = [
    ({"type": "list"}, "/a,/b", "x is a text with a comma that may belong to a name"),
    ({"type": "list"}, "a,/b", "x is a text with a comma that may belong to a name"),
    ({"type": "list"}, "./a,b", "x is a text with a comma that may belong to a name"),
    ({"type": "bool"}, "perhaps", "x is 'perhaps'. It has to be a truth value"),
    ({"type": "bool"}, 2, "x is the number 2"),
    ({"type": "int"}, True, "x is a truth value"),
    ({"type": "int"}, "0", "x is 0. It has to be at least 1"),
    ({"type": "int"}, "1.5", "x is '1.5'"),
    ({"type": "int"}, "", "x is empty"),
    ({"type": "str"}, datetime.datetime(2026, 11, 30), "x is a date or a time"),
    ({"type": "str"}, True, "Put it in quotes"),
    ({"type": "str"}, [], "x is a list"),
    ({"type": "str"}, "", "x is empty"),
    ({"type": "str", "default": ""}, None, "x is null"),
    ({"type": "str", "required": True}, None, "x is null"),
    ({"type": "str", "choices": ["a", "b"]}, "c", "x is 'c'. It is one of a, b"),
    ({"type": "path"}, 1, "x is the number 1. It has to be a path"),
    ({"type": "list"}, "/a,b.qcow2", "Write a list"),
    ({"type": "list"}, "", "x is empty"),
    ({"type": "list"}, [], "x is empty"),
    ({"type": "list"}, ["/a", None], r"x\[1\] is null"),
    ({"type": "list"}, {}, "x is a dictionary"),
    (DISKS, [{"disks": ["/a"]}], r"x\[0\].name is not set"),
    (DISKS, [{"name": "a", "disk": "/a"}], r"x\[0\] has disk, which nobody knows"),
    (DISKS, ["db"], r"x\[0\] is 'db'. It has to be a dictionary"),
]


@pytest.mark.parametrize(("option", "given", "message"), REFUSED)
def test_refused(variables: types.ModuleType, option: dict[str, t.Any], given: t.Any, message: str) -> None:
    with pytest.raises(variables.VariableError, match=message):
        settle(variables, option, given)


def test_not_given(variables: types.ModuleType) -> None:
    default = [{"period": "day"}]
    settled = settle(variables, {"type": "list", "default": default})
    assert settled == default
    assert settled is not default
    assert settle(variables, {"type": "str"}) is None
    with pytest.raises(variables.VariableError, match="x is not set"):
        settle(variables, {"type": "str", "required": True})
    assert settle(variables, {"type": "list"}, [], may_be_empty=["x"]) == []


def test_all_faults_are_told_at_once(variables: types.ModuleType) -> None:
    given = {"a": None, "b": "x"}

    def read(name: str) -> t.Any:
        if name == "c":
            raise KeyError("nothing")
        return given[name]

    options = {"a": {"type": "int", "default": 1}, "b": {"type": "bool"}, "c": {}, "d": {"default": "there"}}
    with pytest.raises(variables.VariableError) as caught:
        variables.settle(options, read, {"a", "b", "c"})
    assert [fault.split()[0] for fault in caught.value.faults] == ["a", "b", "c"]


def test_names_in_refusals_are_printable(variables: types.ModuleType) -> None:
    """They may be those of files that a play has found."""
    with pytest.raises(variables.VariableError, match=r"is 'y\ufffd\[m\ufffdok:'\. It has to be a dictionary"):
        settle(variables, DISKS, ["y\x1b[m\nok:"])
