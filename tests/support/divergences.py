# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where we differ from qemu-img on purpose. docs/divergences.md tells users why.

Two kinds: refusals that leave the file untouched where qemu-img leaves half a deed, and results that are equal in
effect (every snapshot's and the disk's content, the snapshot list, a clean check) but not to the byte.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from . import qemu
from .compare import differences
from .drivers import Result, SnapshotCall
from .qcow2 import Qcow2


def _refcount_overflow(call: SnapshotCall, before: Qcow2, after: Qcow2, expected: Result, got: Result) -> bool:
    """qemu-img increments until one refcount is full, then fails and leaks what it has done (fact sheet 1.4)."""
    if expected.code != 1 or got.code != 1 or "Invalid argument" not in expected.message:
        return False
    if call.verb == "create":
        return before.would_overflow(before.active_l1())
    if call.verb == "apply":
        return any(before.would_overflow(before.table(s.l1_offset, s.l1_size)) for s in before.snapshots())
    return False


def _autoclear(call: SnapshotCall, before: Qcow2, after: Qcow2, expected: Result, got: Result) -> bool:
    """qemu-img rewrites the header of every image that it opens for writing, also when it then refuses."""
    return expected.code == got.code == 1 and before.header["autoclear_features"] != after.header["autoclear_features"]


def _inconsistent(call: SnapshotCall, before: Qcow2, after: Qcow2, expected: Result, got: Result) -> bool:
    """qemu-img check finds the image corrupt, and so do we. Chains get there through QEMU: a compressed write goes on
    appending to a cluster that was freed and is another's since (write -c, zero write, write, write -c)."""
    return expected.code == 0 and got.code == 1 and qemu.check(before.path).code == 2


def _long_name(call: SnapshotCall, before: Qcow2, after: Qcow2, expected: Result, got: Result) -> bool:
    """qemu-img -a compares whole names, and other writers may have stored up to 65,535 bytes. Our call holds 255, which
    is what qemu-img itself stores, lists and deletes; such a snapshot is applied by its id."""
    return call.verb == "apply" and len(call.argument) > 255 and got.code == 1 and "not_found" in got.message


def _grows_over_backing(call: SnapshotCall, before: Qcow2, after: Qcow2, expected: Result, got: Result) -> bool:
    """While it grows the disk, qemu-img hides the backing file's data behind zero clusters, and frees their tables
    again in the next step: the file stays longer. We never open the backing file, so we cannot know where it ends."""
    if call.verb != "apply" or expected.code or got.code or after.size <= before.size:
        return False
    name = before.read(before.header["backing_file_offset"], before.header["backing_file_size"])
    if not name:
        return False
    with Qcow2(os.path.join(os.path.dirname(before.path), os.fsdecode(name))) as backing:
        return backing.size > before.size


Explains = Callable[[SnapshotCall, Qcow2, Qcow2, Result, Result], bool]

REFUSALS: dict[str, Explains] = {
    "refcount overflow is refused before the first write": _refcount_overflow,
    "a refused operation leaves unknown autoclear bits": _autoclear,
    "an inconsistent image is refused": _inconsistent,
    "a name of more than 255 bytes selects nothing": _long_name,
}
EQUAL_IN_EFFECT: dict[str, Explains] = {
    "apply grows a disk over its backing file": _grows_over_backing,
}


def explanation(
    table: dict[str, Explains], call: SnapshotCall, paths: tuple[str, str], results: Sequence[Result]
) -> str:
    """The name of the divergence that explains a difference; "" when there is none. `paths`: the image before and after
    qemu-img; `results`: qemu-img's and ours."""
    with Qcow2(paths[0]) as before, Qcow2(paths[1]) as after:
        for name, explains in table.items():
            if explains(call, before, after, results[0], results[1]):
                return name
    return ""


def _identities(path: str) -> list[tuple[object, ...]]:
    with Qcow2(path) as image:
        return [(s.id, s.name, s.date, s.vm_clock, s.extra, s.l1_size) for s in image.snapshots()]


def differs_in_effect(theirs: str, ours: str) -> str:
    """Compares two images by meaning: snapshot lists, disk content, content of each snapshot. "" when all is equal."""
    if _identities(theirs) != _identities(ours):
        return f"snapshot lists differ: {_identities(theirs)} and {_identities(ours)}"
    compared = qemu.run(["qemu-img", "compare", "-s", "-f", "qcow2", "-F", "qcow2", theirs, ours])
    if compared.code:
        return f"disks differ: {compared.output!r} {compared.errors!r}"
    names = {identity[1] for identity in _identities(ours)}
    for name in names:
        option = f"snapshot.name={os.fsdecode(bytes(name))}"  # type: ignore[call-overload]
        for path in (theirs, ours):
            qemu.must(["qemu-img", "convert", "-l", option, "-f", "qcow2", "-O", "raw", path, path + ".raw"])
        found = differences(theirs + ".raw", ours + ".raw")
        if found:
            return f"snapshot {name!r} differs: {found[:5]}"
    return ""
