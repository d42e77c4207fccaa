#!/usr/bin/python
# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qcow2_bitmap
short_description: Add, merge, clear and remove persistent dirty bitmaps of qcow2 images
version_added: 0.2.0
description:
  - Manages the bitmaps that incremental backups live on, as C(qemu-img bitmap) does. A bitmap that records notes which
    parts of the disk a virtual machine writes to.
  - A task is about one bitmap. What it asks for is done at once or not at all. A crash in the middle leaves the old
    bitmaps or the new ones. C(qemu-img) keeps the first half of a list that fails.
  - Before anything is written, every reference in the image is counted and compared with the refcounts. An image that
    contradicts itself is refused and left as it is. Clusters that are merely leaked are reported and left alone.
  - Bitmaps, snapshots and data that the task does not name stay where they are. The backing file of an image is not
    opened, it is not needed for this.
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
      - The image is opened for reading only, so that a file which may not be written will do. What would be dirty is
        computed in memory, the prediction has the exact count of bytes.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - A virtual machine that writes to the disk between two runs makes new parts dirty. A task with O(cleared=true)
        then has something to do again.
options:
  name:
    description:
      - The name of the bitmap. At most 1023 bytes. A new one must not contain control characters.
      - Names are compared exactly.
      - Required, but for O(damaged=true).
    type: str
  state:
    description:
      - With V(present), there is a bitmap of this name afterwards, as the other options say. What they do not say stays
        as it is.
      - With V(absent), the bitmap is removed, unless there is none. This is also the way to get rid of a bitmap that is
        inconsistent, and of several that have the same name.
      - With V(absent), O(granularity), O(enabled) and O(recreate) have no meaning, and O(cleared) and O(merge) are
        refused.
      - A bitmap is stale when a program that does not know bitmaps has written to the image since. For V(present) it
        counts as not there. It goes, like all bitmaps that are stale, with the next change of the image's bitmaps.
    type: str
    choices:
      - present
      - absent
    default: present
  damaged:
    description:
      - With O(state=absent) and without O(name), remove all bitmaps of the image that are damaged. Where their
        directory cannot be read, that is all of them. Disk, snapshots and sound bitmaps stay as they are.
      - A bitmap is damaged when its entry, its table or the places of its bits contradict the format, or lie where
        other things do. Such an image can be read, and RV(images[].damage) says what is wrong; everything that changes
        it is refused with RV(error_code=bitmaps_extension) or as an image that contradicts itself.
      - What nothing refers to any more afterwards is given back, unless the header has an extension that is not known
        here.
      - Bitmaps that are inconsistent, because they are in use or stale, are not damaged. They are removed by their
        names.
    type: bool
    default: false
    version_added: 0.3.0
  granularity:
    description:
      - How much of the disk a bit of the bitmap stands for. A power of two from 512 bytes to 2 GiB, as a number of
        bytes, or with one of the suffixes V(k), V(K), V(KiB), V(M), V(MiB), V(G) or V(GiB), which are powers of 1024.
      - Without it, a new bitmap gets what C(qemu-img) takes. This is the size of a cluster, but at least 4 KiB and at
        most 64 KiB.
      - The granularity of a bitmap cannot be changed. One that has another granularity is refused with
        RV(error_code=bitmap_other_granularity), unless O(recreate=true).
    type: str
  recreate:
    description:
      - Whether a bitmap that cannot be what the task asks for is removed and made anew. That is one with another
        granularity, one that is inconsistent because it was in use when it was left, and several of one name.
      - The new bitmap is empty, so that the next backup must be a full one. It records, unless O(enabled=false). It has
        the granularity of the old one, unless O(granularity) is given.
      - A bitmap that is as it should be is never made anew.
    type: bool
    default: false
  enabled:
    description:
      - Whether the bitmap records what virtual machines write.
      - Without it, a bitmap that exists is left as it is, and a new one records.
    type: bool
  cleared:
    description:
      - Whether the bitmap is emptied. Bitmaps of O(merge) are merged into it afterwards, so that it then holds exactly
        what these hold.
    type: bool
    default: false
  merge:
    description:
      - Bitmaps that are merged into this one. What is dirty in any of them is dirty in this one afterwards. They stay
        as they are.
      - Each is either a name, for a bitmap of the image itself, or a dictionary with the keys below.
      - "C(name): the name of the bitmap, required."
      - "C(path): the image that it is in. Without it, that is the image itself. Any other image with a disk of the
        same size will do. It is opened for reading only, and locked as QEMU locks it. With several images in O(path),
        each of them gets the same bitmap merged."
      - "C(format): the format of that image. Only V(qcow2), which is the default. A format is never guessed."
      - "C(ignore_missing): whether the bitmap is left out when that image has none of this name, V(false) by default.
        With V(true), a rotation that was interrupted after it had removed the bitmap can be run again."
      - The granularities may differ. A bit of a coarser bitmap is set when any part of what it stands for is dirty, and
        all bits of a finer one are set that lie in what is dirty.
      - The bitmap itself may be among them, which does nothing.
    type: list
    elements: raw
    default: []
  force_share:
    description:
      - Look at an image even though another process has it open for writing. What is found there may be out of date
        in the next moment, and bitmaps that a virtual machine has loaded are in use, and therefore inconsistent, in the
        file.
      - Only in check mode, since nothing is written there. Otherwise the task fails.
    type: bool
    default: false
