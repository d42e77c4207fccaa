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
