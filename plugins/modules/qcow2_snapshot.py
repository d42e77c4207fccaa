#!/usr/bin/python
# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qcow2_snapshot
short_description: Create, apply and delete internal snapshots of qcow2 images
version_added: 0.1.0
description:
  - Manages the snapshots that are kept inside a qcow2 image, as C(qemu-img snapshot) does. What the image holds
    afterwards is the same to the byte, and C(qemu-img) and QEMU go on working with it.
  - Before anything is written, every reference in the image is counted and compared with the refcounts. An image that
    contradicts itself is refused and left as it is. Clusters that are merely leaked are reported and left alone.
  - The backing file of an image is not opened, it is not needed for this.
  - A list of images is one group. All of them are opened, locked and looked at before the first one is changed. When
    one fails, what was done to the others is undone, and the message says what state each image is in.
author:
  - The airlock.images authors (!UNKNOWN)
extends_documentation_fragment:
  - airlock.images._attributes
  - airlock.images._attributes.actiongroup
  - airlock.images._images
  - airlock.images._images.links
  - airlock.images._images.limited
  - airlock.images._images.progress
  - airlock.images._images.sandbox
attributes:
  check_mode:
    support: full
    details:
      - The image is opened for reading only, so that a file which may not be written will do.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  name:
    description:
      - The name of the snapshot. At most 255 bytes, and no control characters.
      - Required for O(state=present), unless O(retention) is given. For the other states either this or O(snapshot_id)
        is required, with both of them both must match.
      - Names are compared exactly. A name is never taken for an id.
    type: str
  snapshot_id:
    description:
      - The id of the snapshot, as in RV(snapshots[].id).
      - An image can hold several snapshots of one name. For O(state=applied) and O(state=absent) this decides between
        them. Without it the task fails with RV(error_code=ambiguous_name).
      - Cannot be used with O(state=present), since the id of a new snapshot cannot be chosen.
    type: str
  state:
    description:
      - With V(present), a snapshot of this name is created from the disk's present state, unless there is one already.
        An older snapshot of that name is left as it is. O(retention) then deletes old snapshots.
      - With V(absent), the snapshot is deleted, unless there is none. The disk's present state is not affected.
      - With V(applied), the disk is rolled back to the snapshot, unless it is in that state already. What was written
        to the disk since then is lost, unless another snapshot holds it. The snapshot itself stays. When there is no
        such snapshot, the task fails.
      - Whether the disk is in the state of a snapshot is decided by comparing the two mappings. A cluster that was
        rewritten with the same data counts as different.
    type: str
    choices:
      - present
      - absent
      - applied
    default: present
  allow_resize:
    description:
      - Whether O(state=applied) may change the size of the disk, when it had another size at the time of the snapshot.
      - Otherwise such a snapshot is refused with RV(error_code=resize_not_allowed).
    type: bool
    default: false
  retention:
    description:
      - Which snapshots stay, of those whose names start with O(retention.prefix). The others of them are deleted. A
        snapshot of any other name is never touched.
      - With O(retention.keep) and O(retention.max_age) both given, a snapshot stays that either of them keeps.
      - It is applied whether or not O(name) had to be created. The snapshot O(name) itself always stays; when its name
        starts with the prefix, it is one of those that O(retention.keep) counts. Without O(name) nothing is created.
      - Creating and deleting is one change. For a list of images it is done for all of them or for none.
      - Only with O(state=present).
    type: dict
    version_added: 0.2.0
    suboptions:
      prefix:
        description:
          - What the names start with that this is about. It must not be empty. Compared exactly, it is no pattern.
        type: str
        required: true
      keep:
        description:
          - How many stay, the last ones. At least 1.
          - The last ones are those at the end of the image's table of snapshots, the ones taken last. Their dates have
            no part in it, so that a clock that was wrong for a while does no harm.
          - At least one of this and O(retention.max_age) is required.
        type: int
      max_age:
        description:
          - Younger ones than this stay. A number with its unit, V(s), V(m), V(h), V(d) or V(w), as in V(12h) or V(7d).
            A number without a unit is refused since 0.3.0.
          - The age is the time of the managed host, taken once for all images of the task, less the date of the
            snapshot. A snapshot whose date is in the future is young. Give O(retention.keep) as well, if the clock of
            the host is not to be trusted.
        type: str
  force_share:
    description:
      - Look at an image even though another process has it open for writing. What is found there may be out of date
        in the next moment.
      - Only in check mode, since nothing is written there. Otherwise the task fails.
    type: bool
    default: false
seealso:
  - module: airlock.images.qcow2_info
"""

EXAMPLES = r"""
- name: Take a snapshot before the upgrade
  airlock.images.qcow2_snapshot:
    path: /var/lib/libvirt/images/web.qcow2
    name: before-upgrade

- name: Take a snapshot of all disks of a machine, or of none of them
  airlock.images.qcow2_snapshot:
    path:
      - /var/lib/libvirt/images/db-system.qcow2
      - /var/lib/libvirt/images/db-data.qcow2
    name: before-upgrade

