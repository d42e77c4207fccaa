#!/usr/bin/python
# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qcow2_commit
short_description: Commit an overlay into its base
version_added: 0.2.0
description:
  - Writes what an overlay holds into the image that it stands on, as C(qemu-img commit) does, while no virtual machine
    uses them.
  - The base can be qcow2 or raw, a file or a block device, or vmdk in one file (monolithicSparse), which cannot grow.
    The layers can differ in cluster size, refcount width, compression and version, and can have snapshots and external
    data files.
  - Until the base is complete, the layers above it stay as they are. What the overlay shows is the same at every
    moment, whatever fails. An interrupted commit is run again.
  - The base is not the same afterwards. Other overlays that stand on it, or on a layer between it and the overlay, show
    something else then, and are of no use any more.
  - Data does not pass through the guest that reads the images. The kernel copies it from file to file, and shares it
    instead where the file system can.
author:
  - The airlock.images authors (!UNKNOWN)
extends_documentation_fragment:
  - airlock.images._attributes
  - airlock.images._attributes.actiongroup
  - airlock.images._images.chain
  - airlock.images._images.moves
  - airlock.images._images.progress
  - airlock.images._images.links
  - airlock.images._images.sandbox
attributes:
  check_mode:
    support: full
    details:
      - The images are opened for reading only. Clusters and bytes are counted, not estimated.
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - An overlay that holds nothing is not touched, nor is its base.
      - With a O(base) that is further down, no layer can be emptied, so that every run commits again, unless
        O(drop=true). Of vmdk layers alone the content ids tell whether the base has it all.
options:
  path:
    description:
      - The overlay. A regular file or a block device.
    type: str
    required: true
  format:
    description:
      - The format of the overlay. Formats are never guessed.
      - With V(vmdk), it keeps what it holds, as with C(qemu-img commit), but goes on to show the same.
    type: str
    choices:
      - qcow2
      - vmdk
    default: qcow2
  base:
    description:
      - The layer of the chain that the overlay is committed to, with what all layers between them hold. These and the
        overlay stay as they are.
      - A relative name is looked for in the directory of each layer that stands on another, as C(qemu-img commit -b)
        does.
      - Without it, that is the layer below the overlay.
    type: str
  drop:
    description:
      - Whether the file of the overlay is removed when all is done. An external data file of it stays, and so do layers
        between it and O(base), which are of no use any more.
      - An overlay with snapshots is not removed, the task fails with RV(error_code=drop_loses) instead, for a commit
        takes nothing of them along.
      - An overlay that is not there is taken for one that an earlier run has removed, if its directory is there. Where
        O(path) is a link, it stays.
      - C(qemu-img commit -d) is something else. It leaves the overlay as it is.
    type: bool
    default: false
  allow_resize:
    description:
      - Whether a base that is smaller than the overlay grows. Otherwise the task fails with
        RV(error_code=base_resize).
      - A base that is larger stays as large as it is. A block device cannot grow.
    type: bool
    default: false
  bitmaps:
    description:
      - What becomes of persistent bitmaps that the overlay, or a layer between it and the base, has. They say what has
        changed in that layer, so that the backup that they are for would not find it after a commit.
      - With V(refuse), the task fails with RV(error_code=has_bitmaps) when there are any.
      - With V(drop), they are removed from all these layers after the commit.
      - With V(merge), for each name the union over these layers is merged into the base's bitmap of that name, which is
        added when there is none, and records if the overlay's does. They stay in the layers as well. Where a layer
        above one that has a bitmap lacks it, or has one that does not record or is of another granularity, together
        they do not tell all that was written, and the task fails with RV(error_code=bitmap_chain_broken).
      - An overlay that holds nothing but bitmaps is left as it is, unless O(drop=true), which would lose them. This
        option is obeyed then as well.
      - Bitmaps of the base that are recording note what the commit writes, in any case. When the task is interrupted in
        the middle of that, they are inconsistent afterwards, as after a crash of a virtual machine.
    type: str
    choices:
      - refuse
      - drop
      - merge
    default: refuse
