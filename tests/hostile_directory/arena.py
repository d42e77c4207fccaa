# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The places of an attack: the tenant's directories, files outside of them, and a judge who sees what happens to those.

    ARENA/tenant/vm, vm/sub, pool    the tenant's; root works on images in vm
    ARENA/shared                     anybody may make files there, as in /tmp; it has files of another tenant's
    ARENA/root, root/vm, root/sub, root/vm/sub
                                     root's, 0700: files of the same names as all that the tenant has
    ARENA/other, other/vm, ...       the same of another tenant's
    ARENA/linked                     root's files that the tenant has hard links to, as with fs.protected_hardlinks=0

Nothing may so much as open a file below root and other. What is in linked may be opened, as its header is read before
it is known to have several names, but no byte of its data may be copied, and none changed.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import random
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

TENANT, OTHER = 12345, 20000
SIZE = 256 << 10  # of each disk
BLOCK = 4096
LISTED = 0x20 | 0x1 | 0x10  # IN_OPEN, IN_ACCESS, IN_CLOSE_NOWRITE
ALL_EVENTS, MOVED = 0xFFF, 0xC0
IS_DIRECTORY, OVERFLOW, IGNORED = 0x40000000, 0x4000, 0x8000
EVENTS = {
    0x1: "read",
    0x2: "written",
    0x4: "attributes changed",
    0x8: "closed after writing",
    0x10: "closed",
    0x20: "opened",
    0x40: "moved away",
    0x80: "moved there",
    0x100: "made",
    0x200: "removed",
    0x400: "removed",
    0x800: "moved",
}

# Each image: its format, what it stands on, where its own data is. {vm}, {pool}: absolute paths; {near}: from one to
# the other.
IMAGES: dict[str, tuple[str, str, int]] = {
    "base.raw": ("raw", "", 0),
    "mid.qcow2": ("qcow2", "base.raw", 1),
    "top.qcow2": ("qcow2", "mid.qcow2", 2),
    "new.qcow2": ("qcow2", "base.raw", 3),
    "low.raw": ("raw", "", 0),
    "sub/base.raw": ("raw", "", 4),
    "below.qcow2": ("qcow2", "sub/base.raw", 2),
    "absolute.qcow2": ("qcow2", "{vm}/sub/base.raw", 2),
    "pooled.qcow2": ("qcow2", "{near}/low.raw", 2),
    "far.qcow2": ("qcow2", "{pool}/low.raw", 2),
    "one.qcow2": ("qcow2", "", 1),
    "two.qcow2": ("qcow2", "", 2),
    "three.qcow2": ("qcow2", "", 3),
    "data.qcow2": ("qcow2", "", 1),
    "dtop.qcow2": ("qcow2", "data.qcow2", 2),
    "base.vmdk": ("vmdk", "", 1),
    "top.vmdk": ("vmdk", "base.vmdk", 2),
    "vtop.qcow2": ("qcow2", "base.vmdk", 2),
}
OPTIONS = {"qcow2": "cluster_size=4096", "vmdk": "subformat=monolithicSparse"}


def qemu(*command: str | pathlib.Path, directory: pathlib.Path, **options: object) -> None:
    subprocess.run(command, check=True, cwd=directory, stdout=subprocess.DEVNULL, **options)  # type: ignore[call-overload]


