# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every variable of every role and entry point, given as what it was not meant to be: taken for what is documented, or
refused by name before anything is done. And those that are no texts, given as texts.

All cases are one play. The managed host has no Python, so that the first module that is run fails: control comes that
far, or it was stopped before. What the variables are is read from the specifications, so that none can be forgotten.
"""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import typing as t

import jinja2
import jinja2.meta
import pytest
import yaml

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = {"newest": pathlib.Path(sys.executable).parent, "oldest": CHECKOUT / ".venv-2.18/bin"}
CONTROL = {  # what runs no module on the host
    f"ansible.builtin.{name}"
    for name in (
        "set_fact",
        "assert",
        "fail",
        "debug",
        "validate_argument_spec",
        "include_tasks",
        "include_role",
        "meta",
    )
}

SPECS: dict[tuple[str, str], dict[str, t.Any]] = {
    (path.parts[-3], entry_point): spec["options"]
    for path in sorted(CHECKOUT.glob("roles/*/meta/argument_specs.yml"))
    for entry_point, spec in yaml.safe_load(path.read_text())["argument_specs"].items()
}
UPGRADE = yaml.safe_load((CHECKOUT / "playbooks/upgrade_with_rollback.yml").read_text())[0]
DISKS = ["/nowhere/a.qcow2"]
VALID: dict[str, t.Any] = {  # what is needed
    "pre_upgrade_snapshot_vms": [{"name": "db", "disks": DISKS}],
    "pre_upgrade_snapshot_set": "before",
    "rollback_snapshot_disks": DISKS,
    "rollback_snapshot_set": "before",
    "snapshot_retention_disks": DISKS,
    "snapshot_retention_prefix": "nightly-",
    "snapshot_retention_keep": 1,
    "bitmap_rotation_groups": [{"name": "db", "disks": DISKS}],
}
ELEMENT: dict[str, t.Any] = {
    "pre_upgrade_snapshot_vms": {"name": "db", "disks": DISKS},
    "bitmap_rotation_groups": {"name": "db", "disks": DISKS},
    "bitmap_rotation_periods": {"period": "day"},
}
VALUES: dict[str, t.Any] = {
    "null": None,
    "empty": "",
    "0": 0,
    "20261130": 20261130,
    "2026-11-30": datetime.date(2026, 11, 30),
    "yes": True,
    "[]": [],
    "{}": {},
    "undefined": "{{ nothing_of_this_name }}",
}
TAKEN = {  # for which kinds, apart from what is empty
    "0": {"str", "bool"},
    "20261130": {"str", "int"},
    "2026-11-30": {"str"},
    "yes": {"bool"},
}
EMPTY_LISTS = {"snapshot_retention_disks"}
# Texts of which a role wants more, and what of the above it takes.
MORE: dict[str, set[str]] = {
    "cleanup:pre_upgrade_snapshot_set": set(VALUES) - {"empty"},  # only after a set was taken
    "pre_upgrade_snapshot_free_space": {"0", "20261130"},
    "snapshot_retention_max_age": {"null"},
    "bitmap_rotation_time": {"empty"},
    "bitmap_rotation_granularity": {"empty"},
    "bitmap_rotation_schedule_cron": set(),
    "bitmap_rotation_periods[].max_age": set(),
}


def is_taken(name: str, option: t.Mapping[str, t.Any], value: str, nested: bool = False) -> bool:
    """What the documentation says of a value."""
    kind, default = option.get("type", "str"), option.get("default")
    if value == "null":
        return not nested and default is None and not option.get("required")
    if value == "empty":
        return default == ""
    if value == "[]":
        return kind == "list" and (default == [] or name in EMPTY_LISTS)
    return kind in TAKEN.get(value, ()) and "choices" not in option


class Told(t.NamedTuple):
    """What became of a case. modules: those that were begun. failed: the messages, first the one of what stopped it."""

    modules: list[str]
    failed: list[str]
    said: list[t.Any]


class Case(t.NamedTuple):
    """A role that is run with some variables."""

    role: str
    entry_point: str
    variables: dict[str, t.Any]
    validate: bool = True  # whether ansible-core looks at them first

    def tasks(self, number: int) -> list[dict[str, t.Any]]:
        valid = {name: VALID[name] for name in SPECS[self.role, self.entry_point] if name in VALID}
        run = {
            "name": "Run it",
            "ansible.builtin.include_role": {
                "name": f"airlock.images.{self.role}",
                "tasks_from": self.entry_point,
                "rolespec_validate": self.validate,
            },
            "vars": {**valid, **self.variables},
        }
        return [
            {"name": f"case:{number}", "ansible.builtin.debug": {"msg": ""}},
            {"block": [run], "rescue": [{"name": "Go on", "ansible.builtin.meta": "noop"}]},
        ]


def play(
    commands: pathlib.Path, place: pathlib.Path, tasks: list[t.Any], *options: str, inventory: str = "localhost"
) -> dict[str, Told]:
    """What became of each case."""
    (place / "play.yml").write_text(
        yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": tasks}], width=10000)
    )
    (place / "hosts.ini").write_text(
        f"{inventory}\n[all:vars]\nansible_connection=local\nansible_python_interpreter=/nowhere/python\n"
    )
    told = place / "told"
    done = subprocess.run(
        [str(commands / "ansible-playbook"), "-i", "hosts.ini", *options, "play.yml"],
        cwd=place,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "build/tree"),
            "ANSIBLE_CALLBACK_PLUGINS": str(pathlib.Path(__file__).parent / "callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "told",
            "ANSIBLE_HOME": str(place / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "TOLD": str(told),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    found: dict[str, Told] = {}
    for line in told.read_text().splitlines():
        case, what, action, text = json.loads(line)
        one = found.setdefault(case, Told([], [], []))
        if what == "started" and action not in CONTROL:
            one.modules.append(action)
        elif what == "failed":
            one.failed.append(text)
        elif what == "said":
            one.said.append(text)
    return found


@pytest.fixture(params=sorted(COMMANDS))
def commands(request: pytest.FixtureRequest) -> pathlib.Path:
    found = COMMANDS[request.param]
    if not (found / "ansible-playbook").exists():
        pytest.skip(f"{found} is made by make test")
    return found


def named(text: str, names: t.Iterable[str]) -> set[str]:
    return {name for name in names if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w\[]|\.\w)", text)}


def walk() -> t.Iterator[tuple[Case, set[str]]]:
    """Cases, and the variables of each that are refused; none of them: it comes as far as a module."""
    for (role, entry_point), options in SPECS.items():
        taken: dict[str, list[t.Any]] = {name: [] for name in options}
        refused: dict[str, list[t.Any]] = {name: [] for name in options}
        for value, given in VALUES.items():
            for name, option in options.items():
                if not is_taken(name, option, value):
                    refused[name].append(given)
                elif value in MORE.get(f"{entry_point}:{name}", MORE.get(name, {value})):
                    taken[name].append(given)
                else:
                    yield Case(role, entry_point, {name: given}), {name}
            # ansible-core looks at the variables first, and would not let the role say what it has to say.
            wrong = {name for name, option in options.items() if not is_taken(name, option, value)}
            yield Case(role, entry_point, dict.fromkeys(wrong, given), validate=False), wrong
        for number in range(3):  # with ansible-core's look, as many at once as one case can have
            several = {name: values[number * 3 % len(values)] for name, values in refused.items() if values}
            yield Case(role, entry_point, several), set(several)
        # What is needed one way or the other is not left out everywhere at once.
        taken.pop("snapshot_retention_keep", None)
        for number in range(max(map(len, taken.values()))):
            yield (
                Case(
                    role, entry_point, {name: values[number % len(values)] for name, values in taken.items() if values}
                ),
                set(),
            )
        for name, option in options.items():
            yield from walk_elements(role, entry_point, name, option.get("options", {}))
    for keep, age, wrong in [(None, None, True), (None, "7d", False), (20261130, None, False)]:
        both = {"snapshot_retention_keep": keep, "snapshot_retention_max_age": age}
        yield Case("snapshot_retention", "main", both), set(both) if wrong else set()


def walk_elements(
    role: str, entry_point: str, name: str, options: t.Mapping[str, t.Any]
) -> t.Iterator[tuple[Case, set[str]]]:
    """The same for what the elements of a list have: one element for each that is wrong with one."""
    elements: list[t.Any] = []
    places: set[str] = set()
    for value, given in VALUES.items():
        for key, option in options.items():
            if not is_taken(key, option, value, nested=True):
                # The template that is undefined is told of the variable as a whole.
                if value != "undefined":
                    places.add(f"{name}[{len(elements)}].{key}")
                    elements.append({**ELEMENT[name], key: given})
            elif value not in MORE.get(f"{name}[].{key}", {value}):
                yield Case(role, entry_point, {name: [{**ELEMENT[name], key: given}]}), {name}
    if elements:
        yield Case(role, entry_point, {name: elements}, validate=False), places


def test_what_no_variable_was_meant_to_be(commands: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Each case on one of the ansible-cores that are here; AIRLOCK_LONG=1: on all."""
    cases = list(walk())
    if os.environ.get("AIRLOCK_LONG") != "1":
        there = [found for found in COMMANDS.values() if (found / "ansible-playbook").exists()]
        cases = cases[there.index(commands) :: len(there)]
    told = play(
        commands, tmp_path, [task for number, (case, _refused) in enumerate(cases) for task in case.tasks(number)]
    )
    wrong = []
    for number, (case, refused) in enumerate(cases):
        modules, failed, _said = told[str(number)]
        text = failed[-1] if failed else ""
        if not refused:
            right = bool(modules) or [] in case.variables.values()  # an empty list is nothing to do
        elif case.validate and text.startswith("Validation of arguments failed"):
            # Each line names one; what ansible-core lets pass has been refused by the role in the case before.
            lines = text.splitlines()[1:]
            right = not modules and all(named(line, refused) for line in lines)
        elif case.validate and "nothing_of_this_name" in str(case.variables):
            right = not modules and "nothing_of_this_name" in text
        else:
            there = named(text, {*refused, *SPECS[case.role, case.entry_point]})
            right = not modules and (refused == there or (len(refused) == 1 and refused < there))
        if not right:
            wrong.append((case, refused, told[str(number)]))
    assert not wrong


