# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The limit of open files: raised where that can be done, and told before anything is opened where it is too low."""

from __future__ import annotations

import json
import pathlib
import resource
import subprocess
import sys
import typing as t

import pytest

from sandbox import descriptors, errors

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
        from sandbox import descriptors, operations
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