seealso:
  - module: airlock.images.qcow2_info
  - module: airlock.images.qcow2_snapshot
"""

EXAMPLES = r"""
- name: Note from now on what changes
  airlock.images.qcow2_bitmap:
    path: /var/lib/libvirt/images/web.qcow2
    name: backup
    granularity: 64k

- name: The same for all disks of a machine, or for none of them
  airlock.images.qcow2_bitmap:
    path:
      - /var/lib/libvirt/images/db-system.qcow2
      - /var/lib/libvirt/images/db-data.qcow2
    name: backup

- name: Whatever an interrupted backup has left, have a bitmap that works
  airlock.images.qcow2_bitmap:
    path: /var/lib/libvirt/images/web.qcow2
    name: backup
    granularity: 64k
    enabled: true
    recreate: true
  register: backup

- name: Freeze a bitmap, to back up what is dirty in it
  airlock.images.qcow2_bitmap:
    path: /var/lib/libvirt/images/web.qcow2
    name: monday
    enabled: false

- name: Collect the days in the bitmap of the week
  airlock.images.qcow2_bitmap:
    path: /var/lib/libvirt/images/web.qcow2
    name: week
    enabled: false
    merge:
      - monday
      - tuesday

- name: Take over what is dirty in the overlay, before it is committed
  airlock.images.qcow2_bitmap:
    path: /var/lib/libvirt/images/base.qcow2
    name: backup
    merge:
      - name: backup
        path: /var/lib/libvirt/images/overlay.qcow2

- name: See how much the next incremental backup would copy
  airlock.images.qcow2_bitmap:
    path: /var/lib/libvirt/images/web.qcow2
    name: week
    cleared: true
    merge:
      - monday
      - tuesday
  check_mode: true
  register: week

- name: Show that
  ansible.builtin.debug:
    msg: "{{ week.bitmap.dirty_bytes | human_readable }}"

- name: Start again after a backup
  airlock.images.qcow2_bitmap:
    path: /var/lib/libvirt/images/web.qcow2
    name: backup
    cleared: true

- name: Make an image usable again whose bitmaps a crash of the storage has damaged
  airlock.images.qcow2_bitmap:
    path: /var/lib/libvirt/images/web.qcow2
    state: absent
    damaged: true

- name: Remove a bitmap, also an inconsistent one
  airlock.images.qcow2_bitmap:
    path: /var/lib/libvirt/images/web.qcow2
    name: monday
    state: absent
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
    bitmap:
      description: The bitmap that the task is about, in the form of RV(bitmap).
      type: dict
      returned: success
      sample: null
    bitmaps:
      description: The bitmaps, in the form of RV(bitmaps), the last ones where there are too many.
      type: list
      elements: dict
      returned: success
      sample: []
    damage:
      description: What was wrong with the bitmaps of the image, before the task. Null when nothing was found.
      type: str
      sample: Bitmap 'monday' doesn't satisfy the constraints
      version_added: 0.3.0
    bitmap_count:
      description: How many bitmaps there are.
      type: int
      returned: success
      sample: 0
    truncated:
      description: Whether bitmaps of the image were left out, see O(limit).
      type: bool
      returned: success
      version_added: 0.3.0
      sample: false
    leaked_clusters:
      description:
        - How many clusters the refcounts call used although nothing refers to them. A warning tells of them, too.
        - V(null) when nothing was changed, since they are counted before a change only.
      type: int
      returned: success
      sample: 0
truncated:
  description:
    - Whether bitmaps of any image were left out, see O(limit).
    - RV(bitmaps) is not there then, RV(images) has what is returned.
  returned: success
  type: bool
  version_added: 0.3.0
  sample: false
