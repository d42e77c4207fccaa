# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the chain as it is to the chain as it shall be: one joint for each layer that is named and is there."""

from __future__ import annotations

import contextlib
import os
import typing as t

from ...sandbox import errors
from ...sandbox.host.places import Key, Place
from ...sandbox.images import commits, rebases
from ...sandbox.images.chain import Chain, Layer
from ...sandbox.images.rebases import NewBacking
from ..clock import Clock
from ..removal import check_no_device
from .options import ChainWanted
from .siblings import Search

NONE, COMMIT, PULL, REBASE, DETACH = "none", "commit", "pull", "rebase", "detach"


class Joint:
    """A layer, and what it is to stand on.

    stack: the layer and what it stands on now, from it down. lower: what it is to stand on, None for nothing. depth: of
    that in the stack, 0 when it is not in there. backing: what was opened for it then. action, bytes, reason: what is
    to be done, how many bytes that writes, and why so. lower_size: what the lower layer's disk grows to, or 0.
    """

    def __init__(self, stack: t.Sequence[Layer], depth: int, backing: NewBacking | None) -> None:
        self.stack = list(stack)
        self.depth = depth
        self.backing = backing
        self.action = NONE
        self.bytes = 0
        self.reason = ""
        self.lower_size = 0

    @property
    def upper(self) -> Layer:
        return self.stack[0]

    @property
    def lower(self) -> Layer | None:
        if self.backing:
            return self.backing.layers[0]
        return self.stack[self.depth] if self.depth else None

    @property
    def between(self) -> list[Layer]:
        """The layers that the chain has no more."""
        return self.stack[1 : self.depth] if self.depth else []

    @property
    def ends_early(self) -> bool:
        """Whether a layer that goes hides by its end what is below it: that is to be seen in no file's data."""
        return any(layer.virtual_size < self.upper.virtual_size for layer in self.between)


