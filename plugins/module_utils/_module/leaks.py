# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to tell of clusters that an image has lost."""

from __future__ import annotations

from ..sandbox import errors
from ..sandbox.words import advice


def leak_warning(path: str, clusters: int) -> str:
    """What to tell about clusters that nothing refers to."""
    count = "1 cluster is" if clusters == 1 else f"{clusters} clusters are"
    return f"{errors.quote(path)}: {count} leaked: in use by the refcounts, but by nothing else. " + advice.say(
        "leaks", {"image": errors.quote(path)}
    )
