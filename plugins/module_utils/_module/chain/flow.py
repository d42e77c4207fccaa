# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of qcow2_chain: look at the chain, find the way to the one that is wanted, and go it from the base up."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ...sandbox import errors
from ...sandbox.facts import chain_facts
from ...sandbox.host import descriptors
from ...sandbox.host.places import Key, Place
from ...sandbox.images import commits, overlays, rebases
from ...sandbox.images.chain import Chain, Layer, draw, open_chain
from ...sandbox.images.image import Image
from ..clock import Clock
from ..group import sandbox_summary
from ..progress_file import ProgressFile
from .options import ChainWanted
from .plan import COMMIT, NONE, ChainPlan, Joint, on_layers
from .siblings import find_siblings, unclear_warning


class ChainTask:
    """One chain, planned. created: layers that are to be there, from the lowest up."""

    def __init__(self, plan: ChainPlan) -> None:
        self.plan = plan
        self.wanted = plan.wanted
        self.created = self.wanted.created
        self.changed = plan.changes or bool(self.created)
        self.steps = self._steps()
        self.before = self._drawing([layer.image.place for layer in plan.chain.layers])
        self.after = self._drawing(self.wanted.places)
        # From here on the names that were given; an overlay is created with these.
        self.names = self._new_names()

    def _steps(self) -> list[dict[str, t.Any]]:
        """RETURN's `plan`."""
        found = []
        for joint in reversed(self.plan.joints):
            if joint.action != NONE:
                lower = joint.lower
                found.append(
                    _step(joint.action, joint.upper.path, lower.path if lower else None, joint, self._gone(joint))
                )
        below = self.wanted.existing[0].path if self.wanted.existing else ""
        for place in self.created:
            found.append(_step("create", place.path, below))
            below = place.path
        if self.wanted.drop:
            gone = [layer for joint in self.plan.joints for layer in joint.between]
            found += [_step("remove", layer.path, None) for layer in gone]
        return found

    def _gone(self, joint: Joint) -> list[Layer]:
        """The layers that the chain has no more behind this step."""
        kept = {each.upper.key for each in self.plan.joints}
        return [layer for layer in joint.stack[1 : joint.depth or None] if layer.key not in kept]

    def _drawing(self, places: t.Sequence[Place]) -> str:
        """The chain in one line: * is written to, + is created, - is no part of the chain any more."""
        written = {joint.upper.key for joint in self.plan.joints if joint.action != NONE}
        written |= {joint.lower.key for joint in self.plan.joints if joint.action == COMMIT and joint.lower}
        kept = {layer.key for joint in self.plan.joints for layer in joint.stack[:1]}
        marks: dict[Key | None, str] = {layer.key: "-" for layer in self.plan.chain.layers if layer.key not in kept}
        marks.update(dict.fromkeys(written, "*"))
        marks[None] = "+"  # not there yet
        return draw([place.path for place in places], {place.path: marks.get(place.key, "") for place in places})

    def _new_names(self) -> list[bytes]:
        names = []
        below = self.wanted.existing[0]
        for place in self.created:
            names.append(self.plan.name_for_new(place, below))
            below = place
        return names

    def carry_out(self) -> None:
        """From the base up. What the layers that stay show is the same at every moment."""
        layers: list[Layer] = []
        parts = self._parts()
        with ProgressFile(self.wanted.progress_file if parts else None) as progress:
            listeners = progress.parts(parts)
            for joint, name in reversed(list(zip(self.plan.joints, self.plan.names))):
                self._carry_out(joint, name, layers, listeners)
                layers = [joint.upper, *layers]
        size, format_name = layers[0].virtual_size, layers[0].format
        for place, name in zip(self.created, self.names):
            limits = self.plan.clock.limits()
            access = self.wanted.access.of_file_on(layers[0].image)
            report = overlays.create_overlay(place, size, name, format_name, limits=limits, access=access)
            self.plan.clock.reports.append(report)
            format_name = "qcow2"
        if self.wanted.drop:
            for joint in self.plan.joints:
                for layer in joint.between:
                    layer.image.place.remove()

    def _parts(self) -> list[int]:
        """The disks that will be gone through, one after the other: their bytes."""
        found = []
        for joint in reversed(self.plan.joints):
            if joint.action == COMMIT:
                found.append(joint.between[0].virtual_size)
            if joint.action not in (NONE, COMMIT) or joint.ends_early:
                found.append(joint.upper.virtual_size)
        return found

    def _carry_out(
        self,
        joint: Joint,
        name: bytes,
        layers: t.Sequence[Layer],
        listeners: t.Iterator[t.Callable[[int, int], None] | None],
    ) -> None:
        """layers: what the joint's layer is to stand on. listeners: one for each disk that is gone through."""
        clock, chain = self.plan.clock, self.plan.chain
        if joint.action == NONE:
            return
        format_name = layers[0].format if layers else ""
        if joint.action == COMMIT:
            view = chain.of([*joint.between, *layers])
            depth = len(joint.between)
            commits.open_base(view, depth)
            chain.make_writable(joint.upper)
            limits = commits.commit_limits(view, clock.left(), self.wanted.rate)
            allow_resize, progress = self.wanted.allow_resize, next(listeners)
            committed = commits.commit(view, depth, False, allow_resize, limits=limits, progress=progress, goes_on=True)
            clock.reports.append(committed.report)
        if joint.action == COMMIT and not joint.ends_early:
            done = rebases.relink(joint.upper.image, name, format_name, limits=clock.limits())
        else:
            # What the layer shows through does not change below it, wherever this has come to.
            kept = bool(joint.between) and not joint.backing
            view = chain.of([joint.upper, *joint.between, *layers] if kept else joint.stack)
            chain.make_writable(joint.upper)
            backing = on_layers(name, layers, len(joint.between) + 1 if kept else 0) if layers else None
            compressed = self.wanted.compressed and joint.action != COMMIT
            limits = rebases.rebase_limits(view, clock.left(), self.wanted.rate)
            done = rebases.rebase(view, backing, limits=limits, progress=next(listeners), compressed=compressed)
        clock.reports.append(done.report)


