# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hostile images against every snapshot operation: no hang, no harm, no foreign file.

A refusal leaves the file as it was, and its message is short and printable. What succeeds must not make the image worse
than qemu-img check found it.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys

import pytest

from sandbox import errors, operations
from tests.support import qemu
from tests.support.chains import Arena
from tests.support.compare import differences
from tests.support.drivers import TOP, QemuDriver, SnapshotCall
from tests.support.hostile import LIMITS, ROWS, check_refusal, operate, sound_image
from tests.support.patch import Patch
from tests.support.qcow2 import Qcow2

LONG = os.environ.get("AIRLOCK_LONG") == "1"
# Contradictions that qemu-img check does not look for: a zero flag in version 2, one host cluster twice in a mapping.
OVERLOOKED = ("reserved_bits", "shared_cluster")
CALLS = [SnapshotCall("create", b"new"), SnapshotCall("apply", b"s1"), SnapshotCall("delete", b"s1")]
NOT_FOR_QEMU = {5, 31, 43, 47, 48, 49}  # rows on which qemu-img check never ends, or takes a minute


def severity(path: str) -> int:
    """0 clean or only leaks, 1 corrupt, 2 cannot even be opened."""
    return {0: 0, 3: 0, 2: 1}.get(qemu.check(path).code, 2)


@pytest.mark.parametrize("verb", ["list", "create", "apply", "delete"])
@pytest.mark.parametrize("name", ROWS)
def test_known_lies(arena: Arena, name: str, verb: str) -> None:
    row = ROWS[name]
    path = os.path.join(arena.directory, "ours.qcow2")
    sound_image(path, row.options)
    with Patch(path) as patch:
        row.lie(patch)
    before = os.path.join(arena.directory, "before.qcow2")
    qemu.copy(path, before)
    error = operate(path, verb)
    if error is not None:
        check_refusal(error)
        assert differences(path, before) == []
    elif verb == "list":
        assert differences(path, before) == []
    elif row.number not in NOT_FOR_QEMU:
        assert severity(path) <= severity(before)
    assert (error is not None) or verb not in row.refused, f"{verb} was not refused"
    assert error is None or row.refused != frozenset(), f"{verb} was refused: {error}"


def damage(path: str, rng: random.Random) -> str:
    """Changes one word of metadata in some way; says what it did."""
    with Patch(path) as patch:
        with patch.image() as image:
            metadata = {
                c for where, kind, _unused in image.references() if kind not in ("data", "compressed") for c in where
            }
            cluster = rng.choice(sorted(c for c in metadata if c * 4096 < image.length))
            used = [i for i in range(0, 4096, 8) if any(image.read(cluster * 4096 + i, 8))] or [0]
            place = cluster * 4096 + (rng.choice(used) if rng.random() < 0.9 else rng.randrange(512) * 8)
            old = int.from_bytes(image.read(place, 8), "big")
        ways = {
            "bit flipped": old ^ 1 << rng.randrange(64),
            "zeroed": 0,
            "all ones": (1 << 64) - 1,
            "other cluster": old & ~0x00FFFFFFFFFFF000 | rng.randrange(64) << 12,
            "one more": (old + 1) % (1 << 64),
            "random": rng.randrange(1 << 64),
        }
        way = rng.choice(sorted(ways))
        patch.u64(place, ways[way])
        return f"{place:#x} (cluster {cluster:#x}): {way}, {old:#018x} -> {ways[way]:#018x}"


@pytest.mark.parametrize("seed", range(400 if LONG else 60))
def test_random_damage(arena: Arena, seed: int) -> None:
    """Where qemu-img finds nothing wrong and does it, we do the same, to the byte. What we refuse stays as it was."""
    rng = random.Random(seed)
    damaged, theirs, ours = (os.path.join(arena.directory, name) for name in ("damaged", "theirs", "ours"))
    sound_image(damaged, rng.choice(("", ",compat=0.10", ",refcount_bits=8", ",lazy_refcounts=on")))
    story = "; ".join(damage(damaged, rng) for _unused in range(rng.choice((1, 1, 2))))
    found = qemu.check(damaged)
    for call in CALLS:
        qemu.copy(damaged, theirs)
        qemu.copy(damaged, ours)
        error = operate(ours, call.verb)
        expected = QemuDriver().run(theirs, call)
        told = f"{story}: {call.verb}: check {found.code}, qemu-img {expected}, ours {error!r}"
        if error is not None:
            check_refusal(error)
            assert differences(ours, damaged) == [], told
            assert found.code not in (0, 3) or expected.code != 0 or error.code in OVERLOOKED, told
        else:
            assert severity(ours) <= {0: 0, 3: 0, 2: 1}.get(found.code, 2), told
            if found.code in (0, 3):
                assert expected.code == 0, told
                assert differences(theirs, ours) == [], told


FOREIGN = ["backing file: a file of the host", "backing file: a FIFO", "backing file: a device", "backing file: nbd"]
FOREIGN += ["backing file: json", "backing file: itself", "data file: a file of the host", "data file: json"]
PROBE = """
import sys
from sandbox import errors, operations
path, verb = sys.argv[1:]
try:
    with operations.Image.open(path, writable=verb != "list") as image:
        sys.stderr.flush()
        if verb == "list":
            operations.list_snapshots(image)
        else:
            operations.create_snapshot(image, b"new", (1, 0))
except errors.AirlockError:
    pass
"""


@pytest.mark.parametrize("verb", ["list", "create"])
@pytest.mark.parametrize("name", FOREIGN)
def test_no_foreign_file_is_opened(arena: Arena, name: str, verb: str) -> None:
    """strace sees one image opened, once, and no socket."""
    path = os.path.join(arena.directory, "ours.qcow2")
    os.mkfifo(os.path.join(arena.directory, "fifo"))
    sound_image(path)
    with Patch(path) as patch:
        ROWS[name].lie(patch)
    log = os.path.join(arena.directory, "strace")
    calls = "trace=%file,%network"
    command = ["strace", "-f", "-s", "300", "-o", log, "-e", calls, sys.executable, "-c", PROBE, path, verb]
    assert shutil.which("strace")
    subprocess.run(command, check=True, cwd=TOP, timeout=qemu.TIMEOUT, env={**os.environ, "PYTHONPATH": TOP})
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    # By its name in the directory that was looked up, and by no path.
    opened = [line for line in lines if "openat" in line and "ours.qcow2" in line]
    assert len(opened) == 1, opened
    assert '"ours.qcow2", O_' in opened[0]
    ours = [line for line in lines if "execve(" not in line and "/lib/" not in line]
    for word in ("passwd", "shadow", "fifo", "/dev/zero", "json", "socket(", "connect("):
        assert not [line for line in ours if word in line]


def test_disk_of_a_tebibyte_needs_permission(arena: Arena) -> None:
    path = os.path.join(arena.directory, "ours.qcow2")
    sound_image(path)
    with Patch(path) as patch:
        ROWS["snapshot of a disk of 1 TiB"].lie(patch)
    before = os.path.join(arena.directory, "before.qcow2")
    qemu.copy(path, before)
    with operations.Image.open(path, writable=True) as image, pytest.raises(errors.AirlockError) as caught:
        operations.apply_snapshot(image, operations.Selector.by_name(b"s1"), False, LIMITS)
    assert caught.value.code == "resize_not_allowed"
    assert differences(path, before) == []
    with Qcow2(path) as unchanged:
        assert unchanged.size == 6 << 20
