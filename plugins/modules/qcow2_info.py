#!/usr/bin/python
# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: qcow2_info
short_description: Read the format facts, the snapshots and the bitmaps of qcow2 images, and the chains they stand on
version_added: 0.1.0
description:
  - Reads what a qcow2 image says about itself, its internal snapshots and its persistent dirty bitmaps. Nothing is
    written.
  - Reads vmdk images as well, with O(format=vmdk).
  - Tells the dirty ranges of one bitmap, which is what an incremental backup has to copy.
  - Names of other files that stand in an image are returned as text. Those files are not opened, unless O(chain) asks
    for it.
author:
  - The airlock.images authors (!UNKNOWN)
extends_documentation_fragment:
  - airlock.images._attributes
  - airlock.images._attributes.actiongroup
  - airlock.images._attributes.info_module
  - airlock.images._images
  - airlock.images._images.limited
  - airlock.images._images.chain
  - airlock.images._images.links
  - airlock.images._images.sandbox
options:
  fail_on:
    description:
      - When the task fails, with V(any) if any image could not be read, with V(all) if none could, with V(none) never
        for that reason. Wrong options always make it fail.
      - In any case, RV(images) has the facts of those that could be read, and the reason for each of the others.
    type: str
    choices: [any, all, none]
    default: any
    version_added: 0.3.0
  format:
    description:
      - The format of the images of O(path). Formats are never guessed.
      - With V(vmdk), images of one file are read (monolithicSparse). They have neither snapshots nor bitmaps.
    type: str
    choices: [qcow2, vmdk]
    default: qcow2
    version_added: 0.3.0
  force_share:
    description:
      - Read an image even though another process has it open for writing. What is found there may be out of date in
        the next moment.
    type: bool
    default: false
  dirty_extents:
    description:
      - Whether to tell the dirty ranges of O(bitmap) too.
    type: bool
    default: false
    version_added: 0.2.0
  bitmap:
    description:
      - The name of the bitmap whose dirty ranges are told. Each image of O(path) must have it.
      - Required with O(dirty_extents=true), of no meaning without it.
    type: str
    version_added: 0.2.0
  extents_start:
    description:
      - Where on the disk to begin, in bytes. A range that ends before this is left out.
      - To go on, give what RV(extents_next) says.
    type: int
    default: 0
    version_added: 0.2.0
  extents_limit:
    description:
      - How many ranges are told at most for an image, up to 1048576.
    type: int
    default: 10000
    version_added: 0.2.0
  chain:
    description:
      - Whether to open the images that each image of O(path) stands on, too, and tell them in RV(chain).
      - A name that stands in an image is judged before anything is opened for it. It must lead to a file in the
        directory of that image or below, or into one of O(allowed_roots); symbolic links on the way must, too.
        Protocols, URLs, FIFOs, devices that are not named in O(allowed_roots), chains that return to themselves, and
        chains of more than 64 layers are refused.
      - O(allowed_roots) and O(backing_format) are for this, and of no meaning without.
    type: bool
    default: false
    version_added: 0.2.0
seealso:
  - module: airlock.images.qcow2_bitmap
  - module: airlock.images.qcow2_snapshot
"""

EXAMPLES = r"""
- name: Read an image
  airlock.images.qcow2_info:
    path: /var/lib/libvirt/images/web.qcow2
  register: web

- name: Refuse images that were not closed
  ansible.builtin.assert:
    that: not web.images[0].dirty

- name: Read images that running machines have open
  airlock.images.qcow2_info:
    path:
      - /var/lib/libvirt/images/db-system.qcow2
      - /var/lib/libvirt/images/db-data.qcow2
    force_share: true

- name: Find out what an incremental backup has to copy
  airlock.images.qcow2_info:
    path: /var/lib/libvirt/images/web.qcow2
    dirty_extents: true
    bitmap: backup
  register: web

- name: Read all images of a directory, whichever are damaged or in use
  airlock.images.qcow2_info:
    path: "{{ found.files | map(attribute='path') }}"
    fail_on: none
  register: all

- name: Show what could not be read
  ansible.builtin.debug:
    msg: "{{ all.images | selectattr('error_code', 'defined') | map(attribute='msg') }}"

- name: Read a vmdk image, and what it stands on
  airlock.images.qcow2_info:
    path: /var/lib/libvirt/images/old.vmdk
    format: vmdk
    chain: true

- name: Read a chain whose base is kept elsewhere
  airlock.images.qcow2_info:
    path: /var/lib/libvirt/images/web.qcow2
    chain: true
    allowed_roots: /srv/templates
  register: web

- name: Show the chain
  ansible.builtin.debug:
    msg: "{{ web.chain_drawing }}"