def chain_flow(module: AnsibleModule) -> dict[str, t.Any]:
    """Carries out the task; returns what RETURN of qcow2_chain says. Raises errors.AirlockError."""
    with contextlib.ExitStack() as places, contextlib.ExitStack() as stack:
        wanted = places.enter_context(ChainWanted(module.params))
        clock = Clock(wanted.timeout)
        chain = stack.enter_context(_open(wanted, clock))
        clock.reports += chain.reports
        plan = ChainPlan.read(chain, wanted, clock, stack)
        found = find_siblings(wanted, plan.own_files(), clock)
        plan.decide(found)
        if found.unclear and plan.changes:
            module.warn(unclear_warning(found.unclear))
        task = ChainTask(plan)
        done = task.changed and not module.check_mode
        if done:
            count = descriptors.OF_A_TASK + descriptors.OF_A_LAYER * len(task.created)
            descriptors.need_more(count, f"A chain of {len(chain.layers)} layers is open.")
            task.carry_out()
            stack.close()
        layers = _read(wanted, clock) if done else _foreseen(task)
    result: dict[str, t.Any] = {
        "changed": task.changed,
        "plan": task.steps,
        "chain": layers,
        "chain_drawing": draw([facts["path"] for facts in layers]),
        "sandbox": sandbox_summary([clock]),
    }
    if module._diff:
        result["diff"] = {
            "before_header": errors.clean(wanted.layers[0], errors.PATH_LIMIT),
            "after_header": errors.clean(wanted.layers[0], errors.PATH_LIMIT),
            "before": f"{task.before}\n",
            "after": f"{task.after}\n",
        }
    return result


@contextlib.contextmanager
def _open(wanted: ChainWanted, clock: Clock) -> t.Iterator[Chain]:
    """The chain of the highest layer that is there. Raises as open_chain()."""
    place = wanted.existing[0].again()
    # Nothing but a base can be of another format.
    alone = wanted.missing == len(wanted.layers) - 1 > 0
    top_format = wanted.backing_format or "qcow2" if alone else "qcow2"
    with contextlib.ExitStack() as stack:
        chain = open_chain(
            stack.enter_context(Image.open(place, use=top_format)),
            backing_format=wanted.backing_format,
            allowed_roots=wanted.allowed_roots,
            limits=clock.limits(),
            top_format=top_format,
        )
        yield stack.enter_context(chain)


def _foreseen(task: ChainTask) -> list[dict[str, t.Any]]:
    """The chain when all is done, as far as it is known before."""
    found = []
    below: dict[str, t.Any] | None = None
    for joint, name in reversed(list(zip(task.plan.joints, task.plan.names))):
        facts = {
            **chain_facts.layer_facts(joint.upper),
            "backing_file": errors.clean(name, 1024) if name else None,
            "backing_format": below["format"] if below else None,
        }
        if joint.action == COMMIT and joint.lower_size and below:
            below["virtual_size"] = joint.lower_size
        found.append(facts)
        below = facts
    for name in task.names:
        facts = {
            "format": "qcow2",
            "virtual_size": below["virtual_size"] if below else 0,
            "file_size": None,
            "backing_file": errors.clean(name, 1024),
            "backing_format": below["format"] if below else None,
            "data_file": None,
        }
        found.append(facts)
        below = facts
    path = task.wanted.layers[0]
    for depth, (facts, name) in enumerate(zip(reversed(found), [*reversed(task.names), *task.plan.names])):
        facts.update(path=errors.clean(path, 4096), depth=depth)
        path = os.path.join(os.path.dirname(path), os.fsdecode(name))  # as the names will lead to it
    return found[::-1]


def _read(wanted: ChainWanted, clock: Clock) -> list[dict[str, t.Any]]:
    """The chain as it is now."""
    with open_chain(
        wanted.places[0].anew(),
        backing_format=wanted.backing_format,
        allowed_roots=wanted.allowed_roots,
        limits=clock.limits(),
    ) as chain:
        clock.reports += chain.reports
        return [chain_facts.layer_facts(layer) for layer in chain.layers]


def _step(
    action: str, layer: str, onto: str | None, joint: Joint | None = None, gone: t.Sequence[Layer] = ()
) -> dict[str, t.Any]:
    """One entry of RETURN's `plan`."""
    limit = errors.PATH_LIMIT
    return {
        "action": action,
        "layer": errors.clean(layer, limit),
        "onto": errors.clean(onto, limit) if onto else None,
        "bytes": joint.bytes if joint else 0,
        "reason": joint.reason if joint else None,
        "gone": [errors.clean(each.path, limit) for each in gone],
    }
