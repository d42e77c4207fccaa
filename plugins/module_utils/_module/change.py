# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What qcow2_snapshot plans for one image is carried out."""

from __future__ import annotations

from ..sandbox import snapshot_changes
from .plan import Plan


def carry_out(plan: Plan) -> None:
    """Changes the image, and fills in what has come of it."""
    wanted, run = plan.wanted, plan.subject.run
    if wanted.state == "present":
        done = run(snapshot_changes.create_snapshot, wanted.name, wanted.date)
    elif wanted.state == "absent":
        done = run(snapshot_changes.delete_snapshot, plan.selector)
    else:
        done = run(snapshot_changes.apply_snapshot, plan.selector, wanted.allow_resize)
    plan.leaked_clusters = done.leaked_clusters
    plan.after = done.now
