# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is private to the collection: no other collection can count on it.

"""Makes of a role's variables what their specification says, or says which cannot be that.

Ansible looks at a role's variables, and hands them on as they are: `-e x=false` and an inventory in INI form give the
text "false", which is true. It makes a text of null, "None", and of a list, and a number of yes. See also
module_utils/_module/options.py, which looks at the options of the modules.
"""

from __future__ import annotations

import copy
import datetime
import typing as t

import yaml
from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.airlock.images.plugins.module_utils.sandbox import errors

_ORIGIN = (
    "Look where the value comes from: a variable that was set to nothing, an empty answer of a survey, the result of a "
    "task that was skipped."
)
_TRUTH = "a truth value (yes, no, true, false)"

Options = t.Mapping[str, t.Mapping[str, t.Any]]


class VariableError(ValueError):
    """Variables that cannot be what they are meant to be. faults: a sentence or two on each, with its name, printable:
    names of files are values of them."""

    def __init__(self, faults: t.Sequence[str]) -> None:
        self.faults = [errors.clean(fault, errors.MESSAGE_LIMIT) for fault in faults]
        super().__init__(" ".join(self.faults))


class _Fault(ValueError):
    """What is said behind the name of a variable."""


def settle(
    options: Options, read: t.Callable[[str], t.Any], there: t.Container[str], may_be_empty: t.Container[str] = ()
) -> dict[str, t.Any]:
    """The variables of options (as in an argument_specs.yml), each of its type, those that are not there with their
    default, or None.

    read: the value of one by its name; what it raises is taken for what is wrong with that one. there: the names of
    those that are given. may_be_empty: which lists may be, although they have no empty default. Raises VariableError.
    """
    values: dict[str, t.Any] = {}
    faults: list[str] = []
    for name, option in options.items():
        try:
            if name not in there:
                values[name] = _missing(option)
                continue
            try:
                value = read(name)
            except Exception as error:  # of Ansible, of Jinja, of a plugin in the template
                raise _Fault(f"cannot be told: {error}") from error
            if value is None and option.get("default") is None and not option.get("required"):
                values[name] = None  # the default
                continue
            values[name] = _cast(name, value, option, faults, empty=name in may_be_empty)
        except _Fault as fault:
            faults.append(f"{name} {fault}")
    if faults:
        raise VariableError(faults)
    return values


def _missing(option: t.Mapping[str, t.Any]) -> t.Any:
    if option.get("required"):
        raise _Fault("is not set, and is needed.")
    return copy.deepcopy(option.get("default"))


def _cast(name: str, value: t.Any, option: t.Mapping[str, t.Any], faults: list[str], empty: bool = False) -> t.Any:
    """A value as one of that option. faults: what is wrong with elements of a list is added there. Raises _Fault."""
    if value is None:
        raise _Fault(f"is null. What is not wanted is left out. {_ORIGIN}")
    kind = option.get("type", "str")
    if kind == "list":
        return _list(name, value, option, faults, empty or option.get("default") == [])
    if kind == "dict":
        return _dict(name, value, option.get("options") or {}, faults)
    result = {"bool": _bool, "int": _int, "str": _text, "path": _path}[kind](value)
    if result == "" and option.get("default") != "":
        raise _Fault(f"is empty. {_ORIGIN}")
    if option.get("choices") and result not in option["choices"]:
        raise _Fault(f"is '{result}'. It is one of {', '.join(map(str, option['choices']))}.")
    return result


def _bool(value: t.Any) -> bool:
    try:
        if isinstance(value, (bool, int, str)):
            return bool(boolean(value))
    except TypeError:
        pass
    raise _Fault(f"is {_kind(value)}. It has to be {_TRUTH}.")


def _int(value: t.Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Fault(f"is {_kind(value)}. It has to be a number.")
    if value < 1:
        raise _Fault(f"is {value}. It has to be at least 1.")
    return value


def _text(value: t.Any) -> str:
    """A text stays what it is, so that what marks it as no template stays too."""
    if isinstance(value, str):
        return value
    # What YAML made of 20261130 and of 2026-11-30 was written like that; of yes and of 10:30 that cannot be told.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value.isoformat()
    raise _Fault(f"is {_kind(value)}. It has to be a text. Put it in quotes, if it is meant as it is written.")


def _path(value: t.Any) -> str:
    if not isinstance(value, str):
        raise _Fault(f"is {_kind(value)}. It has to be a path.")
    return value


def _list(name: str, value: t.Any, option: t.Mapping[str, t.Any], faults: list[str], empty: bool) -> list[t.Any]:
    if isinstance(value, str):
        value = _split(value)
    if not isinstance(value, (list, tuple)):
        raise _Fault(f"is {_kind(value)}. It has to be a list.")
    if not value and not empty:
        raise _Fault(f"is empty. {_ORIGIN}")
    element = {"type": option.get("elements", "str"), "options": option.get("options")}
    result = []
    for number, each in enumerate(value):
        place = f"{name}[{number}]"
        try:
            result.append(_cast(place, each, element, faults))
        except _Fault as fault:
            faults.append(f"{place} {fault}")
    return result


def _split(text: str) -> list[t.Any]:
    """What a text stands for where a list is meant, as -e and inventories in INI form give it."""
    bare = text.strip()
    if not bare:
        raise _Fault(f"is empty. {_ORIGIN}")
    if bare[0] == "[" and bare[-1] == "]":
        try:
            return list(yaml.safe_load(bare))
        except yaml.YAMLError:
            raise _Fault("is a text in brackets that is no list. Write it as JSON.") from None
    if "/" in text:  # a path, of which whoever chooses the name of a file would make another one
        if "," in text:
            raise _Fault('is a text with a comma that may belong to a name. Write a list: ["PATH", "PATH"].')
        return [text]
    return [part.strip() for part in bare.split(",")]


def _dict(name: str, value: t.Any, options: Options, faults: list[str]) -> dict[str, t.Any]:
    if not isinstance(value, dict):
        raise _Fault(f"is {_kind(value)}. It has to be a dictionary with {', '.join(options)}.")
    unknown = [str(key) for key in value if key not in options]
    if unknown:
        raise _Fault(f"has {', '.join(unknown)}, which nobody knows. There are: {', '.join(options)}.")
    result = {}
    for key, option in options.items():
        try:
            if key in value:
                result[key] = _cast(f"{name}.{key}", value[key], option, faults)
            elif option.get("required") or option.get("default") is not None:
                result[key] = _missing(option)
        except _Fault as fault:
            faults.append(f"{name}.{key} {fault}")
    return result


def _kind(value: t.Any) -> str:
    """For messages: what somebody has who meant something else."""
    if isinstance(value, bool):
        return _TRUTH
    if isinstance(value, str):
        return f"'{value}'" if value else "empty"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, datetime.date):
        return f"a date or a time ({value})"
    if isinstance(value, dict):
        return "a dictionary"
    return "a list" if isinstance(value, (list, tuple)) else "something else"
