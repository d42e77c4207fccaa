# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The limit of open files: raised where that can be done, and told before anything is opened where it is too low."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import typing as t

import pytest

from sandbox import errors
from sandbox.host import descriptors
from sandbox.words import advice
from tests.support.chain_images import overlay, raw

pytestmark = pytest.mark.kvm

TOP = pathlib.Path(__file__).parents[3]


def limited(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[tuple[int, int]]:
    """The limits are said to be these; what is set."""
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _limit: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _limit, wanted: limits.append(wanted))
    return limits


def test_the_soft_limit_becomes_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = limited(monkeypatch, 1024, 4096)
    descriptors.raise_limit()
    descriptors.raise_limit()
    assert limits == [(1024, 4096), (4096, 4096)]


def test_a_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> t.NoReturn:
        raise ValueError("not allowed to raise maximum limit")

    limited(monkeypatch, 1024, 4096)
    monkeypatch.setattr(resource, "setrlimit", refuse)
    descriptors.raise_limit()


def test_the_number_that_is_needed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    most = (1024 - descriptors.OF_A_PROCESS) // descriptors.OF_AN_IMAGE
    limited(monkeypatch, 1024, 1024)
    descriptors.need(most)
    with pytest.raises(errors.HostError, match=str(descriptors.OF_A_PROCESS + descriptors.OF_AN_IMAGE * (most + 1))):
        descriptors.need(most + 1)
    limited(monkeypatch, 8, 8)
    with pytest.raises(errors.HostError, match=r"may have 8\. .* to 36\.$"):
        descriptors.need(1)  # fewer than one cannot be named
    limited(monkeypatch, resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    descriptors.need(1 << 20)


def test_as_many_images_as_are_allowed_are_enough_for_a_group(tmp_path: pathlib.Path) -> None:
    """With exactly the descriptors that need() asks for, a group is opened, changed and kept."""
    count = 24
    for number in range(count):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / f"{number}", "1M"], check=True)
    script = f"""if True:
        import json, resource, sys
        sys.path.insert(0, {str(TOP)!r})
        from concurrent.futures import ThreadPoolExecutor
        from sandbox import operations
        from sandbox.host import descriptors
        limit = descriptors.OF_A_PROCESS + descriptors.OF_AN_IMAGE * {count}
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        descriptors.need({count})
        images = [operations.Image.open(f"{tmp_path}/{{n}}", writable=True) for n in range({count})]
        with operations.Transaction(images) as group, ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda image: operations.create_snapshot(image, b"new", (1, 0)), images))
            group.keep()
        print(json.dumps(len(done)))
    """
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert json.loads(done.stdout) == count


# ---- chains, whose length nobody knows before they are open --------------------------------------------------


def test_what_is_open_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    descriptors.need_more(1 << 30, "All.")
    monkeypatch.setattr(os, "listdir", lambda _path: ["0", "1", "2", "3", "99"])  # 3 is that of the list
    limited(monkeypatch, 20, 20)
    descriptors.need_more(17, "All.")
    with pytest.raises(errors.HostError, match=r"All\. .* 21 descriptors .* may have 20\. Nothing was changed\."):
        descriptors.need_more(18, "All.")


@pytest.mark.parametrize(("number", "fails"), [(errno.ENOENT, False), (errno.EMFILE, True)])
def test_what_is_open_cannot_be_told(monkeypatch: pytest.MonkeyPatch, number: int, fails: bool) -> None:
    def refuse(_path: str) -> t.NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "listdir", refuse)
    limited(monkeypatch, 20, 20)
    if not fails:
        descriptors.need_more(20, "All.")  # without /proc; the system will say so in its time
        return
    with pytest.raises(errors.HostError, match="to at least 21"):
        descriptors.need_more(1, "All.")


class Told(t.NamedTuple):
    code: int
    stdout: str
    stderr: str


def airlock(limit: int, directory: pathlib.Path, *arguments: str) -> Told:
    """The command line in a process of its own, with so many descriptors."""
    script = f"""if True:
        import resource, sys
        sys.path.insert(0, {str(TOP)!r})
        from sandbox.cli import main as cli
        resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
        sys.exit(cli.main([argument.encode() for argument in {arguments!r}]))
    """
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=directory, capture_output=True, check=False, encoding="utf-8"
    )
    return Told(done.returncode, done.stdout, done.stderr)


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


COMMANDS = (
    ("info", "--chain", "4"),
    ("commit", "4"),
    ("rebase", "-b", "1", "-F", "qcow2", "4"),
    ("rebase", "-b", "other", "-F", "qcow2", "4"),
)
OF_OTHERS = re.compile("Traceback|[Mm]ake room|kernel's log|Free some space|A fault of|Check the path")


def a_chain(directory: pathlib.Path) -> None:
    """base <- 0 <- ... <- 4; a-base <- other."""
    raw(directory / "base")
    raw(directory / "a-base")
    overlay(directory / "0", b"base", b"raw")
    overlay(directory / "other", b"a-base", b"raw")
    for number in range(1, 5):
        overlay(directory / str(number), str(number - 1).encode())


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_chain_says_how_many_it_takes(arguments: tuple[str, ...], tmp_path: pathlib.Path) -> None:
    """What the message says is done, again and again: each time more of the chain is opened, and then it is done."""
    a_chain(tmp_path)
    before = contents(tmp_path)
    limit, limits = 14, []
    while True:
        done = airlock(limit, tmp_path, *arguments)
        if done.code == 0:
            break
        assert done.code == 1
        assert contents(tmp_path) == before
        assert done.stderr.count("\n") == 1, done.stderr
        assert not OF_OTHERS.search(done.stderr), done.stderr
        found = re.search(rf"may have {limit}\. Nothing was changed\. .* to at least (\d+);", done.stderr)
        assert found, done.stderr
        limits.append(limit)
        limit = int(found.group(1))
        assert limit > limits[-1]
    assert len(limits) > 3
    assert airlock(descriptors.ENOUGH, tmp_path, *arguments).code == 0


@pytest.mark.parametrize("limit", [16, 12, 10, 8, 6, 4])
@pytest.mark.parametrize("arguments", [*COMMANDS[1:3], ("snapshot", "-c", "s", "4"), ("info", "4")], ids=" ".join)
def test_next_to_none(arguments: tuple[str, ...], limit: int, tmp_path: pathlib.Path) -> None:
    """Whatever it is that cannot be opened: what is said is the limit, and how to raise it."""
    a_chain(tmp_path)
    before = contents(tmp_path)
    done = airlock(limit, tmp_path, *arguments)
    if done.code == 0:
        assert limit >= 9
        return
    assert contents(tmp_path) == before
    assert (done.code, done.stdout) == (1, "")
    assert f"may have {limit}" in done.stderr
    assert "LimitNOFILE" in done.stderr
    assert not OF_OTHERS.search(done.stderr), done.stderr


def test_the_way_out_is_a_larger_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, number in ((8, 1024), (1024, 2048), (1 << 20, 1 << 21)):
        limited(monkeypatch, soft, soft)
        assert f" to {number}, or name fewer" in advice.of_errno(errno.EMFILE)