- name: Take a snapshot each night, and keep those of a week, and the last three however old they are
  airlock.images.qcow2_snapshot:
    path: /var/lib/libvirt/images/web.qcow2
    name: nightly-{{ now(utc=true).strftime('%Y-%m-%d') }}
    retention:
      prefix: nightly-
      keep: 3
      max_age: 7d

- name: See which snapshots would go, without taking one
  airlock.images.qcow2_snapshot:
    path: /var/lib/libvirt/images/web.qcow2
    retention:
      prefix: nightly-
      keep: 3
  check_mode: true
  diff: true

- name: See whether a rollback would change anything
  airlock.images.qcow2_snapshot:
    path: /var/lib/libvirt/images/web.qcow2
    name: before-upgrade
    state: applied
  check_mode: true
  diff: true
  register: rollback

- name: Roll back, also when the disk has been enlarged since
  airlock.images.qcow2_snapshot:
    path: /var/lib/libvirt/images/web.qcow2
    name: before-upgrade
    state: applied
    allow_resize: true

- name: Delete one of several snapshots that have the same name
  airlock.images.qcow2_snapshot:
    path: /var/lib/libvirt/images/web.qcow2
    name: nightly
    snapshot_id: "3"
    state: absent

- name: Show the snapshots
  ansible.builtin.debug:
    msg: "{{ rollback.listing }}"
"""

RETURN = r"""
images:
  description:
    - What there is now, for each image, in the order of O(path).
    - In check mode, what there would be.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: The image file.
      type: str
      returned: success
      sample: /var/lib/libvirt/images/web.qcow2
    changed:
      description: Whether this image was changed.
      type: bool
      returned: success
      sample: true
    virtual_size:
      description: The size of the disk in bytes.
      type: int
      returned: success
      sample: 10737418240
    snapshot:
      description:
        - The one that O(name) or O(snapshot_id) names, in the form of RV(snapshots). It is told whatever
          O(limit) leaves out.
        - V(null) when there is none (any more), or none was named.
      type: dict
      returned: success
      version_added: 0.3.0
      sample: null
    snapshots:
      description: The snapshots, in the form of RV(snapshots), the last ones where there are too many.
      type: list
      elements: dict
      returned: success
      sample: []
    snapshot_count:
      description: How many snapshots there are.
      type: int
      returned: success
      version_added: 0.3.0
      sample: 0
    truncated:
      description: Whether snapshots of the image were left out, see O(limit).
      type: bool
      returned: success
      version_added: 0.3.0
      sample: false
    listing:
      description: The snapshots, in the form of RV(listing).
      type: str
      returned: success, when nothing was left out
      sample: ""
    leaked_clusters:
      description:
        - How many clusters the refcounts call used although nothing refers to them. A warning tells of them, too.
        - V(null) when nothing was changed, since they are counted before a change only.
      type: int
      returned: success
      sample: 0
    differing_clusters:
      description: How many clusters of the disk were mapped otherwise than in the snapshot, before it was applied.
      type: int
      returned: O(state=applied)
      sample: 17
    removed:
      description:
        - The snapshots that O(retention) deleted, in the form of RV(snapshots). In check mode, would delete.
        - The last ones where there are too many.
      type: list
      elements: dict
      returned: when O(retention) was given
      sample: []
    removed_count:
      description: How many they are.
      type: int
      returned: when O(retention) was given
      version_added: 0.3.0
      sample: 0
truncated:
  description:
    - Whether snapshots of any image were left out, see O(limit).
    - RV(snapshots) and RV(listing) are not there then, RV(images) has what is returned.
  returned: success
  type: bool
  version_added: 0.3.0
  sample: false
snapshots:
  description:
    - The snapshots that the image has now, in the order of its table. In check mode, those that it would have.
    - Bytes of a name or an id that are no UTF-8 and characters that cannot be printed are replaced by U+FFFD.
  returned: success, when O(path) is one image and nothing was left out
  type: list
  elements: dict
  contains:
    id:
      description: The id. V(null) for a snapshot that check mode predicts.
      type: str
      returned: success
      sample: "1"
    name:
      description: The name.
      type: str
      returned: success
      sample: before-upgrade
    date:
      description: When the snapshot was taken. All of it is V(null) for a snapshot that check mode predicts.
      type: dict
      returned: success
      contains:
        seconds:
          description: Seconds since 1970, UTC.
          type: int
          returned: success
          sample: 1795250399
        nanoseconds:
          description: Nanoseconds of that second.
          type: int
          returned: success
          sample: 123456789
        iso8601:
          description: The same moment as text, in UTC.
          type: str
          returned: success
          sample: "2026-11-21T08:39:59.123456789Z"
    vm_state_size:
      description: The size of the saved state of a running machine in bytes. 0 without one.
      type: int
      returned: success
      sample: 0
    vm_clock:
      description: How long the machine had been running, in nanoseconds.
      type: int
      returned: success
      sample: 0
    icount:
      description: The number of instructions the machine had executed. V(null) when it was not recorded.
      type: int
      returned: success
      sample: 0
    disk_size:
      description: The size of the disk at the time of the snapshot, in bytes.
      type: int
      returned: success
      sample: 10737418240
