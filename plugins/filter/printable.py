# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: printable
short_description: Make a name printable that somebody else chose
version_added: 0.3.0
author:
  - The airlock.images authors (!UNKNOWN)
description:
  - Replaces what is not printable, such as newlines and the escapes that a terminal acts on, and cuts what is very
    long.
  - It is for messages and for the labels of loops, which C(ansible-playbook) prints as they are. A name that has gone
    through it is no file's any more.
positional: _input
options:
  _input:
    description: The name.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Look at images that were found
  airlock.images.qcow2_info:
    path: ["{{ item }}"]
  loop: "{{ found.files | map(attribute='path') }}"
  loop_control:
    label: "{{ item | airlock.images.printable }}"
"""

RETURN = r"""
_value:
  description: The name, with U+FFFD where something was that cannot be printed.
  type: str
  sample: /srv/images/web.qcow2
"""

import typing as t

from ansible_collections.airlock.images.plugins.module_utils.sandbox import errors


def printable(name: t.Any) -> str:
    """See DOCUMENTATION."""
    return errors.clean(str(name), errors.PATH_LIMIT)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file, by name."""
        return {"printable": printable}
