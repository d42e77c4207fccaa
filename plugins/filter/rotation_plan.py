# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: rotation_plan
short_description: Decide what a rotation of dirty bitmaps has to do
version_added: 0.2.0
author:
  - The airlock.images authors (!UNKNOWN)
description:
  - From the bitmaps that the images of one group have, makes the list of tasks that the role
    P(airlock.images.bitmap_rotation#role) carries out, in their order. It reads and changes nothing itself.
  - Only bitmaps whose whole name has the form C(PREFIX-PERIOD-YYYYmmddTHHMMSSZ) are looked at.
positional: _input
options:
  _input:
    description: RV(airlock.images.qcow2_info#module:images) of the module M(airlock.images.qcow2_info).
    type: list
    elements: dict
    required: true
  prefix:
    description: What the names begin with.
    type: str
    required: true
  periods:
    description: As the role's variable O(airlock.images.bitmap_rotation#role:main:bitmap_rotation_periods).
    type: list
    elements: dict
    required: true
  time:
    description: What time it is, in UTC, as C(YYYYmmddTHHMMSSZ).
    type: str
    required: true
  granularity:
    description: What new bitmaps are to have. It is only looked at, so that a wrong one is known before the first step.
    type: str
    default: ""
    version_added: 0.3.0
seealso:
  - plugin: airlock.images.bitmap_rotation
    plugin_type: role
"""

EXAMPLES = r"""
- name: Read the disks
  airlock.images.qcow2_info:
    path: /var/lib/libvirt/images/web.qcow2
  register: web

- name: Show what a rotation would do
  ansible.builtin.debug:
    msg: >-
      {{ web.images | airlock.images.rotation_plan(prefix='rotation', time='20261121T030000Z',
      periods=[{'period': 'day', 'keep': 14}, {'period': 'week'}]) }}
"""

RETURN = r"""
_value:
  description: What there is to do.
  type: dict
  contains:
    rotates:
      description: Whether a new bitmap begins to record.
      type: bool
      sample: true
    steps:
      description: The tasks, in their order.
      type: list
      elements: dict
      contains:
        phase:
          description: V(repair), V(record), V(stop), V(merge) or V(prune).
          type: str
          sample: merge
        name:
          description: The bitmap that the task is about.
          type: str
          sample: rotation-week-20261116T000000Z
        new:
          description: Whether there is no such bitmap yet.
          type: bool
          sample: false
        merge:
          description: The bitmaps that are merged into it.
          type: list
          elements: str
          sample: [rotation-day-20261120T000000Z]
        paths:
          description: The images that it is done to.
          type: list
          elements: str
          sample: [/var/lib/libvirt/images/web.qcow2]
    disks:
      description: What there is then, for each image.
      type: list
      elements: dict
      contains:
        path:
          description: The image.
          type: str
          sample: /var/lib/libvirt/images/web.qcow2
        recording:
          description: The bitmap that records.
          type: str
          sample: rotation-day-20261121T000000Z
        anew:
          description: Whether nothing older is left, so that the next backup must be a full one.
          type: bool
          sample: false
        lost:
          description: The bitmaps that cannot be relied upon, or not any more, and are removed for this.
          type: list
          elements: str
          sample: []
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.airlock.images.plugins.plugin_utils import _rotation


def rotation_plan(
    images: t.Any, *, prefix: str, periods: t.Sequence[t.Mapping[str, t.Any]], time: str, granularity: str = ""
) -> dict[str, t.Any]:
    """See DOCUMENTATION."""
    try:
        return _rotation.plan(images, prefix, periods, time, granularity)
    except _rotation.RotationError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filters of this file, by name."""
        return {"rotation_plan": rotation_plan}