# By kind: how it is written, and what that is.
TEXTS: dict[str, tuple[str, t.Any]] = {"bool": ("false", False), "int": ("7", 7), "list": ('["/a","/b"]', ["/a", "/b"])}


def test_texts_are_what_they_say(commands: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """-e gives texts, and so may an inventory."""
    options: set[str] = set()
    expected: dict[str, dict[str, t.Any]] = {}
    tasks: list[t.Any] = []
    for number, (role, entry_point) in enumerate(SPECS):
        spec = SPECS[role, entry_point]
        kinds = {name: option["type"] for name, option in spec.items() if option.get("elements") != "dict"}
        texts = {name: TEXTS[kind] for name, kind in kinds.items() if kind in TEXTS}
        options |= {f"-e{name}={text}" for name, (text, _value) in texts.items()}
        expected[str(number)] = {name[len(role) + 1 :]: value for name, (_text, value) in texts.items()}
        tasks += Case(role, entry_point, {}).tasks(number)
        tasks.append({"name": "Tell them", "ansible.builtin.debug": {"msg": f"{{{{ __{role}_var }}}}"}})
    upgrade = UPGRADE["vars"]["__upgrade_options"]
    lookup = "lookup('airlock.images.role_variables', prefix='upgrade_', options=options)"
    tasks += [
        {"name": "case:upgrade", "ansible.builtin.debug": {"msg": ""}},
        {"ansible.builtin.debug": {"msg": f"{{{{ {lookup} }}}}"}, "vars": {"options": upgrade}},
    ]
    options |= {f"-e{name}=false" for name in upgrade}
    expected["upgrade"] = {name[8:]: False if one["type"] == "bool" else "false" for name, one in upgrade.items()}
    told = play(commands, tmp_path, tasks, *sorted(options))
    for case, wanted in expected.items():
        said = told[case].said[-1]
        assert {name: said[name] for name in wanted} == wanted
    assert {"pre_upgrade_snapshot_vms", "bitmap_rotation_groups"} <= {name for spec in SPECS.values() for name in spec}


class Anything(dict[str, t.Any]):
    """Has a filter, or a test, of any name: those of Ansible are not looked at."""

    def get(self, key: str, default: t.Any = None) -> t.Any:
        return super().get(key, bool)


PARSER = jinja2.Environment()
PARSER.filters = Anything(PARSER.filters)
PARSER.tests = Anything(PARSER.tests)
CONDITIONS = {"when", "that", "failed_when", "changed_when", "break_when", "until"}


def used(node: t.Any, is_condition: bool = False) -> t.Iterator[str]:
    """The variables in all templates and conditions."""
    if isinstance(node, list):
        for each in node:
            yield from used(each, is_condition)
    elif isinstance(node, dict):
        for key, each in node.items():
            yield from used(each, key in CONDITIONS)
    elif isinstance(node, str):
        yield from jinja2.meta.find_undeclared_variables(PARSER.parse(f"{{{{ {node} }}}}" if is_condition else node))


def test_roles_use_nothing_else() -> None:
    """Each variable is made what it is meant to be once, where it enters."""
    for role in {role for role, _entry_point in SPECS}:
        names = {name for (one, _entry_point), spec in SPECS.items() if one == role for name in spec}
        there: set[str] = set()
        for path in (CHECKOUT / "roles" / role).rglob("*"):
            if path.is_dir():
                continue
            if path.parent.name in ("tasks", "vars", "os"):
                there |= set(used(yaml.safe_load(path.read_text())))
            elif path.parent.name == "templates":
                there |= set(used(path.read_text()))
        assert f"__{role}_var" in there
        assert not there & names
    first, look, *others = UPGRADE["tasks"]
    assert first["ansible.builtin.assert"]["that"]
    assert "lookup" in look["ansible.builtin.set_fact"]["__upgrade_var"]
    assert not set(used(others)) & set(UPGRADE["vars"]["__upgrade_options"])