seealso:
  - module: airlock.images.qcow2_info
  - module: airlock.images.qcow2_bitmap
"""

EXAMPLES = r"""
- name: Merge the overlay into the image below it
  airlock.images.qcow2_commit:
    path: /var/lib/libvirt/images/web.overlay.qcow2

- name: Merge it, and remove the file
  airlock.images.qcow2_commit:
    path: /var/lib/libvirt/images/web.overlay.qcow2
    drop: true

- name: Merge all layers into the one at the bottom, which is kept elsewhere
  airlock.images.qcow2_commit:
    path: /var/lib/libvirt/images/web.monday.qcow2
    base: /srv/templates/web.qcow2
    allowed_roots:
      - /srv/templates

- name: Take over the bitmaps of a backup with the data
  airlock.images.qcow2_commit:
    path: /var/lib/libvirt/images/db.overlay.qcow2
    bitmaps: merge

- name: See how much there is to commit
  airlock.images.qcow2_commit:
    path: /var/lib/libvirt/images/db.overlay.qcow2
    allow_resize: true
  check_mode: true
  register: db

- name: Show that
  ansible.builtin.debug:
    msg: "{{ db.bytes_committed | human_readable }} go into {{ db.base }}"

- name: Commit for hours, at most 50 MiB a second
  airlock.images.qcow2_commit:
    path: /var/lib/libvirt/images/db.overlay.qcow2
    rate_limit: 50M
    progress_file: /run/db-commit.json
  async: 86400
  poll: 0
"""

RETURN = r"""
overlay:
  description: The overlay, as O(path) has it.
  returned: success
  type: str
  sample: /var/lib/libvirt/images/web.overlay.qcow2
overlay_format:
  description: The format of the overlay. V(null) when it is not there any more.
  returned: success
  type: str
  sample: qcow2
base:
  description:
    - The image that the overlay was, or would be, committed to. The name combined with the directory of the image that
      names it. V(null) when the overlay is not there any more.
  returned: success
  type: str
  sample: /var/lib/libvirt/images/web.qcow2
base_format:
  description: The format of that image, V(qcow2), V(raw) or V(vmdk). V(null) when the overlay is not there any more.
  returned: success
  type: str
  sample: qcow2
bytes_committed:
  description:
    - How many bytes of the disk were written to the base. In check mode, how many would be.
    - That is counted in chunks of one cluster of the base, but at least 4 KiB and at most 64 KiB.
  returned: success
  type: int
  sample: 131072
bytes_zeroed:
  description: How many bytes of the disk were made zeros in the base, without writing them.
  returned: success
  type: int
  sample: 0
clusters_committed:
  description: How many clusters of the base that is together, or how many times 64 KiB of a raw base.
  returned: success
  type: int
  sample: 2
overlay_clusters_cleared:
  description: How many clusters the overlay held, before it was emptied. 0 when it was not to be emptied.
  returned: success
  type: int
  sample: 2
base_resized:
  description: Whether the base has grown.
  returned: success
  type: bool
  sample: false
bitmaps:
  description:
    - The names of the bitmaps that O(bitmaps) was about, the first 300 of them. Characters that cannot be printed are
      replaced by U+FFFD.
  returned: success
  type: list
  elements: str
  sample: []
bitmap_count:
  description: How many they are.
  returned: success
  type: int
  version_added: 0.3.0
  sample: 0
dropped:
  description: Whether the overlay is not there any more. In check mode, whether it would not be.
  returned: success
  type: bool
  sample: false
