# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each command on hosts as they are: locales, no home, no place for temporary files, no standard streams."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests.support.chain_images import overlay, raw

from .command_line import Outcome

pytestmark = pytest.mark.kvm

TOP = b"t\xe4p\xff"
LESS = ("HOME", "TMPDIR", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "AIRLOCK_DEBUG")
STRICT = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# Each command, as something that it does and as something that it refuses.
COMMANDS: list[list[bytes]] = [
    [b"info", b"--chain", TOP],
    [b"info", b"no\xff"],
    [b"snapshot", b"-c", b"n\xff", TOP],
    [b"snapshot", b"-d", b"none\xe4", TOP],
    [b"bitmap", b"--add", TOP, b"b\xe4"],
    [b"bitmap", b"--clear", TOP, b"no\xff"],
    [b"commit", b"-q", TOP],
    [b"commit", b"base"],
    [b"rebase", b"-b", b"base", b"-F", b"raw", TOP],
    [b"rebase", b"-b", b"no\xff", b"-F", b"raw", TOP],
    [b"rebase", b"-u", b"-b", b"no\xff", b"-F", b"raw", TOP],
    [b"bog\xffus"],
    [],
]


def run(
    program: str, directory: pathlib.Path, arguments: list[bytes], environment: dict[str, str], closed: str = ""
) -> Outcome:
    """On images that are made anew: base <- mid <- the top."""
    raw(directory / "base")
    overlay(directory / "mid", b"base", b"raw")
    overlay(directory / os.fsdecode(TOP), b"mid")
    kept = {name: value for name, value in os.environ.items() if name not in LESS}
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-I", program, *arguments],
        cwd=directory,
        env={**kept, **environment},
        capture_output=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def latin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a locale whose characters are bytes."""
    locale = tmp_path_factory.mktemp("locales") / "latin"
    try:
        subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", locale], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no localedef to make a locale with")
    if not locale.exists():
        pytest.skip("localedef has no sources of locales here")
    environment = {"LOCPATH": str(locale.parent), "LC_ALL": "latin", **STRICT}
    code = "import sys; print(sys.getfilesystemencoding())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == b"iso8859-1\n"
    return environment


HOSTS = {
    "LANG=C": {"LANG": "C"},
    "ASCII alone": {"LC_ALL": "C", **STRICT},
    "a locale that is not there": {"LC_ALL": "xx_YY.ISO-8859-1"},
    "nothing": {},
}


@pytest.mark.parametrize("host", [*HOSTS, "latin"])
def test_an_environment(program: str, tmp_path: pathlib.Path, host: str, request: pytest.FixtureRequest) -> None:
    """The same is said, to the byte, and the exit code is the same."""
    environment = request.getfixturevalue("latin") if host == "latin" else HOSTS[host]
    codes = []
    for arguments in COMMANDS:
        found = run(program, tmp_path, arguments, environment)
        wanted = run(program, tmp_path, arguments, {"LC_ALL": "C.UTF-8"})
        # What an image says is shown as text in the drawing of a chain, and there is another text for the same bytes.
        as_bytes = [each._replace(stdout=each.stdout.partition(b"Backing chain")[0]) for each in (found, wanted)]
        assert as_bytes[0] == as_bytes[1], arguments
        assert host != "latin" or b"--chain" not in arguments or b"base <- mid <- t\xe4p\xff\n" in found.stdout
        assert b"Traceback" not in found.stderr
        codes.append(found.code)
    assert set(codes) == {0, 1}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(program: str, tmp_path: pathlib.Path, closed: str) -> None:
    """Only what could not be printed is a failure, of one line."""
    for arguments in COMMANDS:
        wanted = run(program, tmp_path, arguments, {"LC_ALL": "C.UTF-8"})
        found = run(program, tmp_path, arguments, {"LC_ALL": "C.UTF-8"}, closed)
        unsaid = bool(wanted.stdout) and ">&-" in closed.replace("2>&-", "")
        assert found.code == (1 if unsaid else wanted.code), arguments
        assert not re.search(rb"Traceback|A fault of", found.stderr)


@pytest.mark.parametrize("listener", [">&-", "> /dev/full", "| true"])
@pytest.mark.parametrize("arguments", [[b"commit", b"-p"], [b"rebase", b"-p", b"-b", b"base", b"-F", b"raw"]])
def test_nobody_listens_to_the_progress(
    program: str, tmp_path: pathlib.Path, arguments: list[bytes], listener: str
) -> None:
    """What is under way is done all the same."""
    raw(tmp_path / "base")
    overlay(tmp_path / "mid", b"base", b"raw")
    overlay(tmp_path / "top", b"mid")
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", tmp_path / "mid"], check=True, capture_output=True
    )
    command = "exec " + shlex.join([sys.executable, "-I", program, *(os.fsdecode(each) for each in arguments)])
    image = "mid" if b"commit" in arguments else "top"
    subprocess.run(["sh", "-c", f"{command} {image} {listener}"], cwd=tmp_path, capture_output=True, check=False)
    if image == "mid":
        committed = (tmp_path / "base").read_bytes().startswith(b"\7" * (64 << 10))
        assert committed
    else:
        read = ["qemu-io", "-r", "-f", "qcow2", "-c", "read -P 7 0 64k", "top"]
        subprocess.run(read, cwd=tmp_path, check=True, capture_output=True)
        done = subprocess.run(["qemu-img", "info", "-U", "top"], cwd=tmp_path, check=True, capture_output=True)
        assert b"backing file: base" in done.stdout
