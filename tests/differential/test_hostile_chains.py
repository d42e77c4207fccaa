# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Hostile images in chains that the command line commits or rebases: no hang, no harm, and no exit 0 after damage.

An image that will be written to is verified first, so that what is refused is as it was. One that is only read may turn
out hostile on the way: then it is as it was, and what was written to is sound.
"""

from __future__ import annotations

import os

import pytest

from tests.support import qemu
from tests.support.chains import Arena
from tests.support.hostile import CHANGES, ROWS
from tests.support.hostile_chains import VMDK, VMDK_ROWS, Outcome, Workshop, airlock, vmdk_chain
from tests.support.patch import Patch
from tests.support.vmdk import Vmdk

LONG = os.environ.get("AIRLOCK_LONG") == "1"
NOT_FOR_QEMU = {5, 31, 43, 47, 48, 49}  # rows on which qemu-img check never ends, or takes a minute
COMMANDS = {
    ("commit", "top"): (["commit", "ours"], {"base", "ours"}),
    ("commit", "middle"): (["commit", "-b", "base", "upper"], {"base"}),
    ("commit", "base"): (["commit", "upper"], {"ours", "upper"}),
    ("rebase", "top"): (["rebase", "-b", "", "ours"], {"ours"}),
    ("rebase", "middle"): (["rebase", "-c", "-b", "base", "-F", "qcow2", "upper"], {"upper"}),
    ("rebase", "base"): (["rebase", "-b", "", "upper"], {"upper"}),
    ("relink", "top"): (["rebase", "-u", "-b", "base", "-F", "raw", "ours"], {"ours"}),
}
"""The arguments, and the files that may be written to."""
CASES = [
    (name, *command)
    for row, name in enumerate(ROWS)
    for number, command in enumerate(COMMANDS)
    if LONG or (row + number) % 3 == 0
]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(str(tmp_path_factory.mktemp("chains")))


def severity(path: str) -> int:
    """0 clean or only leaks, 1 corrupt, 2 cannot even be opened."""
    return {0: 0, 3: 0, 2: 1}.get(qemu.check(path).code, 2)


def check_files(directory: str, done: Outcome, written: set[str], hostile: str) -> None:
    """What was refused: files that are verified first are as they were, and others sound."""
    assert done.changed <= written
    if done.code != 0:
        assert hostile not in done.changed, done.errors
        assert hostile not in written or not done.changed, done.errors
    for name in done.changed - {hostile}:
        with open(os.path.join(directory, name), "rb") as file:
            if file.read(4) == b"QFI\xfb":
                assert severity(os.path.join(directory, name)) == 0, (name, done)


@pytest.mark.parametrize(("name", "verb", "role"), CASES)
def test_known_lies(
    arena: Arena, workshop: Workshop, capfdbinary: pytest.CaptureFixture[bytes], name: str, verb: str, role: str
) -> None:
    row = ROWS[name]
    arguments, written = COMMANDS[verb, role]
    workshop.chain(arena.directory, role, row.options)
    ours = os.path.join(arena.directory, "ours")
    with Patch(ours) as patch:
        row.lie(patch)
    before = severity(ours) if row.number not in NOT_FOR_QEMU else 2
    done = airlock(arena.directory, capfdbinary, *arguments)
    check_files(arena.directory, done, written, "ours")
    if done.code == 0 and "ours" in done.changed:
        assert not row.refused >= CHANGES, f"{verb} was not refused"
        assert row.number in NOT_FOR_QEMU or severity(ours) <= before


@pytest.mark.parametrize("role", ["top", "base"])
@pytest.mark.parametrize("name", VMDK_ROWS)
def test_known_lies_of_vmdk(arena: Arena, capfdbinary: pytest.CaptureFixture[bytes], name: str, role: str) -> None:
    lie, refused = VMDK_ROWS[name]
    directory = arena.directory
    vmdk_chain(directory, role, lie)
    top = "ours" if role == "top" else "upper"
    if role == "base":  # first as one that is only read
        with open(os.path.join(directory, top), "rb") as file:
            before = file.read()
        done = airlock(directory, capfdbinary, "rebase", "-b", "", top)
        check_files(directory, done, {top}, "ours")
        with open(os.path.join(directory, top), "wb") as file:
            file.write(before)
    done = airlock(directory, capfdbinary, "commit", "-f", "vmdk" if role == "top" else "qcow2", top)
    check_files(directory, done, {"base", "ours", "upper"}, "ours")
    assert (done.code != 0) or not refused
    if done.code == 0:
        base = Vmdk(os.path.join(directory, "base" if role == "top" else "ours"))
        assert base.shown() == base.shown(redundant=True)
        assert role == "top" or base.shown()[8192:40960] == b"\x09" * 32768
    assert len(Vmdk(os.path.join(directory, "ours")).bytes) < 2 * VMDK.size + (2 << 20)
