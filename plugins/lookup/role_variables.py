# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: role_variables
short_description: The variables of a role or a playbook, each of the type that it is meant to have
version_added: 0.3.0
author:
  - The airlock.images authors (!UNKNOWN)
description:
  - Reads the variables that a specification names, from the play, and makes of each what it is meant to be. A text
    such as C(false), which C(-e) and inventories in INI form give, becomes a truth value, C(7) a number, C(/a,/b) or
    C(["/a"]) a list.
  - Numbers and dates become texts where texts are meant, as C(20261130) and C(2026-11-30) do.
  - Null, a truth value in the place of a text, an empty text without a default that is empty, and whatever else is not
    what is meant, make it fail. The message names all variables of which this is true.
  - The roles and playbooks of this collection do this first, and use nothing else of their variables.
options:
  _terms:
    description: An entry point of the role that this is used in, whose C(meta/argument_specs.yml) is the specification.
    type: list
    elements: str
  prefix:
    description:
      - What the names of the variables begin with, and those of the result do not. In a role it is the role's name.
    type: str
  options:
    description: The specification, as C(options) in C(meta/argument_specs.yml). For playbooks.
    type: dict
  may_be_empty:
    description: Lists that may be empty, though it is not their default.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Look at the variables
  ansible.builtin.set_fact:
    upgrade: "{{ lookup('airlock.images.role_variables', prefix='upgrade_', options=specification) }}"
  vars:
    specification:
      upgrade_tasks:
        type: path
        required: true
      upgrade_keep_snapshots:
        type: bool
        default: false
"""

RETURN = r"""
_list:
  description: One dictionary, with the names without their prefix.
  type: list
  elements: dict
"""

import functools
import os
import typing as t

import yaml
from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase
from ansible_collections.airlock.images.plugins.plugin_utils import _variables


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms: list[t.Any], variables: t.Any = None, **kwargs: t.Any) -> list[dict[str, t.Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        options, prefix = self.get_option("options"), self.get_option("prefix")
        if options is None:
            (entry_point,) = terms
            role = str(variables["role_path"])
            options = _specification(role, str(entry_point))
            prefix = f"{os.path.basename(role)}_"

        templar = t.cast(t.Any, self._templar)

        def read(name: str) -> t.Any:
            return templar.template(variables[name], fail_on_undefined=True)

        try:
            settled = _variables.settle(options, read, variables, self.get_option("may_be_empty"))
        except _variables.VariableError as error:
            raise AnsibleLookupError(str(error)) from error
        return [{name[len(prefix) :]: value for name, value in settled.items()}]


@functools.cache
def _specification(role: str, entry_point: str) -> t.Any:
    with open(os.path.join(role, "meta/argument_specs.yml"), encoding="utf-8") as file:
        return yaml.safe_load(file)["argument_specs"][entry_point]["options"]