bitmap:
  description:
    - The bitmap that the task is about, as it is now, in the form of RV(bitmaps). In check mode, as it would be.
    - V(null) when there is none.
  returned: success, when O(path) is one image
  type: dict
  sample:
    name: backup
    granularity: 65536
    recording: true
    in_use: false
    stale: false
    inconsistent: false
    dirty_bytes: 131072
    dirty_count: 2
bitmaps:
  description:
    - The bitmaps that the image has now, in the order of its directory. In check mode, those that it would have.
    - Bytes of a name that are no UTF-8 and characters that cannot be printed are replaced by U+FFFD.
  returned: success, when O(path) is one image and nothing was left out
  type: list
  elements: dict
  contains:
    name:
      description: The name.
      type: str
      returned: success
      sample: backup
    granularity:
      description: How many bytes of the disk a bit stands for.
      type: int
      returned: success
      sample: 65536
    recording:
      description: Whether it notes what virtual machines write.
      type: bool
      returned: success
      sample: true
    in_use:
      description:
        - Whether it was opened and not stored since, by a process that has ended, or that has the image open still.
      type: bool
      returned: success
      sample: false
    stale:
      description: Whether a program that does not know bitmaps has written to the image since.
      type: bool
      returned: success
      sample: false
    inconsistent:
      description:
        - Whether what it says is not to be relied upon, because it is in use or stale. It can only be removed.
      type: bool
      returned: success
      sample: false
    dirty_bytes:
      description: How many bytes of the disk are dirty. V(null) when it is inconsistent.
      type: int
      returned: success
      sample: 131072
    dirty_count:
      description: How many of its bits are set. V(null) when it is inconsistent.
      type: int
      returned: success
      sample: 2
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
      V(name_too_long), V(control_character), V(damaged_alone), V(bad_granularity), V(bad_merge), V(only_with_present),
      V(bitmap_source_same), V(too_many_actions), V(too_many_sources), V(bad_limit), V(bad_progress_file),
      V(force_share)).
    - The host (V(no_kvm), V(kvm_permission), V(kvm), V(no_cffi), V(host), V(jail)).
    - This collection (V(internal_error)). What was done to a group of images is undone then as on any failure.
    - The file (V(not_found), V(is_directory), V(not_regular), V(permission_denied), V(read_only), V(in_use),
      V(open_failed), V(no_space), V(no_journal), V(read_failed), V(write_failed), V(transaction),
      V(terminated)).
    - The image (V(not_qcow2), V(truncated), V(incompatible_features), V(dirty), V(corrupt), V(refcount_too_low),
      V(overlap), V(outside_file), V(copied_flag), V(bitmaps_extension), and more of that kind).
    - The bitmap (V(bitmap_other_granularity), V(bitmap_inconsistent), V(bitmap_ambiguous), V(bitmap_not_found) for one
      that is to be merged, V(bitmap_sizes), V(bitmap_too_large), V(bitmap_version_2), V(bitmap_empty_disk)).
    - The room for bitmaps (V(too_many_bitmaps), V(bitmap_directory_full), V(bitmap_header_full), V(bitmaps_overlap)).
    - The guest (V(time_limit), V(time_too_short), V(budget), V(guest_crash), V(guest_protocol), V(no_memory)).
  returned: failure
  type: str
  sample: bitmap_inconsistent
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
from ansible_collections.airlock.images.plugins.module_utils._module.bitmap.flow import bitmap_flow
from ansible_collections.airlock.images.plugins.module_utils._module.image_module import ImageModule
from ansible_collections.airlock.images.plugins.module_utils._module.outcome import run_module

ARGUMENTS = {
    **IMAGES_ARGUMENTS,
    **LINKS_ARGUMENT,
    **FORCE_SHARE_ARGUMENT,
    **LIMIT_ARGUMENT,
    **PROGRESS_ARGUMENT,
    "name": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "damaged": {"type": "bool", "default": False},
    "granularity": {"type": "str"},
    "recreate": {"type": "bool", "default": False},
    "enabled": {"type": "bool"},
    "cleared": {"type": "bool", "default": False},
    "merge": {"type": "list", "elements": "raw", "default": []},
}


def main() -> t.NoReturn:
    module = ImageModule(argument_spec=ARGUMENTS, required_if=[("damaged", False, ("name",))], supports_check_mode=True)
    run_module(module, bitmap_flow)


if __name__ == "__main__":
    main()
