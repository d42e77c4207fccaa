# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""trusted_file: what is believed, what is not, and that a group of files is written whole or not at all."""

from __future__ import annotations

import fcntl
import os
import pathlib
import stat
import typing as t

import pytest

Run = t.Callable[..., dict[str, t.Any]]
TENANT = 12345
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory of ours, with a file of ours."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    (path / "file").write_text("ours")
    (path / "file").chmod(0o600)
    return path


@pytest.fixture
def task(run_module: Run) -> Run:
    def run(state: str, *paths: t.Any, content: str | None = None, check: bool = False) -> dict[str, t.Any]:
        more = {} if content is None else {"content": content}
        files = [{"path": str(path), **more} for path in paths]
        return run_module("trusted_file", files=files, state=state, check=check, diff=True)

    return run


def everything(top: pathlib.Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, owner and content of all that is there."""
    found = {}
    for path in sorted([top, *top.rglob("*")]):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_uid, path.read_bytes() if path.is_file() else b"")
    return found


def test_what_was_written_is_read(task: Run, home: pathlib.Path) -> None:
    path = home / "a" / "{{ b }}" / "$HOME\n~"
    assert task("read", path)["files"] == [{"path": str(path), "exists": False, "content": ""}]
    foreseen = task("present", path, content="é\n", check=True)
    assert not (home / "a").exists()
    written = task("present", path, content="é\n")
    assert written["changed"]
    assert foreseen["diff"] == written["diff"]
    assert path.read_text(encoding="utf-8") == "é\n"
    assert [path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777] == [0o600, 0o700]
    assert os.listdir(path.parent) == [path.name]
    assert task("read", path)["files"] == [{"path": str(path), "exists": True, "content": "é\n"}]
    assert not task("present", path, content="é\n")["changed"]
    assert task("absent", path)["changed"]
    assert not path.exists()
    assert not task("absent", path)["changed"]


def test_nothing_in_a_diff_acts_on_a_terminal(task: Run, home: pathlib.Path) -> None:
    """The content of a file is what it is; what is shown of it has its lines, and nothing that cannot be printed."""
    content = "a\n\x1b[31m\x9b\u202e\r\n"
    written = task("present", home / "file", content=content)
    assert (home / "file").read_bytes().decode() == written["files"][0]["content"] == content
    (diff,) = written["diff"]
    assert (diff["before"], diff["after"]) == ("ours", "a\n\ufffd[31m\ufffd\ufffd\ufffd\n")


def test_the_draft_of_a_run_that_was_killed_is_replaced(task: Run, home: pathlib.Path) -> None:
    (home / ".airlock.draft").write_text("half")
    assert task("present", home / "file", content="new")["changed"]
    assert everything(home).keys() == {str(home), str(home / "file")}
    assert (home / "file").read_text() == "new"


def test_nobody_else_can_hold_the_lock(task: Run, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may read a directory can lock it, and root would wait for him for good."""
    locked = []
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        locked.append(stat.filemode(os.fstat(descriptor).st_mode))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    home.chmod(0o755)
    task("present", home / "file", content="new")
    task("absent", home / "file")
    assert locked == ["-rw-------"]


def test_a_draft_that_another_run_has_given_its_name(
    task: Run, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While this one waited for the lock: what is written goes into a draft of its own."""
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        (home / ".airlock.draft").rename(home / "of another run")

    monkeypatch.setattr(fcntl, "flock", flock)
    task("present", home / "file", content="new")
    assert (home / "file").read_text() == "new"
    assert (home / "of another run").read_text() == ""
    assert sorted(os.listdir(home)) == ["file", "of another run"]


def others_may_write_the_file(home: pathlib.Path) -> None:
    (home / "file").chmod(0o620)


def others_may_write_the_directory(home: pathlib.Path) -> None:
    home.chmod(0o770)


def everybody_may_make_files_beside_it(home: pathlib.Path) -> None:
    home.chmod(0o1777)


def others_may_write_the_directory_above(home: pathlib.Path) -> None:
    home.parent.chmod(0o702)


def it_is_a_link(home: pathlib.Path) -> None:
    (home / "file").rename(home / "other")
    (home / "file").symlink_to("other")


def it_lies_behind_a_link_into_a_directory_of_everybody(home: pathlib.Path) -> None:
    aside = home.parent / "aside"
    (aside / "deep").mkdir(parents=True)
    home.rename(aside / "deep" / "home")
    aside.chmod(0o777)
    home.symlink_to("aside/deep/home")


def the_file_belongs_to_a_tenant(home: pathlib.Path) -> None:
    os.chown(home / "file", TENANT, -1)


def the_directory_belongs_to_a_tenant(home: pathlib.Path) -> None:
    os.chown(home, TENANT, -1)


def the_directory_above_belongs_to_a_tenant(home: pathlib.Path) -> None:
    os.chown(home.parent, TENANT, -1)


def the_link_to_it_belongs_to_a_tenant(home: pathlib.Path) -> None:
    home.rename(home.parent / "aside")
    home.symlink_to("aside")
    os.chown(home, TENANT, -1, follow_symlinks=False)


def a_link_of_several_names_leads_to_it_from_a_directory_of_everybody(home: pathlib.Path) -> None:
    """As where fs.protected_hardlinks is 0: the link is root's, and a tenant has made its second name."""
    top = home.parent
    home.rename(top / "aside")
    (top / "link").symlink_to(top / "aside")
    (top / "everybody").mkdir()
    (top / "everybody").chmod(0o1777)
    os.link(top / "link", top / "everybody" / "link", follow_symlinks=False)
    home.symlink_to("everybody/link")


UNTRUSTED: list[t.Any] = [
    a_link_of_several_names_leads_to_it_from_a_directory_of_everybody,
    others_may_write_the_file,
    others_may_write_the_directory,
    everybody_may_make_files_beside_it,
    others_may_write_the_directory_above,
    it_is_a_link,
    it_lies_behind_a_link_into_a_directory_of_everybody,
    pytest.param(the_file_belongs_to_a_tenant, marks=NEEDS_ROOT),
    pytest.param(the_directory_belongs_to_a_tenant, marks=NEEDS_ROOT),
    pytest.param(the_directory_above_belongs_to_a_tenant, marks=NEEDS_ROOT),
    pytest.param(the_link_to_it_belongs_to_a_tenant, marks=NEEDS_ROOT),
]


@pytest.mark.parametrize("state", ["read", "present", "absent"])
@pytest.mark.parametrize("spoil", UNTRUSTED)
def test_what_others_could_have_written_is_refused(
    task: Run, home: pathlib.Path, spoil: t.Callable[[pathlib.Path], None], state: str
) -> None:
    spoil(home)
    before = everything(home.parent)
    for check in (True, False):
        answer = task(state, home / "file", content="new" if state == "present" else None, check=check)
        assert (answer["rc"], answer["error_code"]) == (1, "untrusted"), answer
        assert str(home / "file") in answer["msg"]
        assert everything(home.parent) == before


def test_what_others_could_make_is_not_said_to_be_missing(task: Run, home: pathlib.Path) -> None:
    """Who goes by that works on what a tenant has put there meanwhile. To make it is no such thing."""
    (home / "shared").mkdir()
    (home / "shared").chmod(0o1777)
    before = everything(home)
    for state in ("read", "absent"):
        for check in (True, False):
            answer = task(state, home / "shared/new/deep/file", check=check)
            assert answer["error_code"] == "untrusted"
            assert "Make it first" in answer["msg"]
    assert task("present", home / "shared/new/deep/file", content="x", check=True)["changed"]
    assert everything(home) == before
    assert task("present", home / "shared/new/deep/file", content="x")["changed"]
    assert task("read", home / "shared/new/deep/file")["files"][0]["content"] == "x"
    assert not task("read", home / "shared/new/none/file")["files"][0]["exists"]


def test_a_link_in_directories_of_ours_is_followed(task: Run, home: pathlib.Path) -> None:
    (home.parent / "link").symlink_to(f"{home}/")
    (home.parent / "chain").symlink_to("../" + home.parent.name + "/link")
    os.link(home.parent / "chain", home.parent / "another name of it", follow_symlinks=False)
    assert task("read", home.parent / "chain" / "file")["files"][0]["content"] == "ours"


def test_a_loop_of_links_ends(task: Run, home: pathlib.Path) -> None:
    (home / "loop").symlink_to("loop")
    assert task("read", home / "loop" / "file")["error_code"] == "bad_path"


def test_all_files_or_none(task: Run, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third of four cannot be renamed to its place: the first gets its old content back, the second goes again."""
    before = everything(home)
    rename = os.replace

    def fail(source: t.Any, target: bytes, **more: t.Any) -> None:
        if target == b"third":
            raise OSError(28, "")
        rename(source, target, **more)

    monkeypatch.setattr(os, "replace", fail)
    answer = task("present", home / "file", home / "new" / "second", home / "third", home / "last", content="new")
    assert (answer["rc"], answer["error_code"]) == (1, "host")
    assert answer["msg"].startswith(str(home / "third"))
    after = everything(home)
    assert after.keys() == before.keys()
    assert after == before


def test_what_is_put_back_takes_no_room(task: Run, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind two files the disk is full, which others may have seen to; the mode comes back as well."""
    (home / "file").chmod(0o644)
    before = everything(home)
    names = [home / "file", home / "second", home / "third"]
    drafts: list[object] = []
    make = os.open

    def fill(path: t.Any, *arguments: t.Any, **more: t.Any) -> int:
        if path == ".airlock.draft":
            drafts.append(path)
            if len(drafts) > 2:
                raise OSError(28, "")
        return make(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fill)
        answer = task("present", *names, content="new")
    assert (answer["rc"], answer["error_code"]) == (1, "host")
    assert answer["msg"].endswith("No file was changed.")
    assert everything(home) == before
    assert task("present", *names, content="new")["rc"] == 0
    assert sorted(home.iterdir()) == names


def test_what_cannot_be_put_back_is_told(task: Run, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.replace

    def fail(source: t.Any, target: bytes, **more: t.Any) -> None:
        if target == b"second" or source != ".airlock.draft":
            raise OSError(5, "")
        rename(source, target, **more)

    monkeypatch.setattr(os, "replace", fail)
    answer = task("present", home / "file", home / "second", content="new")
    assert (answer["rc"], answer["error_code"]) == (1, "transaction")
    assert f"could not be put back: {home / 'file'} (Input/output error)" in answer["msg"]
    assert "No file was changed" not in answer["msg"]


def test_a_name_that_is_too_long_is_known_before(task: Run, home: pathlib.Path) -> None:
    before = everything(home)
    for check in (True, False):
        answer = task("present", home / "file", home / ("n" * 256), content="new", check=check)
        assert (answer["rc"], answer["error_code"]) == (1, "host")
        assert everything(home) == before


@pytest.mark.parametrize("paths", [["file"], ["/"], ["/tmp/.."], ["/tmp/a", "/tmp//a"]])
def test_paths_that_cannot_be(task: Run, paths: list[str]) -> None:
    assert task("read", *paths)["error_code"] == "bad_path"


def test_no_content(task: Run, home: pathlib.Path) -> None:
    answer = task("present", home / "file")
    assert "files[].content is missing" in answer["msg"]
    assert (home / "file").read_text() == "ours"
