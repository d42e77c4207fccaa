# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy the collection as it stands, uncommitted work and generated files included, to where ansible-test wants it.

copy_tree.py TARGET GENERATED...: what git lists plus GENERATED goes to TARGET; what is there but no longer listed is
removed, except what ansible-test keeps below tests/output. Links are copied as links.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys


def listed_files(generated: list[str]) -> set[str]:
    """Return the paths, relative to the checkout, that belong to the collection; a deleted file does not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    names = set(os.fsdecode(listing).split("\0")) - {""}
    return {name for name in names | set(generated) if os.path.lexists(name)}


def main() -> None:
    target = pathlib.Path(sys.argv[1])
    wanted = listed_files(sys.argv[2:])
    for directory, _subdirectories, names in os.walk(target):
        for name in names:
            path = pathlib.Path(directory, name)
            relative = str(path.relative_to(target))
            if relative not in wanted and not relative.startswith("tests/output/"):
                path.unlink()
    for name in sorted(wanted):
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.unlink(missing_ok=True)
        shutil.copy2(name, destination, follow_symlinks=False)


if __name__ == "__main__":
    main()
