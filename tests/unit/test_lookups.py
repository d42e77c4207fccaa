# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A file that somebody named is looked up once, in sandbox/host/places.py: nothing else goes by a path.

Who owns a directory on the way may exchange it between two look-ups. So each call that takes a path is either made
relative to an open directory, or to a descriptor, or its path is the kernel's or Python's own, and stands here.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

TOP = pathlib.Path(__file__).parents[2]
SOURCES = sorted(
    path
    for room in ("sandbox", "plugins")
    for path in (TOP / room).rglob("*.py")
    if not path.is_symlink() and not path.name.startswith("_guest_")
)

OF_OS = {
    *("access", "chdir", "chmod", "chown", "chroot", "getxattr", "lchown", "link", "listdir", "listxattr", "lstat"),
    *("makedirs", "mkdir", "mkfifo", "mknod", "open", "pathconf", "readlink", "remove", "removedirs", "removexattr"),
    *("rename", "renames", "replace", "rmdir", "scandir", "setxattr", "stat", "statvfs", "symlink", "truncate"),
    *("unlink", "utime", "walk", "fwalk"),
}
OF_OS_PATH = {
    *("exists", "getatime", "getctime", "getmtime", "getsize", "isdir", "isfile", "islink", "ismount", "lexists"),
    *("realpath", "samefile"),
}
MODULES = {"glob", "pathlib", "shutil", "tempfile"}
DESCRIPTORS = {"descriptor", "listed"}  # what a descriptor is called where it is given in the place of a path

# (file, function, call): why its path cannot be exchanged by anybody but root.
KNOWN = {
    ("plugins/lookup/role_variables.py", "_specification", "open"): "a file of a role, on the control node",
    ("plugins/module_utils/_module/trusted_file.py", "_directory", "os.open"): "the root directory",
    ("sandbox/host/drafts.py", "__init__", "os.path.isdir"): "/proc/self/fd: whether there is a /proc",
    ("sandbox/host/drafts.py", "publish", "os.open"): "/proc/self/fd",
    ("sandbox/host/holders.py", "_entries", "os.listdir"): "/proc, and a process's descriptors there",
    (
        "sandbox/vmm/journal.py",
        "_unlinked_file",
        "tempfile.TemporaryFile",
    ): "a file without a name, where Python puts it",
    ("sandbox/vmm/kvm.py", "open_device", "os.open"): "/dev/kvm",
    ("sandbox/host/places.py", "go", "os.open"): "the working directory, where the one look-up starts",
    ("sandbox/host/places.py", "_start_at_root", "os.open"): "the root directory",
}


def calls(path: pathlib.Path) -> Iterator[tuple[str, str, ast.Call]]:
    """(function it stands in, what is called, the call) for every call by a path."""
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                owner, _dot, last = name.rpartition(".")
                if (
                    name == "open"
                    or (owner == "os" and last in OF_OS)
                    or (owner == "os.path" and last in OF_OS_PATH)
                    or owner.partition(".")[0] in MODULES
                ):
                    yield function.name, name, node


def is_below_a_descriptor(call: ast.Call) -> bool:
    if any(keyword.arg in ("dir_fd", "src_dir_fd") for keyword in call.keywords):
        return True
    first = call.args[0] if call.args else None
    return isinstance(first, ast.Name) and first.id in DESCRIPTORS


def is_the_kernels(call: ast.Call) -> bool:
    """A path that begins with /proc/, as it stands there."""
    first = call.args[0] if call.args else None
    if isinstance(first, ast.JoinedStr):
        first = first.values[0]
    return isinstance(first, ast.Constant) and str(first.value).startswith("/proc/")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_no_file_is_looked_up_by_a_path(path: pathlib.Path) -> None:
    file = str(path.relative_to(TOP))
    for function, name, call in calls(path):
        assert is_below_a_descriptor(call) or is_the_kernels(call) or (file, function, name) in KNOWN, (
            f"{file}:{call.lineno}: {function}() calls {name}() with a path. "
            "Go through a Place of sandbox/host/places.py."
        )


def test_the_list_has_nothing_that_is_gone() -> None:
    found = {
        (str(path.relative_to(TOP)), function, name)
        for path in SOURCES
        for function, name, call in calls(path)
        if not is_below_a_descriptor(call) and not is_the_kernels(call)
    }
    assert set(KNOWN) <= found


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("os.open(path, flags)", False),
        ("os.open(name, flags, dir_fd=home)", True),
        ("os.path.realpath(path)", False),
        ("os.path.join(a, b)", True),
        ("open(path)", False),
        ("open(f'/proc/{pid}/comm')", True),
        ("os.replace(a, b)", False),
        ("os.replace(a, b, src_dir_fd=home, dst_dir_fd=home)", True),
        ("pathlib.Path(path).unlink()", False),
        ("shutil.rmtree(path)", False),
        ("os.stat(f'{path}/x')", False),
        ("os.listdir(listed)", True),
    ],
)
def test_what_the_test_sees(source: str, allowed: bool, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "source.py"
    path.write_text(f"def function():\n    {source}\n")
    found = [call for _function, _name, call in calls(path)]
    assert all(is_below_a_descriptor(call) or is_the_kernels(call) for call in found) == allowed
