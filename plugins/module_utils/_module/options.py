# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What no option of any module may be, looked at in what the task gives, before Ansible makes anything of it.

Ansible takes an option that is null for one that is given, makes the text "None" of a null in a list, "True" of yes,
"[]" of an empty list, and 1 of a yes where a number is wanted. A task that was to take a snapshot then takes none, or
one of another name, and says ok.
"""

from __future__ import annotations

import os
import pwd
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..sandbox import errors

PATHS = frozenset({"path", "base", "layers", "siblings", "allowed_roots", "progress_file"})
_TRUTH = "a truth value (yes, no, true, false)"
_ORIGIN = (
    "Look where the value comes from: a variable that was set to nothing, an empty answer of a survey, the result of a "
    "task that was skipped."
)

Given = t.Mapping[str, t.Any]
Spec = t.Mapping[str, t.Mapping[str, t.Any]]


class Module(AnsibleModule):
    """An AnsibleModule that looks at what the task gives before it is validated, and converted.

    fault: what is wrong with it, None: nothing. run_module() fails with that; the parameters are of no use then.
    """

    fault: errors.ArgumentError | None = None

    def _load_params(self) -> None:
        super()._load_params()
        try:
            check_given(self.argument_spec, self.params)
            self.look_further()
        except errors.ArgumentError as error:
            self.fault = error
            # Ansible's own complaint would come first, or a traceback, and neither says what we have to say.
            self.argument_spec = {key: {"type": "raw"} for key in self.argument_spec}
            self.required_if = self.required_one_of = None

    def look_further(self) -> None:
        """Looks at what only some modules have. Raises ArgumentError."""

    def get_ready(self) -> None:
        """What must be there before the flow runs; fails where it is not."""


def check_given(spec: Spec, given: Given, parent: str = "") -> None:
    """Raises ArgumentError. spec: as of AnsibleModule; given: as the task has it; parent: the option that has these,
    whose code bad_PARENT is."""
    for key, option in spec.items():
        if key not in given:
            continue
        name, value, kind = f"{parent}.{key}" if parent else key, given[key], option.get("type", "str")
        if kind == "list" and isinstance(value, list):
            if option.get("elements") == "raw":
                continue  # their flow looks at them, and at null
            for number, element in enumerate(value, 1):
                fault = _fault(element, option.get("elements", "str"), key in PATHS)
                _refuse(f"Element {number} of {name}", fault, parent)
                if isinstance(element, dict):
                    check_given(option.get("options") or {}, element, name)
            continue
        if kind == "list" and option.get("elements") == "dict":
            _refuse(name, _fault(value, "dict", False), parent)  # one element, without the brackets
        _refuse(name, _fault(value, kind, key in PATHS), parent)
        if kind == "dict" and isinstance(value, dict):
            check_given(option.get("options") or {}, value, name)


def _refuse(name: str, fault: tuple[str, str] | None, parent: str) -> None:
    if fault:
        raise errors.ArgumentError(f"{name} is {fault[0]}", f"bad_{parent}" if parent else fault[1])


def _fault(value: t.Any, kind: str, is_path: bool) -> tuple[str, str] | None:
    """What is wrong with a value for an option of that kind, if anything is, and its code."""
    if value is None:
        return f"null. What is not wanted is left out, in a template by 'omit'. {_ORIGIN}", "null_option"
    if kind == "raw":
        return None  # its flow looks at it
    if is_path and value == "":
        return f"empty. Give the path of a file, or leave it out. {_ORIGIN}", "empty_path"
    if kind == "str" and isinstance(value, bool):
        return f"{_TRUTH}, and has to be a text. Put it in quotes, if the word is meant.", "not_text"
    if kind == "str" and isinstance(value, (list, dict)):
        return f"a {type(value).__name__}, and has to be one text. {_ORIGIN}", "not_text"
    if kind == "int" and isinstance(value, bool):
        return f"{_TRUTH}, and has to be a number.", "not_a_number"
    if kind == "dict" and not isinstance(value, dict) and not _is_dict_text(value):
        return f"no dictionary. Give it as one. {_ORIGIN}", "not_a_dictionary"
    return None


def _is_dict_text(value: t.Any) -> bool:
    """Whether Ansible can make a dictionary of it: of JSON, or of key=value."""
    return isinstance(value, str) and (value.startswith("{") or "=" in value)


def settle_paths(params: dict[str, t.Any]) -> None:
    """Paths stay as they are written, but for ~/ in front: that is the home of who runs the task.

    No $NAME and no ~NAME is expanded, as the type `path` would: a file may be called so, and was found by a task.
    """
    for key in PATHS & params.keys():
        value = params[key]
        params[key] = [at_home(path) for path in value] if isinstance(value, list) else value and at_home(value)


def at_home(path: str) -> str:
    """The path, without ~/ in front."""
    if not path.startswith("~/"):
        return path
    try:
        return os.path.join(pwd.getpwuid(os.geteuid()).pw_dir, path[2:])
    except KeyError:
        return path
