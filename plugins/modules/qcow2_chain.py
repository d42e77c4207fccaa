#!/usr/bin/python
# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qcow2_chain
short_description: Say what the backing chain of an image shall be
version_added: 0.2.0
description:
  - Takes layers out of a backing chain, puts layers on top of it, moves images onto other backing files, and makes an
    image stand alone, while no virtual machine uses them.
  - The task names the layers that there shall be. What the layers that stay show is the same as before, at every
    moment, whatever fails. A task that was interrupted is run again.
  - The content of a layer that is no longer named goes into the layer below it (a commit), or into the one above it
    (a pull). What a layer below shows is another thing after a commit. A pull changes no layer but the one above, and
    not what that shows.
  - Everything is planned, and refused if need be, before the first byte is written.
  - This is C(qemu-img commit), C(qemu-img rebase) and C(qemu-img create) in one.
author:
  - The airlock.images authors (!UNKNOWN)
extends_documentation_fragment:
  - airlock.images._attributes
  - airlock.images._attributes.actiongroup
  - airlock.images._images.moves
  - airlock.images._images.progress
  - airlock.images._images.links
  - airlock.images._images.sandbox
attributes:
  check_mode:
    support: full
    details:
      - The images are opened for reading only. RV(plan) has each step with the bytes that it would write, which are
        counted, not estimated.
  diff_mode:
    support: full
    details:
      - The chain before and after, as C(base* <- a- <- top*) and C(base* <- top*). A C(*) is a file that is written to,
        a C(-) one that is no part of the chain any more, a C(+) one that is created.
  idempotent:
    support: full
options:
  layers:
    description:
      - The chain as it shall be, from the base to the top. Paths of image files and block devices.
      - Those that are not there are created as new overlays, the topmost ones only. They get clusters of 64 KiB, and
        the size of what they stand on.
      - A layer that the chain does not stand on yet becomes part of it. What is different there is pulled up.
      - Files are told apart by what they are, not by their names. Links and other spellings of a path do no harm.
    type: list
    elements: str
    required: true
  method:
    description:
      - Where the content of a layer that is no longer named goes.
      - With V(commit), into the layer below. Recording bitmaps of that layer note what is written. Bitmaps of the
        layers that go are not merged into it, for which there is M(airlock.images.qcow2_commit).
      - With V(pull), into the layer above, as far as the layer below shows something else.
      - With V(auto), whichever writes fewer bytes, a pull when they are equal, and a pull where a commit cannot be done
        because of O(siblings) or O(allow_resize), or a commit where a pull cannot be done because of O(compressed).
        RV(plan[].reason) says what decided.
    type: str
    choices:
      - auto
      - commit
      - pull
    default: auto
  flatten:
    description:
      - Whether the lowest of O(layers) shall stand on nothing. All that shows in it from below is pulled up into it.
        With one layer, that leaves one file.
      - Otherwise, a lowest layer that stands on a file is refused with RV(error_code=base_has_backing).
    type: bool
    default: false
  drop:
    description:
      - Whether the files of layers that are no longer named are removed when all is done. Only those that have stood
        between two that are named. An external data file stays.
      - A file with snapshots or bitmaps in it is not removed, the task fails with RV(error_code=drop_loses) instead.
      - Files that a task did not come to remove, because it was interrupted, are no part of the chain any more, and a
        second run does not know them.
    type: bool
    default: false
  compressed:
    description:
      - Whether what a layer gets by a pull is compressed, in the way that the layer's header says (zlib or zstd). It
        takes less room then, and more time, now and whenever it is read. A cluster that does not get smaller is stored
        as it is. What the layer holds already stays as it is as well.
      - A commit compresses nothing, and neither does a second run.
      - A layer with an external data file cannot have compressed clusters. A pull into it is refused with
        RV(error_code=compress_data_file), or with O(method=auto) gives way to a commit where that can be done.
    type: bool
    default: false
  allow_resize:
    description:
      - Whether a layer that is smaller than the one that is committed to it grows. Otherwise a commit there is refused
        with RV(error_code=base_resize).
    type: bool
    default: false
  siblings:
    description:
      - Other overlays that stand on files of this chain, qcow2 or vmdk images. Only their headers are looked at, so
        that they may be in use. Files of the chain itself may be named as well, and are passed over.
      - A commit into what they stand on, and removing it, is refused with RV(error_code=has_siblings). With
        O(method=auto), a commit gives way to a pull then.
    type: list
    elements: str
    default: []
  scan:
    description:
      - Whether siblings are looked for, in the directories of the layers and in O(allowed_roots), with all below. Each
        file there is looked at in guests, which takes some milliseconds.
      - Qcow2 and vmdk images are found. What is neither is passed over.
      - The task warns of images whose backing files are in places where no name may lead, and of those that are qcow2
        or vmdk images but could not be read, such as vmdk images in several files. They are no obstacle.
      - While there are files that cannot be opened, or directories that cannot be listed, nothing is committed and
        nothing removed. The task fails with RV(error_code=siblings_unknown), or with O(method=auto) pulls.
    type: bool
    default: false
  mode:
    description:
      - The permission bits of overlays that are created, as an octal number such as V('0640'), quoted, or with a
        leading zero. The umask has no say in them.
      - Without it, those of the layer below, with its ACL, but without the right to execute.
    type: raw
    version_added: 0.3.0
  owner:
    description:
      - The user who will own overlays that are created, by name or number.
      - Without it, the owner of the layer below, or who runs the module where that may not give files away.
    type: str
    version_added: 0.3.0
  group:
    description:
      - The group that will own overlays that are created, by name or number.
      - Without it, the group of the layer below. Where the module may not set that, the group gets no rights.
    type: str
    version_added: 0.3.0
  backing_format:
    description:
      - The format of backing files where the image that names one does not record it, and of the lowest of O(layers)
        when the chain does not stand on it yet. Formats are never guessed.
    type: str
    choices:
      - qcow2
      - raw
      - vmdk
  allowed_roots:
    description:
      - Directories, files and block devices to which names in the images of the chain may lead, besides the directory
        of the image that has the name. What is below a directory is allowed with it.
      - What the task would have recorded must be allowed as well, or the next run could not open it.
    type: list
    elements: str
    default: []
