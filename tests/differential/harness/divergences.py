# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where we refuse on purpose what qemu-img half does. Every entry is a refusal that leaves the file untouched; the
caller compares the bytes. docs/divergences.md tells users why."""

from __future__ import annotations

from collections.abc import Callable

from .drivers import Result, SnapshotCall
from .qcow2 import Qcow2


def _refcount_overflow(call: SnapshotCall, image: Qcow2, expected: Result, got: Result) -> bool:
    """qemu-img increments until one refcount is full, then fails and leaks what it has done (fact sheet 1.4)."""
    if expected.code != 1 or got.code != 1 or "Invalid argument" not in expected.message:
        return False
    if call.verb == "create":
        return image.would_overflow(image.active_l1())
    if call.verb == "apply":
        return any(image.would_overflow(image.table(s.l1_offset, s.l1_size)) for s in image.snapshots())
    return False


DIVERGENCES: dict[str, Callable[[SnapshotCall, Qcow2, Result, Result], bool]] = {
    "refcount overflow is refused before the first write": _refcount_overflow,
}


def on_purpose(call: SnapshotCall, before: str, expected: Result, got: Result) -> str:
    """The name of the divergence that explains two outcomes on the image `before`; "" when there is none."""
    if not expected.code and not got.code:
        return ""
    with Qcow2(before) as image:
        for name, explains in DIVERGENCES.items():
            if explains(call, image, expected, got):
                return name
    return ""
