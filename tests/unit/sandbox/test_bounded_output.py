# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line lists all that an image holds, and takes little more memory for it than the guest's answer has."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.unit import huge_images

pytestmark = pytest.mark.kvm

CHECKOUT = pathlib.Path(__file__).resolve().parents[3]
ABOVE = 64 << 20  # bytes above what the same command takes for an image with nothing in it

COMMAND = """
import os, sys
sys.path.insert(0, sys.argv[1])
from sandbox.cli import main as cli
code = cli.main([os.fsencode(argument) for argument in sys.argv[2:]])
with open("/proc/self/status") as status:
    sys.stderr.write(next(line.split()[1] for line in status if line.startswith("VmHWM:")))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> pathlib.Path:
    """A directory with the images `snapshots`, `bitmaps` and `base`; the last holds nothing."""
    place = tmp_path_factory.mktemp("huge")
    for name, image in huge_images.make_once(tmp_path_factory, worker_id).items():
        os.link(image, place / name)
    return place


def run(place: pathlib.Path, *arguments: str) -> tuple[pathlib.Path, int]:
    """A file with the output, and the memory of the process in bytes."""
    output = place / "output"
    with output.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, str(CHECKOUT), *arguments],
            cwd=place,
            stdout=file,
            stderr=subprocess.PIPE,
            check=True,
        )
    return output, int(done.stderr) * 1024


@pytest.mark.parametrize(
    ("arguments", "image", "count"),
    [
        (["info", "--output", "json"], "snapshots", huge_images.SNAPSHOTS),
        (["info", "--output", "json"], "bitmaps", huge_images.BITMAPS),
        (["info"], "snapshots", huge_images.SNAPSHOTS),
        (["info"], "bitmaps", huge_images.BITMAPS),
        (["snapshot", "-l"], "snapshots", huge_images.SNAPSHOTS),
        (["snapshot", "-l", "--output", "json"], "snapshots", huge_images.SNAPSHOTS),
        (["bitmap", "--list"], "bitmaps", huge_images.BITMAPS),
        (["bitmap", "--list", "--output", "json"], "bitmaps", huge_images.BITMAPS),
    ],
)
def test_all_is_listed_in_little_memory(huge: pathlib.Path, arguments: list[str], image: str, count: int) -> None:
    _output, least = run(huge, *arguments, "base")
    output, memory = run(huge, *arguments, image)
    assert memory - least < ABOVE
    data = output.read_bytes()
    if "json" in arguments:
        value = json.loads(data)
        assert len(value if isinstance(value, list) else value[image]) == count
    else:
        # Each byte is printed as four characters. pytest would take minutes to show what is compared.
        found = data.count(rb"\x80" * (255 if image == "snapshots" else 1017))
        assert found == count - 1
