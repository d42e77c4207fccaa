# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What messages advise a module's user, in one list. The command line has its own words for some, see cli/ways.py.

A message names a way as a field, {repair}, and gets its sentence. Programs that open an image without a sandbox are
named only with "if you trust it", and "-f" with them, so that they do not guess its format.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import typing as t

# Fields in them: {image}, its path for a shell; {file}, another one's; {edit}, of vmdk_refusals.py.
WAYS = {
    "restore": "No tool can repair this in place: restore the image from a backup.",
    # qemu-img 10.0 rewrites the header before it has read the snapshot table, and so writes that there are none.
    "repair": "Restore the image from a backup, or, if you trust it, repair a copy of it: "
    '"qemu-img check -f qcow2 -r all COPY". On an image that has bitmaps, that loses all snapshots.',
    "newer": "If you trust the image, convert it with the program that wrote it.",
    "cut_off": "Copy the image anew, as a whole, or restore it from a backup.",
    "qemu_img": "If you trust the image, do it with qemu-img, on a copy.",
    "upgrade": 'If you trust the image, make it version 3 first: "qemu-img amend -f qcow2 -o compat=1.1 {image}".',
    "convert": 'If you trust the image, "qemu-img convert -f qcow2 -O qcow2 {image} NEW" writes its disk into a '
    "new one, without snapshots and bitmaps.",
    "widen": 'Or, if you trust the image, "qemu-img convert -f qcow2 -O qcow2 -o refcount_bits=64 {image} NEW" writes '
    "its disk into a new one, without snapshots and bitmaps.",
    "resize": 'If you trust the image, "qemu-img resize -f qcow2 {image} SIZE" makes the disk larger.',
    # Of what is not read here, and may be a stranger's: qemu-img opens whatever such an image names.
    "convert_vmdk": 'If you trust it, convert it with "qemu-img convert -f vmdk -O qcow2": that program opens it '
    "without a sandbox.",
    "convert_extents": '"qemu-img convert" reads every file that the descriptor names, whatever it is, into its '
    "result. Look at all names in it; if you trust the image, convert it with that.",
    "descriptors": 'Raise the hard limit of open files ("ulimit -Hn", LimitNOFILE of a systemd unit) to {number}',
    "list_snapshots": "Module airlock.images.qcow2_info lists what there is.",
    "list_bitmaps": "Module airlock.images.qcow2_info lists what there is.",
    "delete_snapshots": "Delete a snapshot first (module airlock.images.qcow2_snapshot, state 'absent').",
    "remove_bitmaps": "Remove what is not needed first (module airlock.images.qcow2_bitmap, state 'absent').",
    "policy_of_bitmaps": "Set bitmaps to 'merge' to have them merged into those of the base, or to 'drop' to have them "
    "removed.",
    "drop_bitmaps": "Set bitmaps to 'drop' to have them removed, and make a full backup next time.",
    "only_removed": "It can only be removed (module airlock.images.qcow2_bitmap, state 'absent').",
    "remove_damaged": "Disk and snapshots can be read. To go on, remove what is damaged (module "
    "airlock.images.qcow2_bitmap with state 'absent' and damaged), and make a full backup then.",
    "resize_allowed": "Allow the resize (allow_resize: true)",
    "not_compressed": "Run it without compressed: true.",
    "state_format": "State it with backing_format",
    "roots": "allowed_roots",
    "more_time": "Allow more time (timeout), or look into what keeps the storage busy.",
    "follow_links": "set follow_links to true",
    "no_force_share": "Leave force_share out",
    "wait": "Wait until it has ended, or have the task wait for it (lock_timeout: 600).",
    # It goes on as a sentence, in front of it there is a condition.
    "allow": "add {file} to allowed_roots",
    # Nothing is opened for these, so that the image must be known.
    "relink": 'If you know the image, name another file: "airlock rebase -u -b FILE -F FORMAT {image}".',
    "relink_vmdk": "If you know the image, name another file in parentFileNameHint of its descriptor: {edit}",
    "restore_both": "If you know the image, restore it together with its data file.",
    "shorten": "Shorten it from below: have module airlock.images.qcow2_chain bring an image of its lower part onto "
    "one that is further down.",
    "temporary": "Have TMPDIR name a directory that may be written to (keyword environment of the task).",
    "leaks": 'That is harmless. If you trust the image, "qemu-img check -f qcow2 -r leaks {image}" gives the space '
    "back; on an image with bitmaps it loses all snapshots, so work on a copy there.",
    "state_kept": "It holds what it held, or what was asked for, and at worst some clusters are leaked.",
    "locale": "Give the task a locale that has them (environment: LC_ALL: C.UTF-8).",
    "build": 'Install the collection anew, or, in a checkout, run "make build".',
    "again": "Run it again. Where it stays so, please report this message, with the kernel's version (uname -r).",
    "killed": "Somebody has killed it, or the system ran out of memory, as the kernel's log (dmesg) says then. Run it "
    "again.",
    "report": "The image is damaged or hostile, or this is a fault of ours: please report it.",
    # Of a guest that can have written anything.
    "look_at_copy": 'Unless that was undone, restore it from a backup, or, if you trust it, run "qemu-img check -f '
    'qcow2" on a copy.',
}

_NO_ADVICE = "Look into the kernel's log for the disk below."
_OF_ERRORS = {
    errno.ENFILE: "The system has as many open files as it may. End what holds many of them, or raise fs.file-max.",
    errno.ENOMEM: "The system is out of memory. End what takes much of it, then run it again.",
    errno.EAGAIN: "The system is out of processes or locked memory. Look at the limits (ulimit -a), then run it again.",
    errno.ENOSPC: "Free some space and run it again.",
    errno.EDQUOT: "Free some space, or have the quota raised, and run it again.",
    errno.EFBIG: 'A file may not be so large here. Raise the limit ("ulimit -f"), or use another file system.',
    errno.EACCES: "Run it as a user who may, or change the permissions.",
    errno.EPERM: "Run it as a user who may, or change the file's attributes.",
    errno.EROFS: "Remount the file system writable, or work on a copy.",
}

_spoken: list[t.Mapping[str, str]] = [{}]


@contextlib.contextmanager
def spoken(ways: t.Mapping[str, str]) -> t.Iterator[None]:
    """What is said inside has these in the place of those of the same name."""
    _spoken.append(ways)
    try:
        yield
    finally:
        _spoken.pop()


class Fields(dict[str, t.Any]):
    """What a message can quote: its own fields, and the ways. For str.format_map()."""

    def __missing__(self, name: str) -> str:
        return say(name, self)


def say(name: str, fields: t.Mapping[str, t.Any] | None = None) -> str:
    """The sentence of a way. fields: that stand in it. Raises KeyError for one that is not in the list."""
    return (_spoken[-1].get(name) or WAYS[name]).format_map(fields or {})


def of_errno(number: int, otherwise: str = _NO_ADVICE) -> str:
    """What to do about a system call that failed."""
    return _too_many_open() if number == errno.EMFILE else _OF_ERRORS.get(number, otherwise)


def _too_many_open() -> str:
    limit = max(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # -1: any number
    way = say("descriptors", {"number": max(1024, 2 * limit)})
    return f"This process may have {limit}. {way}, or name fewer images, if there are several."
