# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The archive that `make dist` builds: what is in it, and that it works where it is installed."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

pytestmark = pytest.mark.slow

TOP = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("dist")
    command = ["ansible-galaxy", "collection", "build", "--output-path", str(directory)]
    subprocess.run(command, cwd=TOP, check=True, capture_output=True)
    (built,) = directory.iterdir()
    return built


def test_it_holds_the_sources_and_what_is_generated(archive: pathlib.Path) -> None:
    with tarfile.open(archive) as content:
        names = set(content.getnames())
    assert {
        "sandbox/guests/_abi.py",
        "sandbox/guests/_limits.py",
        "sandbox/guests/_guest_snapshot.py",
        "plugins/module_utils/sandbox/guests/_abi.py",
    } <= names
    assert {"LICENSE", "README.md", "meta/runtime.yml", "guest/abi/doorbell.h"} <= names


def test_it_holds_nothing_that_was_left_lying_around(archive: pathlib.Path) -> None:
    with tarfile.open(archive) as content:
        paths = [pathlib.PurePath(name) for name in content.getnames()]
    assert not [path for path in paths if any(part.startswith(".") or part == "__pycache__" for part in path.parts)]
    assert not [path for path in paths if path.parts[0] in ("build", "collections", "venv")]
    assert not [path for path in paths if path.suffix in (".pyc", ".o", ".gz", ".qcow2")]


def test_a_module_of_the_installed_collection_runs(archive: pathlib.Path, tmp_path: pathlib.Path) -> None:
    collections, image = tmp_path / "collections", tmp_path / "disk.qcow2"
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.minimal",
    }
    install = ["ansible-galaxy", "collection", "install", "--offline", "-p", str(collections), str(archive)]
    subprocess.run(install, env=environment, check=True, capture_output=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"], check=True)
    interpreter = json.dumps({"ansible_python_interpreter": sys.executable})
    command = ["ansible", "-i", "localhost,", "-c", "local", "-e", interpreter, "localhost"]
    command += ["-m", "airlock.images.qcow2_snapshot", "-a", f"path={image} name=first"]
    for changed in (True, False):
        done = subprocess.run(command, env=environment, cwd=tmp_path, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout.partition("=>")[2])["changed"] is changed