listing:
  description:
    - The snapshots as the table that C(qemu-img snapshot -l) prints, with control characters escaped. Empty without
      snapshots. Dates are in the managed host's time zone.
    - In check mode, the row of a snapshot to be created has no id, and the time of the check.
  returned: success, when O(path) is one image and nothing was left out
  type: str
  sample: |
    Snapshot list:
    ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT
    1       before-upgrade        0 B 2026-11-21 08:39:59  0000:00:00.000          0
sandbox:
  description: What the guests that worked on the images were confined by, and what they cost.
  returned: success
  type: dict
  contains:
    layers:
      description: The layers of the jail that were active.
      type: list
      elements: str
      returned: success
      sample:
        - user_mode_guest
        - descriptors
        - namespaces
        - credentials
        - no_new_privs
        - landlock_abi_7
        - rlimits
        - seccomp
        - timer
    exits:
      description: How often a guest rang for the host, all guests of the task together.
      type: int
      returned: success
      sample: 9
    memory:
      description: Bytes that the largest guest might have used.
      type: int
      returned: success
      sample: 134217728
    milliseconds:
      description: How long all guests of the task took, from fork to exit.
      type: float
      returned: success
      sample: 11.532
error_code:
  description:
    - Which kind of failure it was. The codes are stable, the words of RV(ignore:msg) are not.
    - The options (V(no_images), V(duplicate_path), V(bad_timeout), V(bad_memory_limit), V(empty_name),
      V(name_too_long), V(control_character), V(snapshot_id_with_present), V(bad_retention), V(bad_limit),
      V(bad_progress_file), V(force_share)).
    - The host (V(no_kvm), V(kvm_permission), V(kvm), V(no_cffi), V(host), V(jail)).
    - This collection (V(internal_error)). What was done to a group of images is undone then as on any failure.
    - The file (V(not_found), V(is_directory), V(not_regular), V(permission_denied), V(read_only), V(in_use),
      V(open_failed), V(no_space), V(no_journal), V(read_failed), V(write_failed), V(transaction),
      V(terminated)).
    - The image (V(not_qcow2), V(truncated), V(incompatible_features), V(dirty), V(corrupt), V(refcount_too_low),
      V(overlap), V(outside_file), V(copied_flag), and more of that kind).
    - Its snapshots (V(snapshot_not_found), V(ambiguous_name), V(resize_not_allowed), V(resize_v2), V(has_bitmaps),
      V(data_file), V(refcount_overflow), V(too_many_snapshots)).
    - The guest (V(time_limit), V(time_too_short), V(budget), V(guest_crash), V(guest_protocol), V(no_memory)).
  returned: failure
  type: str
  sample: in_use
outcomes:
  description: What became of each image, when the task failed.
  returned: failure, once the images are known
  type: list
  elements: dict
  contains:
    path:
      description: The image file.
      type: str
      returned: failure
      sample: /var/lib/libvirt/images/web.qcow2
    outcome:
      description:
        - V(untouched) when it was not written to.
        - V(undone) when it had been written to, and was brought back to what it was before.
        - V(unknown) when bringing it back failed as well. RV(ignore:msg) has the reason.
      type: str
      returned: failure
      sample: untouched
pids:
  description: The processes that have the image open, as far as the kernel tells.
  returned: RV(error_code=in_use)
  type: list
  elements: int
  sample: [4711]
"""

import typing as t

from ansible_collections.airlock.images.plugins.module_utils._module.startup import save_time

save_time()  # on the imports below

from ansible_collections.airlock.images.plugins.module_utils._module.arguments import (
    FORCE_SHARE_ARGUMENT,
    IMAGES_ARGUMENTS,
    LIMIT_ARGUMENT,
    LINKS_ARGUMENT,
    PROGRESS_ARGUMENT,
)
from ansible_collections.airlock.images.plugins.module_utils._module.image_module import ImageModule
from ansible_collections.airlock.images.plugins.module_utils._module.outcome import run_module
from ansible_collections.airlock.images.plugins.module_utils._module.snapshot.flow import snapshot_flow

ARGUMENTS = {
    **IMAGES_ARGUMENTS,
    **LINKS_ARGUMENT,
    **FORCE_SHARE_ARGUMENT,
    **LIMIT_ARGUMENT,
    **PROGRESS_ARGUMENT,
    "name": {"type": "str"},
    "snapshot_id": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent", "applied"], "default": "present"},
    "allow_resize": {"type": "bool", "default": False},
    "retention": {
        "type": "dict",
        "options": {
            "prefix": {"type": "str", "required": True},
            "keep": {"type": "int"},
            "max_age": {"type": "str"},
        },
        "required_one_of": [("keep", "max_age")],
    },
}


def main() -> t.NoReturn:
    module = ImageModule(
        argument_spec=ARGUMENTS,
        required_if=[("state", "present", ["name", "retention"], True)],
        required_one_of=[("name", "snapshot_id", "retention")],
        supports_check_mode=True,
    )
    run_module(module, snapshot_flow)


if __name__ == "__main__":
    main()
