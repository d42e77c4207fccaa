# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file that somebody named is looked up once, and no stranger's link leads the way."""

from __future__ import annotations

import os
import pathlib
import subprocess
import typing as t

import pytest

from sandbox import errors
from sandbox.host import places
from sandbox.host.places import Place, directory_at, file_key, find_place, look_up

TENANT, VICTIM = 12345, 20000

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users, which needs root")


pytestmark = pytest.mark.usefixtures("no_descriptor_left")


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """Directories of the tenant, of the victim and of the caller, each with a file `disk`."""
    for name in ("tenant", "tenant/vm", "tenant/other", "victim", "own", "own/sub"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "disk").write_text(name)
    if os.geteuid() == 0:
        for name, owner in (("tenant", TENANT), ("victim", VICTIM)):
            for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
                os.chown(path, owner, owner)
    return tmp_path


def content(place: Place) -> str:
    return pathlib.Path(f"/proc/self/fd/{place.handle}").read_text()


def link(path: pathlib.Path, target: object, owner: int | None = None) -> pathlib.Path:
    path.symlink_to(str(target))
    if owner is not None:
        os.chown(path, owner, owner, follow_symlinks=False)
    return path


def code_of(path: object, **options: t.Any) -> str:
    with pytest.raises(errors.ImageOpenError) as caught:
        find_place(os.fspath(path), **options)  # type: ignore[arg-type]
    assert os.fspath(path) in caught.value.message  # type: ignore[operator]
    return caught.value.code


# ---- where it is ----------------------------------------------------------------------------------------


def test_the_directory_the_name_and_the_file(tree: pathlib.Path) -> None:
    with find_place(str(tree / "own/sub/disk")) as place:
        assert place.there
        assert place.key == file_key(os.stat(tree / "own/sub/disk"))
        assert (place.name, place.linked, place.named) == (b"disk", False, True)
        assert content(place) == "own/sub"
        assert place.directory.paths[0] == tuple(os.fsencode(tree / "own/sub").split(b"/")[1:])
        assert os.path.samestat(os.fstat(place.directory.descriptor), os.stat(tree / "own/sub"))