chain:
  description:
    - The layers of the chain as they are now, from the overlay to the lowest. In check mode, as they would be, except
      for RV(chain[].file_size).
    - Bytes of names that are no UTF-8 and characters that cannot be printed are replaced by U+FFFD.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: The file, its name combined with the directory of the image that names it.
      type: str
      returned: success
      sample: /var/lib/libvirt/images/web.qcow2
    format:
      description: The format, V(qcow2), V(raw) or V(vmdk).
      type: str
      returned: success
      sample: qcow2
    depth:
      description: How many layers are above it.
      type: int
      returned: success
      sample: 1
    virtual_size:
      description: The size of the disk in bytes.
      type: int
      returned: success
      sample: 10737418240
    file_size:
      description: The length of the file in bytes, holes included.
      type: int
      returned: success
      sample: 393216
    backing_file:
      description: The name of the backing file, as it stands in the image. V(null) in the lowest layer.
      type: str
      returned: success
      sample: null
    backing_format:
      description: The format of the backing file, as it stands in the image. V(null) when it is not recorded.
      type: str
      returned: success
      sample: null
    data_file:
      description: The external data file, combined like RV(chain[].path). V(null) without one.
      type: str
      returned: success
      sample: null
chain_drawing:
  description:
    - The chain in one line, the lowest layer first. Names of files; whole paths where two layers have the same name.
  returned: success
  type: str
  sample: web.qcow2 <- web.overlay.qcow2
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
      sample: 31
    memory:
      description: Bytes that the largest guest might have used.
      type: int
      returned: success
      sample: 134217728
    milliseconds:
      description: How long all guests of the task took, from fork to exit.
      type: float
      returned: success
      sample: 25.71
error_code:
  description:
    - Which kind of failure it was. The codes are stable, the words of RV(ignore:msg) are not.
    - The options (V(base_not_found), V(no_backing_file), V(bad_rate_limit), V(bad_progress_file), V(bad_timeout),
      V(bad_memory_limit), V(bad_allowed_root), V(drop_block_device), V(drop_loses), V(overlay_replaced)).
    - The host (V(no_kvm), V(kvm_permission), V(kvm), V(no_cffi), V(host), V(jail)).
    - This collection (V(internal_error)).
    - The file (V(not_found), V(is_directory), V(not_regular), V(permission_denied), V(read_only), V(in_use),
      V(open_failed), V(no_space), V(read_failed), V(write_failed)).
    - The chain (V(backing_absolute), V(backing_outside), V(backing_symlink), V(backing_not_found), V(backing_protocol),
      V(backing_loop), V(backing_format_missing), V(backing_format_unknown), V(chain_too_deep), V(too_many_files), and
      more of that kind, also with C(data_file) in the place of C(backing)).
    - The images (V(not_qcow2), V(truncated), V(incompatible_features), V(dirty), V(corrupt), V(encrypted),
      V(compressed_cluster), V(base_resize), V(base_resize_v2), V(base_device_small), V(refcount_too_low), V(overlap),
      V(outside_file), V(copied_flag), and more of that kind).
    - The bitmaps (V(has_bitmaps), V(base_without_bitmaps), V(bitmap_chain_broken), V(bitmap_inconsistent),
      V(bitmap_sizes), V(bitmap_version_2), and more of that kind).
    - The guest (V(time_limit), V(budget), V(guest_crash), V(guest_protocol), V(no_memory)).
  returned: failure
  type: str
  sample: base_resize
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
    CHAIN_ARGUMENTS,
    LINKS_ARGUMENT,
    MOVES_ARGUMENTS,
)
from ansible_collections.airlock.images.plugins.module_utils._module.commit.flow import commit_flow
from ansible_collections.airlock.images.plugins.module_utils._module.image_module import ImageModule
from ansible_collections.airlock.images.plugins.module_utils._module.outcome import run_module

ARGUMENTS = {
    "path": {"type": "str", "required": True},
    "format": {"type": "str", "choices": ["qcow2", "vmdk"], "default": "qcow2"},
    "base": {"type": "str"},
    "drop": {"type": "bool", "default": False},
    "allow_resize": {"type": "bool", "default": False},
    "bitmaps": {"type": "str", "choices": ["refuse", "drop", "merge"], "default": "refuse"},
    **CHAIN_ARGUMENTS,
    **LINKS_ARGUMENT,
    **MOVES_ARGUMENTS,
}


def main() -> t.NoReturn:
    module = ImageModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    run_module(module, commit_flow)


if __name__ == "__main__":
    main()
