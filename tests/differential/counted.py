# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Differential runs with the native guest, for tests/coverage.py: python -m tests.differential.counted [--short]

AIRLOCK_COVERAGE names the directory that gets the counts. The guest in KVM has no room for counters; this one is of the
same C, works on the same files for the same calls, and is compared with qemu-img in the same way.
"""

from __future__ import annotations

import argparse
import sys

from tests.support import native_runs

from . import run

# Of each kind how many chains; and for those of one image, one for each cell of the grid.
CHAINS = {
    "snapshot": 40,
    "bitmap": 30,
    "commit": 60,
    "rebase": 60,
    "rebase-compressed": 10,
    "vmdk": 40,
    "vmdk-rebase": 40,
}
GRIDS = ("snapshot", "bitmap")
SHORT = {"snapshot": 1, "bitmap": 1, "commit": 1, "rebase": 1, "vmdk": 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--short", action="store_true", help="a handful of chains")
    short = parser.parse_args().short
    stand_in = native_runs.install()
    codes = []
    for kind, count in (SHORT if short else CHAINS).items():
        print(kind, end=": ", flush=True)
        codes.append(run.main(["--kind", kind, "--count", str(count)]))
    for kind in () if short else GRIDS:
        print(f"{kind}, the grid", end=": ", flush=True)
        codes.append(run.main(["--kind", kind, "--axes"]))
    print(f"{stand_in.guests} guests")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