class ChainPlan:
    """joints: from the top down. The last one's layer is the base."""

    def __init__(self, chain: Chain, wanted: ChainWanted, clock: Clock) -> None:
        self.chain = chain
        self.wanted = wanted
        self.clock = clock
        self.joints: list[Joint] = []
        self.found = Search([], [], [])
        self.names: list[bytes] = []

    @classmethod
    def read(cls, chain: Chain, wanted: ChainWanted, clock: Clock, stack: contextlib.ExitStack) -> ChainPlan:
        """The plan for a chain. Opens what that does not have yet, onto the stack, where guests read it. Raises
        AirlockError where there is no way."""
        plan = cls(chain, wanted, clock)
        plan.joints = plan._find_joints(stack)
        plan.names = [plan._name(joint) for joint in plan.joints]
        return plan

    @property
    def changes(self) -> bool:
        """Whether there is anything to do, but for layers to create."""
        return any(joint.action != NONE for joint in self.joints)

    def own_files(self) -> dict[Key, Layer]:
        """All files of the chain as it is and as it shall be."""
        layers = [
            *self.chain.layers,
            *(each for joint in self.joints if joint.backing for each in joint.backing.layers),
        ]
        return {layer.key: layer for layer in layers}

    def decide(self, found: Search) -> None:
        """Says for each joint what is to be done there. Raises AirlockError where nothing can be."""
        self.found = found
        for joint in self.joints:
            if joint.backing:
                self._pulls(joint, REBASE, "the chain did not have that file")
            elif joint.between:
                self._choose(joint)
            elif joint.lower is None and len(joint.stack) > 1:
                self._pulls(joint, DETACH, "flatten")
        if self.wanted.drop:
            for joint in self.joints:
                self._check_drop(joint)

    def _find_joints(self, stack: contextlib.ExitStack) -> list[Joint]:
        layers = list(self.chain.layers)
        joints = []
        for place in self.wanted.existing[1:]:
            depth = next((depth for depth, layer in enumerate(layers) if depth and layer.key == place.key), 0)
            if depth:
                layers[depth].image.place.named = True
                joints.append(Joint(layers, depth, None))
                layers = layers[depth:]
                continue
            backing = self._open(layers, place, stack)
            self.clock.reports += backing.reports
            joints.append(Joint(layers, 0, backing))
            layers = list(backing.layers)
        if len(layers) > 1 and not self.wanted.flatten:
            raise errors.ArgumentError(
                f"{errors.quote(layers[0].path)} stands on {errors.quote(layers[1].path)}, which layers does not name. "
                "Name it, or set flatten to have all that shows from below pulled up.",
                "base_has_backing",
            )
        return [*joints, Joint(layers, 0, None)]

    def _open(self, layers: t.Sequence[Layer], place: Place, stack: contextlib.ExitStack) -> NewBacking:
        """A file that is no part of the chain yet. Raises AirlockError."""
        path = place.path
        lowest = place is self.wanted.places[-1]
        format_name = self.wanted.backing_format if lowest else "qcow2"
        if format_name is None:
            raise errors.ArgumentError(
                f"{errors.quote(path)} is no part of the chain yet. State its format with backing_format, for a format "
                "is never guessed.",
                "backing_format_missing",
            )
        upper = layers[0]
        name = _recorded_name(upper.image.place, place)
        self._check_name(upper.image.place, name, place.key)
        try:
            return stack.enter_context(
                rebases.open_backing(
                    self.chain.of(layers),
                    name,
                    format_name,
                    place=place,
                    backing_format=self.wanted.backing_format,
                    allowed_roots=self.wanted.allowed_roots,
                    limits=self.clock.limits(),
                )
            )
        except errors.ChainError as error:
            if error.code != "backing_loop":
                raise
            raise errors.ArgumentError(
                f"With {errors.quote(path)} below {errors.quote(upper.path)} the chain would return to itself: what "
                "the former stands on is in it already. Name the layers in another order.",
                "backing_loop",
            ) from error

    def _name(self, joint: Joint) -> bytes:
        """What the header of the joint's layer is to have recorded. Raises ChainError for what could not be opened."""
        if joint.backing:
            return joint.backing.name
        if not joint.between or joint.lower is None:
            return joint.upper.backing_name if joint.lower else b""
        above = joint.stack[joint.depth - 1]
        home = joint.upper.image.place
        if above.image.place.directory.is_same(home.directory):
            return above.backing_name
        name = _recorded_name(home, joint.lower.image.place)
        self._check_name(home, name, joint.lower.key)
        return name

    def name_for_new(self, place: Place, below: Place) -> bytes:
        """What a layer that is created is to have recorded. Raises ChainError for what could not be opened."""
        name = _recorded_name(place, below)
        if below.there:
            self._check_name(place, name, below.key)
        return name

    def _check_name(self, place: Place, name: bytes, key: Key | None) -> None:
        """The next run goes by what is recorded: it has to find the same file, by its policy."""
        roots, follow_links = self.wanted.allowed_roots, self.wanted.follow_links
        if rebases.leads_to(name, place.directory, place.path, roots, follow_links) != key:
            raise errors.ArgumentError(
                f"The name '{errors.clean(name)}' in {errors.quote(place.path)} would lead to another file than the "
                "one that is meant. Name the layers by paths without symbolic links.",
                "backing_name_ambiguous",
            )

    def _choose(self, joint: Joint) -> None:
        """Committed down or pulled up, as the task says, or as moves less data."""
        method = self.wanted.method
        obstacle = self._obstacle(joint)
        if method == COMMIT:
            if obstacle:
                raise obstacle
            self._set(joint, COMMIT, self._commit_bytes(joint), "method is commit")
            return
        down = None
        if method == "auto" and not obstacle:
            try:
                down = self._commit_bytes(joint)
            except errors.CommitError as error:
                obstacle = error
        try:
            up = self._pull_bytes(joint)
        except errors.RebaseError as error:
            if down is None or error.code != "compress_data_file":
                raise
            self._set(joint, COMMIT, down, f"pulling up cannot be done: {error.message}")
            return
        if down is not None and down < up:
            self._set(joint, COMMIT, down, f"a commit writes {down} bytes, pulling up {up}")
        elif method == PULL:
            self._set(joint, PULL, up, "method is pull")
        elif down is None:
            self._set(joint, PULL, up, f"a commit cannot be done: {obstacle.message if obstacle else ''}")
        else:
            self._set(joint, PULL, up, f"pulling up writes {up} bytes, a commit {down}")

    def _pulls(self, joint: Joint, action: str, reason: str) -> None:
        self._set(joint, action, self._pull_bytes(joint), reason)

    @staticmethod
    def _set(joint: Joint, action: str, count: int, reason: str) -> None:
        joint.action, joint.bytes, joint.reason = action, count, reason

    def _commit_bytes(self, joint: Joint) -> int:
        """Bytes that a commit writes. Raises CommitError, RefusalError."""
        view = self.chain.of(joint.stack[1 : joint.depth + 1])
        limits = commits.commit_limits(view, self.clock.left())
        done = commits.commit(view, joint.depth - 1, False, self.wanted.allow_resize, dry_run=True, limits=limits)
        self.clock.reports.append(done.report)
        joint.lower_size = done.virtual_size if done.resized else 0
        return done.bytes_committed

    def _pull_bytes(self, joint: Joint) -> int:
        view = self.chain.of(joint.stack)
        backing = joint.backing or on_layers(b"", joint.stack[joint.depth :], joint.depth)
        limits = rebases.rebase_limits(view, self.clock.left())
        lower = backing if joint.lower else None
        done = rebases.rebase(view, lower, dry_run=True, limits=limits, compressed=self.wanted.compressed)
        self.clock.reports.append(done.report)
        return done.bytes_copied

    def _obstacle(self, joint: Joint) -> errors.AirlockError | None:
        """What forbids to change what the lower layer shows."""
        return self._used([*joint.between[1:], *([joint.lower] if joint.lower else [])], joint.upper)

    def _used(self, layers: t.Sequence[Layer], upper: Layer) -> errors.AirlockError | None:
        """The refusal when another overlay stands on one of the layers, and not by way of `upper`, or may do so."""
        for sibling in self.found.siblings:
            for layer in layers:
                if layer.key in sibling.below and upper.key not in sibling.below:
                    return errors.ArgumentError(
                        f"{errors.quote(sibling.path)} stands on {errors.quote(layer.path)}, and would show something "
                        "else if that changed, or nothing. Set method to pull, which changes no file that another one "
                        "stands on, and leave drop out.",
                        "has_siblings",
                    )
        if layers and self.found.closed:
            return errors.ArgumentError(
                f"{self.found.closed[0].message} scan cannot tell whether it stands on {errors.quote(layers[-1].path)}"
                ", and would show something else if that changed. Or set method to pull, which changes no file that "
                "another one stands on, and leave drop out.",
                "siblings_unknown",
            )
        return None

    def _check_drop(self, joint: Joint) -> None:
        """Raises ArgumentError for a file that is not to be removed."""
        used = self._used(joint.between, joint.upper)
        if used:
            raise used
        for layer in joint.between:
            path = errors.quote(layer.path)
            if layer.info and (layer.info.snapshots or layer.info.bitmap_count != 0):
                bitmaps = "damaged" if layer.info.bitmap_count is None else layer.info.bitmap_count
                raise errors.ArgumentError(
                    f"{path} has {len(layer.info.snapshots)} snapshots and {bitmaps} bitmaps, which "
                    "would go with it. Delete them first (qcow2_snapshot, qcow2_bitmap), or leave drop out.",
                    "drop_loses",
                )
            check_no_device(layer)


def on_layers(name: bytes, layers: t.Sequence[Layer], shared: int) -> NewBacking:
    """Layers that are open already, as what another one is to stand on."""
    return NewBacking(name, layers[0].format if layers else "", layers, shared)


def _recorded_name(place: Place, below: Place) -> bytes:
    """How a file is called in an overlay of it: by its name alone where both are in one directory."""
    if not place.directory.is_same(below.directory):
        return os.path.abspath(os.fsencode(below.path))
    name = below.name if below.linked else os.path.basename(os.fsencode(below.path))
    return b"./" + name if b":" in name else name
