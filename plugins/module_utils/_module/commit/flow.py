# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of qcow2_commit: look at the chain, decide, commit, settle the overlay's bitmaps, empty or remove it."""

from __future__ import annotations

import contextlib
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ...sandbox import errors
from ...sandbox.facts import chain_facts
from ...sandbox.host import descriptors
from ...sandbox.images import commits
from ...sandbox.images.chain import Chain, Layer, drawing, open_chain
from ...sandbox.images.commit_bitmaps import CommitBitmaps
from ...sandbox.images.image import Limits
from ..clock import Clock
from ..group import sandbox_summary
from ..progress_file import ProgressFile
from .options import CommitWanted

NAMES_MAX = 300  # of bitmaps that are returned, however many an image has; each takes up to 3 KiB as JSON


class CommitTask:
    """One commit, planned on the open chain."""

    def __init__(
        self, chain: Chain, wanted: CommitWanted, clock: Clock, base: int, empties: bool, planned: commits.Commit
    ) -> None:
        self.chain = chain
        self.wanted = wanted
        self.clock = clock
        self.base = base
        self.empties = empties
        self.planned = planned
        self.commits = bool(planned.bytes_committed or planned.bytes_zeroed or planned.resized)
        self.changed = self.commits or wanted.drop
        self.bitmaps: CommitBitmaps | None = None
        self.before = drawing(chain)

    @classmethod
    def read(cls, chain: Chain, wanted: CommitWanted, clock: Clock) -> CommitTask:
        """The task for a chain, in which a guest reads what there is to commit, and bitmaps. Raises AirlockError."""
        base = commits.find_base(chain, wanted.base)
        # Layers between would show through an empty top.
        empties = base == 1 and not wanted.drop
        limits = commits.commit_limits(chain, clock.left())
        planned = commits.commit(chain, base, empties, wanted.allow_resize, dry_run=True, limits=limits)
        clock.reports.append(planned.report)
        if planned.complete and not wanted.drop:
            planned = planned._replace(bytes_committed=0, bytes_zeroed=0, clusters_committed=0)
        task = cls(chain, wanted, clock, base, empties, planned)
        if task.changed:
            task.bitmaps = CommitBitmaps(chain, base, wanted.bitmaps, wanted.drop, clock.limits, clock.reports)
        return task

    def limits(self, rate: int = 0) -> Limits:
        return commits.commit_limits(self.chain, self.clock.left(), rate)

    @property
    def base_layer(self) -> Layer:
        return self.chain.layers[self.base]

    def carry_out(self) -> None:
        """Does what there is to do. Interrupted at any moment, it can be done again."""
        later = self.bitmaps is not None and self.bitmaps.any
        if self.bitmaps is not None and later:
            self.bitmaps.prepare()
        if self.commits or later:
            commits.open_base(self.chain, self.base)
        if self.commits:
            self.planned = self._commit(self.empties and not later)
        if self.bitmaps is not None and later:
            self.bitmaps.carry_out()
        if self.commits and self.empties and later:
            cleared = commits.empty(self.chain, self.limits())
            self.planned = self.planned._replace(overlay_clusters_cleared=cleared)
        if self.wanted.drop:
            self.chain.top.image.place.remove()

    def _commit(self, empties: bool) -> commits.Commit:
        with ProgressFile(self.wanted.progress_file) as progress:
            done = commits.commit(
                self.chain,
                self.base,
                empties,
                self.wanted.allow_resize,
                limits=self.limits(self.wanted.rate),
                progress=progress.step if self.wanted.progress_file else None,
            )
        self.clock.reports.append(done.report)
        return done

    def layers(self) -> list[dict[str, t.Any]]:
        """RETURN's `chain`: as it is now, or would be."""
        found = [chain_facts.layer_facts(layer) for layer in self.chain.layers]
        if self.planned.resized:
            found[self.base]["virtual_size"] = self.planned.virtual_size
        if not self.wanted.drop:
            return found
        return [{**facts, "depth": facts["depth"] - 1} for facts in found[1:]]


def commit_flow(module: AnsibleModule) -> dict[str, t.Any]:
    """Carries out the task; returns what RETURN of qcow2_commit says. Raises errors.AirlockError."""
    with contextlib.ExitStack() as stack:
        wanted = stack.enter_context(CommitWanted(module.params))
        if wanted.drop and wanted.is_gone():
            return _gone(wanted)
        clock = Clock(wanted.timeout)
        chain = stack.enter_context(
            open_chain(
                wanted.place.again(),
                backing_format=wanted.backing_format,
                allowed_roots=wanted.allowed_roots,
                writable_layers=() if module.check_mode else (0,),
                limits=clock.limits(),
                top_format=wanted.format,
            )
        )
        clock.reports += chain.reports
        if wanted.drop:
            wanted.check_removable(chain.top)
        task = CommitTask.read(chain, wanted, clock)
        if task.changed and not module.check_mode:
            descriptors.need_more(descriptors.OF_A_TASK, f"A chain of {len(chain.layers)} layers is open.")
            task.carry_out()
        return _result(module, task)


def _result(module: AnsibleModule, task: CommitTask) -> dict[str, t.Any]:
    done = task.planned
    layers = task.layers()
    names = task.bitmaps.names if task.bitmaps else []
    after = task.before.rpartition(" <- ")[0] if task.wanted.drop else task.before
    result: dict[str, t.Any] = {
        "changed": task.changed,
        "overlay": task.wanted.path,
        "overlay_format": task.chain.top.format,
        "base": errors.clean(task.base_layer.path, errors.PATH_LIMIT),
        "base_format": task.base_layer.format,
        "bytes_committed": done.bytes_committed,
        "bytes_zeroed": done.bytes_zeroed,
        "clusters_committed": done.clusters_committed,
        "overlay_clusters_cleared": done.overlay_clusters_cleared,
        "base_resized": done.resized,
        "bitmaps": [errors.clean(name) for name in names[:NAMES_MAX]],
        "bitmap_count": len(names),
        "dropped": task.wanted.drop,
        "chain": layers,
        "chain_drawing": after,
        "sandbox": sandbox_summary([task.clock]),
    }
    if module._diff:
        result["diff"] = {
            "before_header": errors.clean(task.wanted.path, errors.PATH_LIMIT),
            "after_header": errors.clean(task.wanted.path, errors.PATH_LIMIT),
            "before": _diff_text(task.before, task.base_layer.virtual_size, done if task.commits else None),
            "after": _diff_text(after, layers[task.base - int(task.wanted.drop)]["virtual_size"], None),
        }
    return result


def _diff_text(chain: str, base_size: int, held: commits.Commit | None) -> str:
    """One side of the diff. held: what is still to be committed."""
    bytes_held = held.bytes_committed + held.bytes_zeroed if held else 0
    return f"chain: {chain}\ndisk size of the base: {base_size} bytes\nnot in the base yet: {bytes_held} bytes\n"


def _gone(wanted: CommitWanted) -> dict[str, t.Any]:
    """The result when the overlay was removed by an earlier run."""
    return {
        "changed": False,
        "overlay": wanted.path,
        "overlay_format": None,
        "base": None,
        "base_format": None,
        "bytes_committed": 0,
        "bytes_zeroed": 0,
        "clusters_committed": 0,
        "overlay_clusters_cleared": 0,
        "base_resized": False,
        "bitmaps": [],
        "bitmap_count": 0,
        "dropped": True,
        "chain": [],
        "chain_drawing": "",
        "sandbox": sandbox_summary([]),
    }