def make_images(directory: pathlib.Path, pool: pathlib.Path, fill: bytes) -> None:
    """All of IMAGES. fill: a pattern that is all the data in them."""
    pattern = directory / "pattern"
    pattern.write_bytes(fill)
    (directory / "sub").mkdir(exist_ok=True)
    for name, (kind, below, place) in IMAGES.items():
        if kind == "raw":
            (directory / name).write_bytes(fill * (SIZE // len(fill)))
            if name == "low.raw":
                (pool / name).write_bytes(fill * (SIZE // len(fill)))
            continue
        words = ["-o", OPTIONS[kind] + (",data_file=data.raw" if name == "data.qcow2" else "")]
        if below:
            path = below.format(vm=directory, pool=pool, near=os.path.relpath(pool, directory))
            words += ["-b", path, "-F", IMAGES.get(below, ("raw",))[0]]
        qemu("qemu-img", "create", "-q", "-f", kind, *words, name, str(SIZE), directory=directory)
        writes = [f"write -s {pattern} {at << 10} 16k" for at in range(place * 16, 256, 64)]
        qemu("qemu-io", "-f", kind, *(word for each in writes for word in ("-c", each)), name, directory=directory)
    for name in ("one.qcow2", "two.qcow2", "three.qcow2"):
        qemu("qemu-img", "snapshot", "-c", "s1", name, directory=directory)
        qemu("qemu-io", "-c", f"write -s {pattern} 64k 4k", name, directory=directory)
        if name == "three.qcow2":  # no snapshot is applied beside bitmaps
            continue
        for bitmap in ("b1", "b2"):
            qemu("qemu-img", "bitmap", "--add", name, bitmap, directory=directory)
        qemu("qemu-io", "-c", f"write -s {pattern} 128k 4k", name, directory=directory)
    pattern.unlink()


class State(NamedTuple):
    """What must stay as it is with a file outside."""

    mode: int
    owner: tuple[int, int]
    modified: int
    changed: int
    links: int
    size: int


class Judge:
    """Says what has happened to files outside of the tenant's directories. canary: what all of them are full of."""

    def __init__(self, sealed: list[pathlib.Path], shared: pathlib.Path, linked: pathlib.Path, canary: bytes) -> None:
        """sealed, shared: directories whose files may not even be opened; in the latter, directories come and go.
        linked: one whose files may be opened."""
        self._sealed, self._shared, self._linked = sealed, shared, linked
        self._marks = [canary[at : at + 32] for at in range(0, len(canary), 512)]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watcher = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watched: dict[int, pathlib.Path] = {}
        for directory in (*sealed, shared):
            mask = ALL_EVENTS & ~MOVED if directory == shared else ALL_EVENTS  # directories move there all the time
            number = self._libc.inotify_add_watch(self._watcher, os.fsencode(directory), mask)
            assert number > 0, os.strerror(ctypes.get_errno())
            self._watched[number] = directory
        self.begin()

    def begin(self) -> None:
        """From now on everything shall stay as it is now."""
        self._states = self._look()
        self._contents = self._read()
        self.events()

    def close(self) -> None:
        os.close(self._watcher)

    def events(self) -> set[str]:
        """What was done in the sealed directories since the last time. That one of them is listed is no matter: others
        on this machine may look through all of it."""
        found = set()
        while True:
            try:
                data = os.read(self._watcher, 1 << 16)
            except BlockingIOError:
                return found
            while data:
                number, mask, _cookie, length = struct.unpack_from("iIII", data)
                name = os.fsdecode(data[16 : 16 + length].rstrip(b"\0"))
                data = data[16 + length :]
                assert not mask & (OVERFLOW | IGNORED)
                directory = self._watched[number]
                if mask & IS_DIRECTORY and (directory == self._shared or mask & LISTED):
                    continue
                found.add(f"{directory / name}: {EVENTS[mask & ALL_EVENTS]}")

    def findings(self, tenant: pathlib.Path) -> set[str]:
        """All that has happened, in one look, but for the content of files whose times are as they were."""
        found = self.events()
        now = self._look()
        found |= {f"{path}: is there or is not, unlike before" for path in now.keys() ^ self._states.keys()}
        for path in now.keys() & self._states.keys():
            before, after = self._states[path], now[path]
            differs = [name for name in State._fields if getattr(before, name) != getattr(after, name)]
            found |= {f"{path}: other than before: {name}" for name in differs}
        return found | self._leaks(tenant)

    def content_findings(self) -> set[str]:
        """Files that have other bytes than at the beginning."""
        now = self._read()
        self.events()
        return {f"{path}: other bytes than before" for path in now if now[path] != self._contents.get(path)}

    def leaks_as_read(self, image: pathlib.Path, kind: str) -> set[str]:
        """Whether the tenant sees data from outside when he reads an image through all that it stands on."""
        if image.resolve() != image or not image.is_file():
            return set()
        for path in image.parents[1].rglob("*"):
            if path.is_fifo():  # where the attacker stopped: the reader would wait for somebody who writes to it
                path.unlink()
        with tempfile.TemporaryDirectory(dir=image.parents[2]) as name:
            os.chown(name, TENANT, TENANT)
            out = pathlib.Path(name, "out")
            command = ("qemu-img", "convert", "-U", "-f", kind, "-O", "raw", str(image), str(out))
            done = subprocess.run(command, user=TENANT, group=TENANT, extra_groups=[], check=False, capture_output=True)
            if done.returncode or not self._has_canary(out.read_bytes()):
                return set()
        return {f"{image}: shows data of a file outside"}

    def _leaks(self, tenant: pathlib.Path) -> set[str]:
        """Files below the tenant's directory with data from outside in them."""
        known = {path.stat().st_ino for path in self._linked.iterdir()}
        found = set()
        for above, _directories, names in os.walk(tenant):
            for name in names:
                path = pathlib.Path(above, name)
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_ino not in known and self._has_canary(path.read_bytes()):
                    found.add(f"{path}: has data of a file outside")
        return found

    def _has_canary(self, content: bytes) -> bool:
        return any(mark in content for mark in self._marks)

    def _files(self) -> Iterator[os.DirEntry[str]]:
        for directory in (*self._sealed, self._shared, self._linked):
            with os.scandir(directory) as entries:
                yield from (entry for entry in entries if not entry.is_dir(follow_symlinks=False))

    def _look(self) -> dict[str, State]:
        found = {str(path): path.lstat() for path in self._sealed}
        found.update((entry.path, entry.stat(follow_symlinks=False)) for entry in self._files())
        linked = f"{self._linked}/"
        return {path: _state(status, path.startswith(linked)) for path, status in found.items()}

    def _read(self) -> dict[str, bytes]:
        return {entry.path: pathlib.Path(entry.path).read_bytes() for entry in self._files()}


def _state(status: os.stat_result, is_linked: bool) -> State:
    changed, links = (0, 0) if is_linked else (status.st_ctime_ns, status.st_nlink)  # the tenant's links come and go
    owner = (status.st_uid, status.st_gid)
    return State(status.st_mode, owner, status.st_mtime_ns, changed, links, status.st_size)


class Arena:
    """All of it, in a new directory for temporary files, until close(). Needs root."""

    def __init__(self) -> None:
        self.top = pathlib.Path(tempfile.mkdtemp(prefix="airlock-hostile-")).resolve()
        self.top.chmod(0o711)  # that of pytest is closed to the tenant
        self.tenant, self.shared, self.linked = self.top / "tenant", self.top / "shared", self.top / "linked"
        self.vm, self.pool = self.tenant / "vm", self.tenant / "pool"
        self.outside = {"root": self.top / "root", "other": self.top / "other"}
        chance = random.Random(1)
        canary = chance.randbytes(BLOCK)
        self.vm.mkdir(parents=True)
        self.pool.mkdir()
        make_images(self.vm, self.pool, chance.randbytes(BLOCK))
        self._own = {str(path.relative_to(self.vm)): path.read_bytes() for path in self.vm.rglob("*") if path.is_file()}
        self._own["progress.json"] = b"{}\n"
        root, other = self.outside.values()
        sealed = [*self._make_outside(root, canary), root]
        shutil.copytree(root, other)
        sealed += [other / path.relative_to(root) for path in sealed]
        for path in (other, *other.rglob("*")):
            os.chown(path, OTHER, OTHER)
        files = [path for path in self.outside["other"].iterdir() if path.is_file()]
        for directory, mode in ((self.shared, 0o1777), (self.linked, 0o700)):
            directory.mkdir()
            directory.chmod(mode)
            for path in files:
                shutil.copyfile(path, directory / path.name)
                (directory / path.name).chmod(0o600)
                os.chown(directory / path.name, OTHER, OTHER)
        self.judge = Judge(sealed, self.shared, self.linked, canary)

    def close(self) -> None:
        self.judge.close()
        shutil.rmtree(self.top)

    @staticmethod
    def _make_outside(place: pathlib.Path, canary: bytes) -> list[pathlib.Path]:
        """Files of all names in all places where an exchanged directory could lead to, but for those that are to be
        made there. Returns the directories in it."""
        place.mkdir()
        make_images(place, place, canary)
        (place / "progress.json").write_bytes(b"{}\n")
        for name in ("vm", "pool"):
            shutil.copytree(place, place / name, ignore=shutil.ignore_patterns("vm"))
        for path in (place, *place.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
        return [path for path in place.rglob("*") if path.is_dir()]

    def reset(self, names: Iterable[str]) -> None:
        """Makes the tenant's directories anew. names: of the files that are wanted there."""
        shutil.rmtree(self.tenant)
        shutil.rmtree(self.shared / "mine", ignore_errors=True)
        for directory in (self.tenant, self.vm, self.vm / "sub", self.pool, self.shared / "mine"):
            directory.mkdir()
            os.chown(directory, TENANT, TENANT)
        for name in names:
            self.copy(name, self.vm / name)
            if name == "low.raw":
                self.copy(name, self.pool / name)

    def copy(self, name: str, path: pathlib.Path) -> None:
        """A file of the tenant's with the content of the one that has this name in vm."""
        path.write_bytes(self._own[name])
        os.chown(path, TENANT, TENANT)