notes:
  - The locks are held from the first look to the end. A chain that a virtual machine uses is refused.
  - What a layer in the middle of several that are committed together shows is another thing afterwards. Its file stays
    unless O(drop=true), and is of no use any more.
seealso:
  - module: airlock.images.qcow2_commit
  - module: airlock.images.qcow2_info
"""

EXAMPLES = r"""
- name: Take last week's layer out of the chain, and its file away
  airlock.images.qcow2_chain:
    layers:
      - /var/lib/libvirt/images/web.base.qcow2
      - /var/lib/libvirt/images/web.qcow2
    drop: true

- name: See first what that would do
  airlock.images.qcow2_chain:
    layers:
      - /var/lib/libvirt/images/web.base.qcow2
      - /var/lib/libvirt/images/web.qcow2
    drop: true
  check_mode: true
  diff: true
  register: web

- name: Put a new layer on top of a template that others stand on as well
  airlock.images.qcow2_chain:
    layers:
      - /srv/templates/debian.qcow2
      - /var/lib/libvirt/images/web.qcow2
    allowed_roots:
      - /srv/templates

- name: Move a machine to a new release of its template, without a change to what it sees
  airlock.images.qcow2_chain:
    layers:
      - /srv/templates/debian-13.1.qcow2
      - /var/lib/libvirt/images/web.qcow2
    backing_format: qcow2
    allowed_roots:
      - /srv/templates

- name: Make an image independent of its template
  airlock.images.qcow2_chain:
    layers:
      - /var/lib/libvirt/images/web.qcow2
    flatten: true
    allowed_roots:
      - /srv/templates

- name: Make a template of a chain, in one small file
  airlock.images.qcow2_chain:
    layers:
      - /srv/templates/web.qcow2
    flatten: true
    compressed: true

- name: Make an image independent of its template, for hours if need be, at most 50 MiB a second
  airlock.images.qcow2_chain:
    layers:
      - /var/lib/libvirt/images/db.qcow2
    flatten: true
    rate_limit: 50M
    progress_file: /run/db-chain.json
  async: 86400
  poll: 0

- name: Commit into a base only if nobody else stands on it
  airlock.images.qcow2_chain:
    layers:
      - /var/lib/libvirt/images/web.base.qcow2
      - /var/lib/libvirt/images/web.qcow2
    method: commit
    scan: true
"""

RETURN = r"""
plan:
  description:
    - What was done, step by step. In check mode, what would be.
    - Empty when the chain was already as it shall be.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description:
        - V(commit) when the layers in C(gone) went into C(onto), and C(layer) was put on that.
        - V(pull) when they went into C(layer).
        - V(rebase) when C(layer) was put on a file that the chain did not have.
        - V(detach) when C(layer) stands on nothing now.
        - V(create) for a new overlay, V(remove) for a file that was removed.
      type: str
      returned: success
      sample: pull
    layer:
      description: The image that the step is about.
      type: str
      returned: success
      sample: /var/lib/libvirt/images/web.qcow2
    onto:
      description: What it stands on afterwards. V(null) for nothing.
      type: str
      returned: success
      sample: /var/lib/libvirt/images/web.base.qcow2
    gone:
      description: The layers that are no part of the chain any more.
      type: list
      elements: str
      returned: success
      sample:
        - /var/lib/libvirt/images/web.monday.qcow2
    bytes:
      description:
        - How many bytes of the disk are written, as counted before. Zeros that take no room are not among them.
      type: int
      returned: success
      sample: 1048576
    reason:
      description: What decided for this action. V(null) for V(create) and V(remove).
      type: str
      returned: success
      sample: pulling up writes 1048576 bytes, a commit 7340032