- name: Make a full backup when the bitmap cannot be relied upon
  ansible.builtin.import_tasks: full_backup.yml
  when: web.bitmaps | selectattr('name', 'equalto', 'backup') | selectattr('inconsistent') | length > 0
"""

RETURN = r"""
images:
  description:
    - What each image says, in the order of O(path). Of one that could not be read there is C(path), C(error_code) and
      C(msg) only, and C(pids) where it is in use.
    - Facts that no vmdk image has are not there with O(format=vmdk). These are V(refcount_bits), V(dirty), V(corrupt),
      V(lazy_refcounts), V(extended_l2), V(compression_type), V(encryption), V(features), V(data_file) and
      V(bitmap_count). Lists of snapshots and bitmaps are empty.
    - Bytes of names that are no UTF-8 and characters that cannot be printed are replaced by U+FFFD.
  returned: always, once the options are known to be right
  type: list
  elements: dict
  contains:
    path:
      description: The image file.
      type: str
      sample: /var/lib/libvirt/images/web.qcow2
    error_code:
      description: Why the image could not be read, in the form of RV(error_code).
      type: str
      returned: when it could not be read
      version_added: 0.3.0
      sample: in_use
    msg:
      description: The same in words.
      type: str
      returned: when it could not be read
      version_added: 0.3.0
    format:
      description: The format, as O(format) says.
      type: str
      version_added: 0.3.0
      sample: qcow2
    version:
      description: The version of the format, of qcow2 V(2) (C(compat=0.10)) or V(3) (C(compat=1.1)).
      type: int
    virtual_size:
      description: The size of the disk in bytes.
      type: int
    file_size:
      description: The length of the file in bytes, holes included.
      type: int
    cluster_size:
      description: The size of a cluster, of vmdk a grain, in bytes.
      type: int
    refcount_bits:
      description: The width of a refcount in bits.
      type: int
    dirty:
      description: Whether the image was not closed by whoever wrote to it last, so that refcounts may be wrong.
      type: bool
    corrupt:
      description: Whether QEMU has marked the image as corrupt.
      type: bool
    lazy_refcounts:
      description: Whether refcounts may be updated late.
      type: bool
    extended_l2:
      description: Whether clusters are divided into subclusters.
      type: bool
    compression_type:
      description: How clusters are compressed, V(zlib) or V(zstd).
      type: str
    encryption:
      description: How the data is encrypted, V(aes) or V(luks). V(null) when it is not.
      type: str
    features:
      description: The feature bits that are set, by the numbers that the format gives them.
      type: dict
      contains:
        incompatible:
          description: Features that a reader must know.
          type: list
          elements: int
        compatible:
          description: Features that a reader may ignore.
          type: list
          elements: int
          sample: [0]
        autoclear:
          description: Features that a writer which does not know them switches off.
          type: list
          elements: int
    zeroed_grains:
      description: Whether the image can say of a grain that it is zero without storing zeros.
      type: bool
      returned: success, with O(format=vmdk)
      version_added: 0.3.0
    content_id:
      description: A number that each program changes which writes to the disk.
      type: int
      returned: success, with O(format=vmdk)
      version_added: 0.3.0
    parent_content_id:
      description: The number that the backing file had when the image was made on it. V(4294967295) without one.
      type: int
      returned: success, with O(format=vmdk)
      version_added: 0.3.0
    backing_file:
      description: The name of the backing file, as it stands in the image. V(null) without one.
      type: str
      sample: base.qcow2
    backing_format:
      description: The format of the backing file, as it stands in the image. V(null) when it is not recorded.
      type: str
      sample: qcow2
    data_file:
      description: The name of the external data file, as it stands in the image. V(null) without one.
      type: str
    bitmap_count:
      description:
        - How many persistent bitmaps the image has, stale ones not counted.
        - V(null) where the header's part about them is damaged, so that nobody knows; see RV(images[].bitmaps_damage).
      type: int
    bitmaps:
      description: The bitmaps, in the form of RV(bitmaps), the last ones where there are too many.
      type: list
      elements: dict
      version_added: 0.2.0
    bitmaps_damage:
      description:
        - What is wrong with the bitmaps. Null when nothing shows. Those that are damaged are not in the list.
        - M(airlock.images.qcow2_bitmap) removes them, with O(airlock.images.qcow2_bitmap#module:damaged=true).
      type: str
      sample: Broken bitmap directory
      version_added: 0.3.0
    dirty_extents:
      description: The dirty ranges of the bitmap, in the form of RV(dirty_extents).
      type: list
      elements: dict
      returned: success, with O(dirty_extents=true)
      version_added: 0.2.0
    extents_next:
      description: Where to go on, in the form of RV(extents_next).
      type: int
      returned: success, with O(dirty_extents=true)
      version_added: 0.2.0
    chain:
      description: The layers, in the form of RV(chain).
      type: list
      elements: dict
      returned: success, with O(chain=true)
      version_added: 0.2.0
    chain_drawing:
      description: The chain in one line, in the form of RV(chain_drawing).
      type: str
      returned: success, with O(chain=true)
      version_added: 0.2.0
      sample: web.qcow2
    snapshot_count:
      description: How many snapshots the image has.
      type: int
      version_added: 0.3.0
    snapshots:
      description: The snapshots, in the form of RV(snapshots), the last ones where there are too many.
      type: list
      elements: dict
    truncated:
      description: Whether snapshots or bitmaps of the image were left out, see O(limit).
      type: bool
      version_added: 0.3.0
    listing:
      description: The snapshots, in the form of RV(listing).
      type: str
      returned: success, when nothing was left out
truncated:
  description:
    - Whether snapshots or bitmaps of any image were left out, see O(limit). A condition that looks into their lists
      has to ask for this first.
    - RV(snapshots), RV(bitmaps) and RV(listing) are not there then, RV(images) has what is returned.
  returned: success
  type: bool
  version_added: 0.3.0
  sample: false
snapshots:
  description:
    - The snapshots of the image, in the order of its table.
    - Bytes of a name or an id that are no UTF-8 and characters that cannot be printed are replaced by U+FFFD.
  returned: success, when O(path) is one image and nothing was left out
  type: list
  elements: dict
  contains:
    id:
      description: The id.
      type: str
      sample: "1"
    name:
      description: The name.
      type: str
      sample: before-upgrade
    date:
      description: When the snapshot was taken.
      type: dict
      contains:
        seconds:
          description: Seconds since 1970, UTC.
          type: int
        nanoseconds:
          description: Nanoseconds of that second.
          type: int
        iso8601:
          description: The same moment as text, in UTC.
          type: str
          sample: "2026-11-21T08:39:59.123456789Z"
    vm_state_size:
      description: The size of the saved state of a running machine in bytes. 0 without one.
      type: int
    vm_clock:
      description: How long the machine had been running, in nanoseconds.
      type: int
    icount:
      description: The number of instructions the machine had executed. V(null) when it was not recorded.
      type: int
    disk_size:
      description: The size of the disk at the time of the snapshot, in bytes.
      type: int
listing:
  description:
    - The snapshots as the table that C(qemu-img snapshot -l) prints, with control characters escaped. Empty without
      snapshots. Dates are in the managed host's time zone.
  returned: success, when O(path) is one image and nothing was left out
  type: str
  sample: |
    Snapshot list:
    ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT
    1       before-upgrade        0 B 2026-11-21 08:39:59  0000:00:00.000          0
bitmaps:
  description:
    - The bitmaps of the image, in the order of its directory.
    - Bytes of a name that are no UTF-8 and characters that cannot be printed are replaced by U+FFFD.
  returned: success, when O(path) is one image and nothing was left out
  type: list
  elements: dict
  version_added: 0.2.0
  contains:
    name:
      description: The name.
      type: str
      sample: backup
    granularity:
      description: How many bytes of the disk a bit stands for.
      type: int
    recording:
      description: Whether it notes what virtual machines write.
      type: bool
      sample: true
    in_use:
      description: Whether it was opened and not stored since, by a process that has ended or has the image open still.
      type: bool
    stale:
      description: Whether a program that does not know bitmaps has written to the image since.
      type: bool
    inconsistent:
      description: Whether what it says is not to be relied upon, because it is in use or stale. It can only be removed.
      type: bool
    dirty_bytes:
      description: How many bytes of the disk are dirty. V(null) when it is inconsistent.
      type: int
    dirty_count:
      description: How many of its bits are set. V(null) when it is inconsistent.
      type: int
dirty_extents:
  description: The dirty ranges of the bitmap, ascending. Ranges that touch are told as one.
  returned: success, with O(dirty_extents=true), when O(path) is one image
  type: list
  elements: dict
  version_added: 0.2.0
  contains:
    offset:
      description: Where the range begins on the disk, in bytes.
      type: int
    length:
      description: How many bytes it has. The last one of a disk ends with the disk.
      type: int
extents_next:
  description:
    - Where to go on with O(extents_start), in bytes, when there were more ranges than O(extents_limit).
    - V(null) when all have been told.
  returned: success, with O(dirty_extents=true), when O(path) is one image
  type: int
  version_added: 0.2.0
chain:
  description:
    - The layers of the backing chain, from the image itself to the base.
    - Names are made printable as in RV(images).
  returned: success, with O(chain=true), when O(path) is one image
  type: list
  elements: dict
  version_added: 0.2.0
  contains:
    path:
      description: The file, its name combined with the directory of the image that names it.
      type: str
      sample: /srv/templates/debian.qcow2
    format:
      description: The format, V(qcow2), V(raw) or V(vmdk).
      type: str
      sample: qcow2
    depth:
      description: How many layers are above it.
      type: int
    virtual_size:
      description: The size of the disk in bytes.
      type: int
    file_size:
      description: The length of the file in bytes, holes included.
      type: int
    backing_file:
      description: The name of the backing file, as it stands in the image. V(null) in a base.
      type: str
    backing_format:
      description: The format of the backing file, as it stands in the image. V(null) when it is not recorded.
      type: str
    data_file:
      description: The external data file, combined like RV(chain[].path). V(null) without one.
      type: str
chain_drawing:
  description:
    - The chain in one line, the base first. Names of files; whole paths where two layers have the same name.
  returned: success, with O(chain=true), when O(path) is one image
  type: str
  version_added: 0.2.0
  sample: debian.qcow2 <- web.qcow2
sandbox:
  description: What the guests that worked on the images were confined by, and what they cost.
  returned: success
  type: dict
  contains:
    layers:
      description: The layers of the jail that were active.
      type: list
      elements: str
      sample: [user_mode_guest, descriptors, namespaces, credentials, no_new_privs, landlock_abi_7, seccomp, timer]
    exits:
      description: How often a guest rang for the host, all guests of the task together.
      type: int
    memory:
      description: Bytes that the largest guest might have used.
      type: int
    milliseconds:
      description: How long all guests of the task took, from fork to exit.
      type: float
error_code:
  description:
    - Which kind of failure it was. The codes are stable, the words of RV(ignore:msg) are not.
    - The options (V(no_images), V(duplicate_path), V(bad_timeout), V(bad_memory_limit), V(empty_name),
      V(name_too_long), V(bad_extents), V(bad_limit)).
    - The host (V(no_kvm), V(kvm_permission), V(kvm), V(no_cffi), V(host), V(jail)).
    - This collection (V(internal_error)).
    - The file (V(not_found), V(is_directory), V(not_regular), V(permission_denied), V(in_use), V(open_failed),
      V(read_failed)).
    - The image (V(not_qcow2), V(truncated), V(incompatible_features), V(not_vmdk), V(vmdk_subformat), and more of that
      kind).
    - Its bitmaps (V(bitmap_not_found), V(bitmap_inconsistent), V(bitmap_ambiguous)).
    - Its chain (V(backing_absolute), V(backing_outside), V(backing_symlink), V(backing_symlink_loop),
      V(backing_protocol), V(backing_name_nul), V(backing_name_long), V(backing_not_found), V(backing_not_regular),
      V(backing_block_device), V(backing_permission), V(backing_loop), V(backing_open_failed),
      V(backing_format_missing), V(backing_format_unknown), V(chain_too_deep)); the same with C(data_file) in the place
      of C(backing) for external data files; V(bad_allowed_root).
    - The guest (V(time_limit), V(budget), V(guest_crash), V(guest_protocol), V(no_memory)).
  returned: failure
  type: str
  sample: in_use
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
    FORCE_SHARE_ARGUMENT,
    IMAGES_ARGUMENTS,
    LIMIT_ARGUMENT,
    LINKS_ARGUMENT,
)
from ansible_collections.airlock.images.plugins.module_utils._module.image_module import ImageModule
from ansible_collections.airlock.images.plugins.module_utils._module.info import info_flow
from ansible_collections.airlock.images.plugins.module_utils._module.outcome import run_module

ARGUMENTS = {
    **IMAGES_ARGUMENTS,
    **LINKS_ARGUMENT,
    **FORCE_SHARE_ARGUMENT,
    **LIMIT_ARGUMENT,
    "fail_on": {"type": "str", "choices": ["any", "all", "none"], "default": "any"},
    "format": {"type": "str", "choices": ["qcow2", "vmdk"], "default": "qcow2"},
    "dirty_extents": {"type": "bool", "default": False},
    "bitmap": {"type": "str"},
    "extents_start": {"type": "int", "default": 0},
    "extents_limit": {"type": "int", "default": 10000},
    "chain": {"type": "bool", "default": False},
    **CHAIN_ARGUMENTS,
}


def main() -> t.NoReturn:
    module = ImageModule(
        argument_spec=ARGUMENTS,
        required_if=[("dirty_extents", True, ["bitmap"])],
        supports_check_mode=True,
    )
    run_module(module, info_flow)


if __name__ == "__main__":
    main()