@pytest.mark.parametrize("path", ["own/sub/disk", "./own//sub/./disk", "own/../own/sub/disk", "own/sub/../sub/disk"])
def test_spellings(path: str, tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    with find_place(path) as relative, find_place(f"{tree}/{path}") as absolute:
        assert content(relative) == content(absolute) == "own/sub"
        assert relative.directory.paths[0] == absolute.directory.paths[0]
        assert relative.path == path


def test_a_file_that_is_not_there_yet(tree: pathlib.Path) -> None:
    with find_place(str(tree / "own/new")) as place:
        assert (place.there, place.key, place.name) == (False, None, b"new")
        (tree / "own/new").write_text("now")
        with place.again() as again, place.anew() as anew:
            assert not again.there
            assert (content(anew), anew.path, anew.directory.paths[0]) == ("now", place.path, place.directory.paths[0])


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("", "not_found"),
        ("own/nothing/disk", "not_found"),
        ("own/nothing/", "not_found"),
        ("own/disk/", "not_found"),
        ("own/disk/.", "not_found"),
        ("own/disk/x", "not_found"),
        ("own/" + "x" * 256, "name_too_long"),
        ("a\0b", "not_found"),
    ],
)
def test_no_such_place(path: str, code: str, tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(errors.ImageOpenError) as caught:
        find_place(path)
    assert caught.value.code == code


def test_a_path_from_an_open_directory(tree: pathlib.Path) -> None:
    with (
        find_place(str(tree / "own")) as own,
        directory_at(own) as home,
        find_place("sub/disk", start=home) as below,
        find_place("../own/disk", start=home) as beside,
        find_place(str(tree / "victim/disk"), start=home) as absolute,
    ):
        assert [content(place) for place in (below, beside, absolute)] == ["own/sub", "own", "victim"]
        assert below.path == f"{tree}/own/sub/disk"


def test_behind_a_link_the_home_is_where_the_file_is(tree: pathlib.Path) -> None:
    link(tree / "own/way", "sub")
    link(tree / "own/last", "way/disk")
    with find_place(str(tree / "own/last")) as place:
        assert (content(place), place.name, place.linked) == ("own/sub", b"disk", True)
        assert place.directory.shown == f"{tree}/own/sub"
        assert os.path.samestat(os.fstat(place.directory.descriptor), os.stat(tree / "own/sub"))
    with find_place(str(tree / "own/way/disk")) as place:
        assert not place.linked


def test_a_link_to_nothing_is_a_link(tree: pathlib.Path) -> None:
    link(tree / "own/dangling", "sub/new")
    with find_place(str(tree / "own/dangling")) as place:
        assert (place.there, place.linked, place.name) == (False, True, b"new")


def test_links_in_a_circle(tree: pathlib.Path) -> None:
    link(tree / "own/round", "round")
    assert code_of(tree / "own/round") == "symlink_loop"
    assert code_of(tree / "own/round/disk") == "symlink_loop"


@pytest.mark.parametrize("name", ["/proc/self/fd/{}", "/dev/fd/{}"])
def test_the_kernels_own_links_have_no_text_to_go_by(name: str, tree: pathlib.Path) -> None:
    """What a descriptor leads to may have no name at all."""
    with open(tree / "own/disk") as file:
        (tree / "own/disk").unlink()
        with find_place(name.format(file.fileno())) as place:
            assert content(place) == "own"
    with find_place(f"/proc/self/root{tree}/own/sub/disk") as place:
        assert content(place) == "own/sub"


# ---- after it was looked up -------------------------------------------------------------------------------


def test_a_directory_that_is_exchanged_afterwards(tree: pathlib.Path) -> None:
    """Removing, and looking again, stay in the directory that was found."""
    with find_place(str(tree / "own/sub/disk")) as place, find_place(str(tree / "own/sub/new")) as new:
        (tree / "own/sub").rename(tree / "own/away")
        link(tree / "own/sub", tree / "victim")
        (tree / "victim/new").write_text("not this")
        with new.anew() as anew:
            assert not anew.there
        place.remove()
    assert not (tree / "own/away/disk").exists()
    assert (tree / "victim/disk").read_text() == "victim"


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_another_file_in_its_place_is_not_removed(kind: str, tree: pathlib.Path) -> None:
    with find_place(str(tree / "own/disk")) as place:
        (tree / "own/disk").rename(tree / "own/old")
        if kind == "file":
            (tree / "own/disk").write_text("another")
        elif kind == "link":
            link(tree / "own/disk", "old")
        else:
            (tree / "own/disk").mkdir()
        with pytest.raises(errors.ArgumentError) as caught:
            place.remove()
    assert caught.value.code == "overlay_replaced"
    assert os.path.lexists(tree / "own/disk")
    assert (tree / "own/old").read_text() == "own"


def test_what_is_gone_cannot_be_removed(tree: pathlib.Path) -> None:
    with find_place(str(tree / "own/disk")) as place:
        (tree / "own/disk").unlink()
        with pytest.raises(errors.ImageOpenError) as caught:
            place.remove()
    assert caught.value.code == "not_found"


# ---- links of strangers -----------------------------------------------------------------------------------


# Where the link is, who made it, what it leads to, and whether it may.
STRANGERS: dict[str, tuple[str, int, str, bool]] = {
    "the tenant's, to his own file": ("tenant/vm/x", TENANT, "tenant/other/disk", True),
    "the tenant's, to his own file, relative": ("tenant/vm/x", TENANT, "../other/disk", True),
    "the tenant's, to another's file": ("tenant/vm/x", TENANT, "victim/disk", False),
    "the tenant's, to the caller's file": ("tenant/vm/x", TENANT, "own/disk", False),
    "the tenant's, to nothing of another's": ("tenant/vm/x", TENANT, "victim/new", False),
    "the tenant's, to nothing of his": ("tenant/vm/x", TENANT, "tenant/other/new", True),
    "made by the caller, in the tenant's directory": ("tenant/vm/x", 0, "own/disk", False),
    "the tenant's, to the root directory": ("tenant/vm/x", TENANT, "/", False),
    "the caller's, to the tenant's file": ("own/x", 0, "tenant/vm/disk", True),
    "the tenant's, in the caller's directory, that he may not write": ("own/x", TENANT, "victim/disk", True),
}


def _target(tree: pathlib.Path, target: str) -> str:
    return target if target.startswith(("/", "..")) else f"{tree}/{target}"


@needs_root
@pytest.mark.parametrize("case", STRANGERS)
def test_links_of_strangers(case: str, tree: pathlib.Path) -> None:
    where, owner, target, allowed = STRANGERS[case]
    path = link(tree / where, _target(tree, target), owner)
    if allowed:
        find_place(str(path)).close()
    else:
        assert code_of(path) == "unsafe_link"
    find_place(str(path), follow_links=True).close()


@needs_root
@pytest.mark.parametrize("case", [name for name in STRANGERS if "nothing" not in name])
def test_links_of_strangers_on_the_way(case: str, tree: pathlib.Path) -> None:
    """The directory that the path goes through is the link."""
    where, owner, target, allowed = STRANGERS[case]
    path = link(tree / where, os.path.dirname(_target(tree, target)) or "/", owner)
    name = "disk" if target != "/" else "etc"
    if allowed:
        find_place(str(path / name)).close()
    else:
        assert code_of(path / name) == "unsafe_link"


@needs_root
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_directory_that_others_may_write(mode: int, tree: pathlib.Path) -> None:
    """There a link stands for who made it."""
    (tree / "own").chmod(mode)
    assert code_of(link(tree / "own/x", tree / "victim/disk", TENANT)) == "unsafe_link"
    find_place(str(link(tree / "own/y", tree / "tenant/disk", TENANT))).close()
    find_place(str(link(tree / "own/z", tree / "victim/disk", 0))).close()


@needs_root
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_strangers_directory_that_others_may_write(mode: int, tree: pathlib.Path) -> None:
    """As a pool of images that belongs to who runs the machines: a link there can be of a third one, who has no right
    to what its owner has elsewhere, and the owner none to his."""
    pool = tree / "victim"
    pool.chmod(mode)
    (tree / "own/sub/disk").unlink()
    (tree / "own/sub/disk").write_text("the victim's")
    for path in (tree / "own/sub", tree / "own/sub/disk"):
        os.chown(path, VICTIM, VICTIM)
    for name, target in (("x", tree / "own/sub/disk"), ("y", "disk"), ("z", tree / "tenant/disk")):
        assert code_of(link(pool / name, target, TENANT)) == "unsafe_link"
    assert code_of(link(pool / "on-the-way", tree / "own/sub", TENANT) / "disk") == "unsafe_link"
    find_place(str(link(pool / "its-owners", tree / "own/sub/disk", VICTIM))).close()
    find_place(str(link(pool / "the-callers", tree / "own/sub/disk", 0))).close()
    os.link(tree / "own/sub/disk", pool / "hard")
    assert code_of(pool / "hard") == "unsafe_link"


@needs_root
@pytest.mark.parametrize("home", ["own", "tenant"])
@pytest.mark.parametrize("owner", [0, TENANT, VICTIM])
def test_a_hard_link_to_a_symbolic_link(owner: int, home: str, tree: pathlib.Path) -> None:
    """As where fs.protected_hardlinks is 0. It is its owner's, and who has put it there is not known."""
    target = {0: "own/sub/disk", TENANT: "tenant/vm/disk", VICTIM: "victim/disk"}[owner]
    (tree / "links").mkdir()
    link(tree / "links/current", tree / target, owner)
    (tree / home).chmod(0o1777)
    os.link(tree / "links/current", tree / home / "x", follow_symlinks=False)
    assert code_of(tree / home / "x") == "unsafe_link"
    find_place(str(tree / home / "x"), follow_links=True).close()
    find_place(str(tree / "links/current")).close()


@needs_root
def test_a_strangers_link_to_a_strangers_link(tree: pathlib.Path) -> None:
    """The last of them decides, and each has to hold."""
    link(tree / "tenant/vm/one", "two", TENANT)
    link(tree / "tenant/vm/two", tree / "victim/disk", TENANT)
    assert code_of(tree / "tenant/vm/one") == "unsafe_link"
    link(tree / "tenant/vm/three", f"{tree}/own/back", TENANT)
    link(tree / "own/back", tree / "tenant/disk")
    find_place(str(tree / "tenant/vm/three")).close()


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_strangers_link_does_not_choose_whose_files_are_beside_the_image(mode: int, tree: pathlib.Path) -> None:
    """As from his directory to /tmp: the file is his, and names in it would start among the files of others there."""
    (tree / "own").chmod(mode)
    (tree / "own/his").write_text("his")
    os.chown(tree / "own/his", TENANT, TENANT)
    find_place(str(tree / "own/his")).close()
    assert code_of(link(tree / "tenant/vm/x", tree / "own/his", TENANT)) == "unsafe_link"
    (tree / "own/sub/his").mkdir()
    os.link(tree / "own/his", tree / "own/sub/his/disk")
    os.chown(tree / "own/sub/his", TENANT, TENANT)
    with find_place(str(link(tree / "tenant/vm/y", tree / "own/sub/his", TENANT) / "disk")) as place:
        assert content(place) == "his"


@needs_root
def test_a_way_up_behind_a_strangers_link(tree: pathlib.Path) -> None:
    """What counts is where the link's own text ends, not where it has been."""
    path = link(tree / "tenant/vm/x", "../../victim/../tenant/other", TENANT)
    with find_place(str(path / "disk")) as place:
        assert content(place) == "tenant/other"
    assert code_of(link(tree / "tenant/vm/y", "../../victim", TENANT) / "disk") == "unsafe_link"


# ---- the way up -----------------------------------------------------------------------------------------


@pytest.fixture
def shared(tree: pathlib.Path) -> pathlib.Path:
    """A directory where anybody may make files, as /tmp, with a file of the victim's, and one of the tenant's."""
    path = tree / "shared"
    path.mkdir()
    path.chmod(0o1777)
    for name, owner in (("disk", VICTIM), ("his", TENANT)):
        (path / name).write_text(f"shared {name}")
        os.chown(path / name, owner, owner)
    return path


@needs_root
@pytest.mark.parametrize("kind", ["absolute", "relative", "from an open directory"])
def test_a_directory_that_is_moved_while_the_way_is_in_it(
    kind: str, tree: pathlib.Path, shared: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way up leads to where the way has come from, not to what is above the directory now."""
    real = places._open_there

    def open_there(name: bytes, directory: int) -> int:
        handle = real(name, directory)
        if name == b"vm":
            os.rename(tree / "tenant/vm", shared / "vm")
        return handle

    monkeypatch.setattr(places, "_open_there", open_there)
    monkeypatch.chdir(tree / "tenant")
    if kind == "from an open directory":
        with (
            find_place(str(tree / "tenant")) as tenant,
            directory_at(tenant) as home,
            find_place("vm/../disk", start=home) as place,
        ):
            assert content(place) == "tenant"
        return
    with find_place("vm/../disk" if kind == "relative" else f"{tree}/tenant/vm/../disk") as place:
        assert content(place) == "tenant"
        assert place.directory.paths[0] == tuple(os.fsencode(tree / "tenant").split(b"/")[1:])


@needs_root
@pytest.mark.parametrize(("below", "up"), [("", ".."), ("/sub", "../..")])
def test_a_working_directory_that_was_moved(
    below: str, up: str, tree: pathlib.Path, shared: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "tenant/vm/sub").mkdir()
    os.chown(tree / "tenant/vm/sub", TENANT, TENANT)
    monkeypatch.chdir(f"{tree}/tenant/vm{below}")
    with find_place(f"{up}/disk") as place:
        assert content(place) == "tenant"
    os.rename(tree / "tenant/vm", shared / "vm")
    assert code_of(f"{up}/disk") == "unsafe_link"
    assert code_of(f"{up}/new") == "unsafe_link"
    assert code_of(f"{up}/his") == "unsafe_link"  # names in it would start among the files of others
    for name in ("his", "disk"):
        with find_place(f"{up}/{name}", follow_links=True) as followed:
            assert content(followed) == f"shared {name}"


def test_the_way_up_from_the_root_and_from_what_the_kernel_links_to(
    tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree / "own/sub")
    for path in ("../disk", f"/../..{tree}/own/disk", "/proc/self/cwd/../disk", "../../own/sub/../disk"):
        with find_place(path) as place:
            assert (content(place), place.name) == ("own", b"disk")
            assert place.directory.paths[0] == tuple(os.fsencode(tree / "own").split(b"/")[1:])


@needs_root
@pytest.mark.parametrize("where", ["a stranger's directory", "one that others may write", "the way to a base"])
def test_hard_links_of_strangers(where: str, tree: pathlib.Path) -> None:
    """As where fs.protected_hardlinks is 0. The name says nothing of whose the file is."""
    home = tree / ("own" if where == "one that others may write" else "tenant/vm")
    (tree / "own").chmod(0o1777)
    os.link(tree / "victim/disk", home / "x")
    with find_place(str(home)) as place, directory_at(place) as start:
        if where == "the way to a base":
            with pytest.raises(errors.ImageOpenError):
                find_place("x", start=start)
        else:
            assert code_of(home / "x") == "unsafe_link"
    find_place(str(home / "x"), follow_links=True).close()
    (tree / "victim/disk").unlink()
    find_place(str(home / "x")).close()


@needs_root
def test_a_hard_link_in_the_place_of_what_was_not_there(tree: pathlib.Path) -> None:
    """Who makes it behind the look-up has not got round the rules."""
    with find_place(str(tree / "tenant/vm/new")) as place:
        os.link(tree / "victim/disk", tree / "tenant/vm/new")
        with place.again() as again:
            assert not again.there
        with pytest.raises(errors.ImageOpenError) as caught:
            place.anew()
        assert caught.value.code == "unsafe_link"


@needs_root
def test_hard_links_that_nobody_else_has_made(tree: pathlib.Path) -> None:
    os.link(tree / "tenant/disk", tree / "tenant/vm/backup")
    find_place(str(tree / "tenant/vm/backup")).close()
    os.link(tree / "victim/disk", tree / "own/backup")
    find_place(str(tree / "own/backup")).close()


@needs_root
def test_a_strangers_process_is_no_way(tree: pathlib.Path) -> None:
    """It may have mounted anybody's file in his directory, where only it sees that, and the directory is his."""
    with subprocess.Popen(["sleep", "60"], cwd=tree / "tenant/vm", user=TENANT, group=TENANT) as process:
        try:
            here = f"/proc/{process.pid}"
            assert code_of(f"{here}/cwd/disk") == "unsafe_link"
            assert code_of(link(tree / "tenant/x", f"{here}/cwd", TENANT) / "disk") == "unsafe_link"
            assert code_of(link(tree / "tenant/y", here, TENANT) / "cwd/disk") == "unsafe_link"
            assert code_of(link(tree / "tenant/z", "/proc/self/root", TENANT) / "bin") == "unsafe_link"
            with find_place(str(tree / "tenant/x/disk"), follow_links=True) as place:
                assert content(place) == "tenant/vm"
        finally:
            process.kill()


@needs_root
def test_the_words(tree: pathlib.Path) -> None:
    path = link(tree / "tenant/vm/x", tree / "victim/disk", TENANT)
    with pytest.raises(errors.ImageOpenError) as caught:
        find_place(str(path))
    assert "follow_links" in caught.value.message
    assert "victim" not in caught.value.message
    with pytest.raises(OSError, match="leads to what another one owns"):
        look_up(str(path))