chain:
  description: The layers from the top to the base, as they are now. In check mode, as they would be.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: The image file, as the names in the images lead to it.
      type: str
      returned: success
      sample: /var/lib/libvirt/images/web.qcow2
    format:
      description: V(qcow2), V(raw) or V(vmdk).
      type: str
      returned: success
      sample: qcow2
    depth:
      description: V(0) for the top.
      type: int
      returned: success
      sample: 0
    virtual_size:
      description: The size of the disk in bytes.
      type: int
      returned: success
      sample: 10737418240
    file_size:
      description: The length of the file in bytes. V(null) in check mode for one that would be created.
      type: int
      returned: success
      sample: 1638400
    backing_file:
      description: The name of the backing file as it stands in the image. V(null) when there is none.
      type: str
      returned: success
      sample: web.base.qcow2
    backing_format:
      description: The format recorded for it. V(null) when there is none.
      type: str
      returned: success
      sample: qcow2
    data_file:
      description: The external data file. V(null) when there is none.
      type: str
      returned: success
      sample: null
chain_drawing:
  description: The chain in one line, the base first.
  returned: success
  type: str
  sample: web.base.qcow2 <- web.qcow2
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
      sample: 42
    memory:
      description: Bytes that the largest guest might have used.
      type: int
      returned: success
      sample: 134217728
    milliseconds:
      description: How long all guests of the task took, from fork to exit.
      type: float
      returned: success
      sample: 61.25
error_code:
  description:
    - Which kind of failure it was. The codes are stable, the words of RV(ignore:msg) are not.
    - The options (V(no_layers), V(bad_timeout), V(bad_memory_limit), V(bad_rate_limit), V(bad_progress_file),
      V(duplicate_path), V(layer_not_found), V(bad_allowed_root), V(backing_format_missing), V(backing_name_ambiguous),
      V(backing_name_long)).
    - The chain (V(base_has_backing), V(has_siblings), V(siblings_unknown), V(base_resize), V(backing_loop),
      V(backing_name_room), V(backing_raw_data), V(compress_data_file), V(drop_loses), V(drop_block_device),
      V(overlay_replaced), V(too_many_files), and those of the policy for names, such as V(backing_outside),
      V(backing_protocol), V(backing_not_found), V(chain_too_deep)).
    - The host (V(no_kvm), V(kvm_permission), V(kvm), V(no_cffi), V(host), V(jail)).
    - This collection (V(internal_error)).
    - The files (V(not_found), V(exists), V(is_directory), V(not_regular), V(permission_denied), V(read_only),
      V(in_use), V(open_failed), V(no_space), V(read_failed), V(write_failed)).
    - The images (V(not_qcow2), V(not_vmdk), V(truncated), V(incompatible_features), V(dirty), V(corrupt),
      V(refcount_too_low), V(overlap), V(outside_file), V(encrypted), V(compressed_cluster), and more of that kind).
    - The guest (V(time_limit), V(budget), V(guest_crash), V(guest_protocol), V(no_memory)).
  returned: failure
  type: str
  sample: has_siblings
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
from ansible_collections.airlock.images.plugins.module_utils._module.chain.flow import chain_flow
from ansible_collections.airlock.images.plugins.module_utils._module.image_module import ImageModule
from ansible_collections.airlock.images.plugins.module_utils._module.outcome import run_module

ARGUMENTS = {
    "layers": {"type": "list", "elements": "str", "required": True},
    "method": {"type": "str", "choices": ["auto", "commit", "pull"], "default": "auto"},
    "flatten": {"type": "bool", "default": False},
    "drop": {"type": "bool", "default": False},
    "compressed": {"type": "bool", "default": False},
    "allow_resize": {"type": "bool", "default": False},
    "siblings": {"type": "list", "elements": "str", "default": []},
    "scan": {"type": "bool", "default": False},
    "mode": {"type": "raw"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    **CHAIN_ARGUMENTS,
    **LINKS_ARGUMENT,
    **MOVES_ARGUMENTS,
}


def main() -> t.NoReturn:
    module = ImageModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    run_module(module, chain_flow)


if __name__ == "__main__":
    main()
