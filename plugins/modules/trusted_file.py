#!/usr/bin/python
# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: trusted_file
short_description: Keep small files that nobody else can have written
version_added: 0.3.0
description:
  - Reads, writes and removes files that are believed later, such as the manifests of role
    P(airlock.images.pre_upgrade_snapshot#role).
  - A file, and each directory above it, must belong to root or to the user that runs the module, and nobody else may
    be allowed to write there. Otherwise the task fails with RV(error_code=untrusted), and changes nothing.
  - Directories in which everybody may make files, such as C(/tmp), may be above it when they have the sticky bit, and
    what is below them on the way is there, or is made by O(state=present).
    Symbolic links on the way are followed as long as the same holds for them and for what they lead to. The file itself
    must not be one.
  - The files of a task are written all, or none. None of them is ever half-written.
author:
  - The airlock.images authors (!UNKNOWN)
extends_documentation_fragment:
  - airlock.images._attributes
options:
  files:
    description:
      - The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description:
          - The whole path, taken as it is. Neither V(~) nor V($NAME) stand for something else.
        type: str
        required: true
      content:
        description:
          - What it holds. Needed with O(state=present), and only there.
        type: str
  state:
    description:
      - With V(read) the files are read. One that is not there is told as such.
      - With V(present) they get their O(files[].content), the mode V(0600), and, where it is missing, a directory of
        the mode V(0700).
      - With V(absent) they are removed. Directories stay.
    type: str
    choices: [read, present, absent]
    default: read
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    details:
      - Needs C(/proc).
seealso:
  - module: airlock.images.qcow2_snapshot
"""

EXAMPLES = r"""
- name: Read a manifest
  airlock.images.trusted_file:
    files:
      - path: /var/lib/airlock/manifests/var/lib/libvirt/images/db.before.snapshots.yml
  register: manifest
"""

RETURN = r"""
files:
  description: What there is then, in the order of O(files).
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: As it was given.
      type: str
      sample: /var/lib/airlock/manifests/var/lib/libvirt/images/db.before.snapshots.yml
    exists:
      description: Whether the file is there.
      type: bool
      sample: true
    content:
      description: What it holds, bytes that are no UTF-8 replaced by U+FFFD. Empty where there is none.
      type: str
      sample: "version: 1"
error_code:
  description:
    - What kind of failure it was. V(untrusted) when others could have written the file, V(bad_path) when a path cannot
      be one of such a file, V(host) when the system refused, V(transaction) when it did so half-way and files could not
      be put back either, V(internal_error) for a fault of this collection.
    - The options (V(no_files), V(bad_files), V(null_option), V(only_with_present), V(argument)).
  returned: failure
  type: str
  sample: untrusted
"""

import typing as t

from ansible_collections.airlock.images.plugins.module_utils._module.startup import save_time

save_time()  # on the imports below

from ansible_collections.airlock.images.plugins.module_utils._module.options import Module
from ansible_collections.airlock.images.plugins.module_utils._module.outcome import run_module
from ansible_collections.airlock.images.plugins.module_utils._module.trusted_file import trusted_file_flow

ARGUMENTS = {
    "files": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {"path": {"type": "str", "required": True}, "content": {"type": "str"}},
    },
    "state": {"type": "str", "choices": ["read", "present", "absent"], "default": "read"},
}


def main() -> t.NoReturn:
    module = Module(argument_spec=ARGUMENTS, supports_check_mode=True)
    run_module(module, trusted_file_flow)


if __name__ == "__main__":
    main()
