# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""New files are no more open than what they stand on, whatever umask and directory say."""

from __future__ import annotations

import errno
import os
import pathlib
import struct
import typing as t

import pytest

from sandbox import errors
from sandbox.host import drafts
from sandbox.host.drafts import Access, Draft
from sandbox.host.places import find_place

ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
NOBODY = 0xFFFFFFFF

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users, which needs root")


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Linux's extended attribute (include/uapi/linux/posix_acl_xattr.h): version 2, then tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


GUEST_MAY_READ = acl(
    (USER_OBJ, 6, NOBODY), (USER, 4, 20000), (GROUP_OBJ, 0, NOBODY), (MASK, 4, NOBODY), (OTHER, 0, NOBODY)
)
ALL_MAY_WRITE = acl(
    (USER_OBJ, 7, NOBODY), (USER, 7, 20000), (GROUP_OBJ, 7, NOBODY), (MASK, 7, NOBODY), (OTHER, 7, NOBODY)
)


@pytest.fixture(params=["without a name", "with a name"], autouse=True)
def draft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "with a name":
        monkeypatch.setattr(drafts, "_DESCRIPTORS", "/nowhere")


@pytest.fixture(params=[0o022, 0o000, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> t.Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def like(base: pathlib.Path) -> os.stat_result:
    """A new file beside the base, with its access; nothing else is left there."""
    descriptor = os.open(base, os.O_RDONLY)
    new = base.with_name("new")
    try:
        with find_place(str(new)) as place, Draft(place, Access.of(descriptor)) as made:
            os.write(made.descriptor, b"content")
            assert not new.exists()
            made.publish()
    finally:
        os.close(descriptor)
    assert sorted(path.name for path in base.parent.iterdir()) == [base.name, "new"]
    return new.stat()


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660, 0o666, 0o400])
def test_mode(mode: int, tmp_path: pathlib.Path) -> None:
    base = tmp_path / "base"
    base.touch()
    base.chmod(mode)
    assert like(base).st_mode & 0o7777 == mode


def test_no_right_to_execute(tmp_path: pathlib.Path) -> None:
    base = tmp_path / "base"
    base.touch()
    base.chmod(0o755)
    assert like(base).st_mode & 0o7777 == 0o644


@needs_root
def test_owner_and_group(tmp_path: pathlib.Path) -> None:
    base = tmp_path / "base"
    base.touch()
    base.chmod(0o660)
    os.chown(base, 20000, 20001)
    status = like(base)
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (20000, 20001, 0o660)


def test_who_may_not_give_files_away(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group that gets the file is not the one that was meant: it gets no rights."""

    def refuse(_descriptor: int, _owner: int, _group: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    base = tmp_path / "base"
    base.touch()
    base.chmod(0o664)
    monkeypatch.setattr(drafts.os, "fchown", refuse)
    assert like(base).st_mode & 0o777 == 0o604


def set_attribute(path: pathlib.Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip("this file system knows no ACLs")


@needs_root
def test_acl_of_the_base(tmp_path: pathlib.Path) -> None:
    base = tmp_path / "base"
    base.touch()
    set_attribute(base, ACL, GUEST_MAY_READ)
    like(base)
    assert os.getxattr(tmp_path / "new", ACL) == os.getxattr(base, ACL)


@needs_root
def test_acl_on_a_file_system_without(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group's bits of the mode are the ACL's mask: without the ACL they would let the group in."""

    def refuse(_descriptor: int, _name: str, _value: bytes) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    base = tmp_path / "base"
    base.touch()
    set_attribute(base, ACL, GUEST_MAY_READ)
    assert base.stat().st_mode & 0o777 == 0o640
    monkeypatch.setattr(drafts.os, "setxattr", refuse)
    assert like(base).st_mode & 0o777 == 0o600


@needs_root
def test_acl_that_the_directory_gives_to_new_files(tmp_path: pathlib.Path) -> None:
    base = tmp_path / "base"
    base.touch()
    base.chmod(0o600)
    set_attribute(tmp_path, DEFAULT_ACL, ALL_MAY_WRITE)
    assert like(base).st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(tmp_path / "new", ACL)


def test_label(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the system lets us; on this one a label may be set to nothing that it knows."""
    given: list[tuple[str, bytes]] = []

    def getxattr(_descriptor: int, name: str) -> bytes:
        if name == "security.selinux":
            return b"system_u:object_r:svirt_image_t:s0:c1,c2\0"
        raise OSError(errno.ENODATA, "none")

    monkeypatch.setattr(drafts.os, "getxattr", getxattr)
    monkeypatch.setattr(drafts.os, "setxattr", lambda _descriptor, name, value: given.append((name, value)))
    base = tmp_path / "base"
    base.touch()
    like(base)
    assert given == [("security.selinux", b"system_u:object_r:svirt_image_t:s0:c1,c2\0")]


def test_a_directory_that_is_exchanged_for_a_link(tmp_path: pathlib.Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    with find_place(str(home / "new")) as place, Draft(place, Access()) as made:
        home.rename(tmp_path / "away")
        home.symlink_to(elsewhere)
        made.publish()
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in (tmp_path / "away").iterdir()] == ["new"]


def test_nothing_is_replaced(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "new").symlink_to(target)
    with find_place(str(tmp_path / "other")) as place, Draft(place, Access()) as made:
        place.name = b"new"
        with pytest.raises(errors.ImageOpenError) as caught:
            made.publish()
    assert caught.value.code == "exists"
    assert target.read_text() == "precious"
