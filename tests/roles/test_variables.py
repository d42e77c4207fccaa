# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles' own variables have names of their own: a play's facts and registered variables win against variables of a
task, and those of the command line against all."""

from __future__ import annotations

import pathlib
import re
import typing as t

import pytest
import yaml

ROLES = pathlib.Path(__file__).resolve().parents[2] / "roles"
FILES = sorted(ROLES.glob("*/tasks/*.yml"))
PLAYBOOKS = sorted(ROLES.parent.glob("playbooks/*.yml"))
# What a name is in, that somebody else may have chosen: of an image, a machine, a set, a libvirt domain.
NAME = re.compile(
    r"item\.(path|name|manifest|old_manifest)\b|attribute=('(path|name|group|item\.\w+)'|\d)|"
    r"\w+_domain\b|\w+_vm\.name\b|\w+[._]set\b|\.stderr\b"
)
SHOWN = re.compile(r"[^~}]*\b(airlock\.images\.printable|to_json|length)\b|\s+else\b")


def named(node: t.Any) -> t.Iterator[str]:
    """All variables that tasks set, in whatever way."""
    if isinstance(node, list):
        for each in node:
            yield from named(each)
    elif isinstance(node, dict):
        yield from node.get("vars", {})
        yield from node.get("ansible.builtin.set_fact", {})
        yield from (node[key] for key in ("register", "loop_var", "index_var") if isinstance(node.get(key), str))
        for each in node.values():
            yield from named(each)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_roles_variables_have_its_name(path: pathlib.Path) -> None:
    role = path.parts[-3]
    names = set(named(yaml.safe_load(path.read_text())))
    assert names == {name for name in names if name.startswith((f"__{role}_", f"{role}_"))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_names_are_told_apart_by_case(path: pathlib.Path) -> None:
    """The filter unique takes web and Web for the same, and leaves one out, unless it is told not to."""
    assert not re.search(r"\|\s*(ansible\.builtin\.)?unique\b(?!\(case_sensitive=true\))", path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_labels_of_loops_are_printable(path: pathlib.Path) -> None:
    """They are printed as they are, and most are names of files."""
    labels = re.findall(r"label: (.*)", path.read_text())
    assert labels == [label for label in labels if label.endswith(' | airlock.images.printable }}"')]


def messages(node: t.Any) -> t.Iterator[str]:
    """All that tasks say."""
    if isinstance(node, list):
        for each in node:
            yield from messages(each)
    elif isinstance(node, dict):
        yield from (str(node[key]) for key in ("msg", "fail_msg", "success_msg") if key in node)
        for each in node.values():
            yield from messages(each)


@pytest.mark.parametrize("path", [*FILES, *PLAYBOOKS], ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_names_in_messages_are_printable(path: pathlib.Path) -> None:
    """What a failing task says is printed as it is, and of what one says that does not fail some control characters."""
    for message in messages(yaml.safe_load(path.read_text())):
        for expression in re.findall(r"\{\{.*?\}\}", message):
            raw = [found[0] for found in NAME.finditer(expression) if not SHOWN.match(expression, found.end())]
            assert raw == [], expression
