# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Another backing file for an image, or none.

    with open_chain("top.qcow2", writable_layers=(0,)) as chain, open_backing(chain, b"base.qcow2", "qcow2") as backing:
        rebase(chain, backing)

What the image shows stays the same: where the new chain has other data than the old one, the image gets the old before
its header names the new. An interrupted rebase is done again. relink() changes the name alone.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import typing as t

from .. import errors
from ..guests._limits import BACKING_FORMAT_MAX, BACKING_NAME_MAX, DISKS_MAX
from ..host import descriptors
from ..host.places import Directory, Key, Place, find_place, look_up
from ..host.reference_rules import Reference
from ..host.references import Policy
from ..vmm import kvm
from ..vmm.answers import Program
from ..words import opening
from . import commits
from .chain import FORMATS, check_hard_links, check_written, open_chain
from .image import Image, Limits, Report, run_guest

if t.TYPE_CHECKING:
    from .chain import Chain, Layer


def _chain_guest() -> Program:
    from ..guests import _guest_chain
    from ..vmm.doorbell_copies import MovingServer

    return Program(*_guest_chain.load(), MovingServer)


def _compress_guest() -> Program:
    from ..guests import _guest_compress
    from ..vmm.doorbell_copies import MovingServer

    return Program(*_guest_compress.load(), MovingServer)


class Rebase(t.NamedTuple):
    """bytes_copied, bytes_zeroed: of the disk, that the image holds now, as data and as zeros, because the new backing
    file has something else there. virtual_size: bytes. Of a dry run: what would be."""

    bytes_copied: int
    bytes_zeroed: int
    virtual_size: int
    report: Report


class NewBacking:
    """What an image is to stand on, open and locked until close().

    name: as it is to be recorded. format: one of FORMATS. layers: that file and what it stands on, from the top down.
    shared: its depth in the current chain, 0 if it is not in it. reports: of the guests that read them.
    """

    def __init__(
        self,
        name: bytes,
        format_name: str,
        layers: t.Sequence[Layer],
        shared: int,
        stack: contextlib.ExitStack | None = None,
        reports: t.Sequence[Report] = (),
    ) -> None:
        """stack: what close() closes."""
        self.name = name
        self.format = format_name
        self.layers = tuple(layers)
        self.shared = shared
        self.reports = tuple(reports)
        self._stack = stack or contextlib.ExitStack()

    def close(self) -> None:
        """Drops the locks, but not those of the current chain."""
        self._stack.close()

    def __enter__(self) -> NewBacking:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def open_backing(
    chain: Chain,
    name: bytes,
    format_name: str,
    *,
    place: Place | None = None,
    backing_format: str | None = None,
    allowed_roots: t.Sequence[str | bytes | Place] = (),
    force_share: bool = False,
    limits: Limits | None = None,
) -> NewBacking:
    """The file that the top of a chain is to stand on, and the chain below it.

    name: as it is to be recorded: a relative one starts from the directory of the top. The operator chose it, so it may
    lead anywhere; names that stand in the files are judged as in open_chain(), which the options are for. format_name:
    one of FORMATS. place: the file, where it was looked up before; it stays the caller's. Raises ArgumentError, what
    open_chain() raises; for a file that is the top itself, or stands on it, too.
    """
    top = chain.top
    _check_form(name)
    home = top.image.place
    path = os.path.join(home.directory.shown, os.fsdecode(name))
    own = [top.image, *([top.data_file] if top.data_file else [])]
    count = descriptors.OF_A_LAYER + 2 + descriptors.OF_A_GUEST  # where it is, is held twice
    descriptors.need_more(count, f"A chain of {len(chain.layers)} layers is open, and its new backing file is not.")
    with contextlib.ExitStack() as stack, _as_new_backing(path, name):
        found = place.again() if place else find_place(name, home.follow_links, home.directory)
        found.path = path
        opened = stack.enter_context(found)
        if not opened.there:
            raise opening.open_error(path, FileNotFoundError(errno.ENOENT, ""), writable=False)
        check_name(name, format_name)
        if format_name not in FORMATS:
            raise errors.ArgumentError(
                f"The format of the new backing file is '{errors.clean(format_name, 32)}'. It can be qcow2, raw or "
                "vmdk.",
                "unknown_format",
            )
        if opened.key in [image.key for image in own]:
            raise _loop(top.path, name)
        for layer in chain.layers[1:]:
            if layer.key == opened.key and layer.format == format_name:
                layer.image.place.named = True
                return NewBacking(name, format_name, chain.layers[layer.depth :], layer.depth)
        below = open_chain(
            stack.enter_context(Image.open(opened.again(), force_share=force_share, use=format_name)),
            backing_format=backing_format,
            allowed_roots=allowed_roots,
            force_share=force_share,
            limits=limits,
            top_format=format_name,
            taken=own,
        )
        stack.callback(below.close)
        return NewBacking(name, format_name, below.layers, 0, stack.pop_all(), below.reports)


def rebase(
    chain: Chain,
    backing: NewBacking | None,
    dry_run: bool = False,
    limits: Limits | None = None,
    progress: t.Callable[[int, int], None] | None = None,
    compressed: bool = False,
) -> Rebase:
    """The top of the chain stands on another file, or on none, and shows the same as before.

    dry_run: says what would be and writes nothing; the top may be open for reading only. limits: None for none but
    time's; see rebase_limits(). progress: is told (done, total) bytes of the disk. compressed: what the image gets is
    compressed, as its compression type says, where that makes a cluster smaller; not possible with a data file.
    Raises ArgumentError, ChainError, RefusalError. The image shows the same as before then, `modified` or not.
    """
    new_layers = backing.layers if backing else ()
    check_hard_links(chain.layers)
    check_hard_links(new_layers)
    check_written(chain.top.data_file, is_data_file=True)
    everything, rows, new_rows = _disks(chain.layers, new_layers)
    fields = {
        "layer_count": len(rows),
        "new_layer_count": len(new_rows),
        "shared": backing.shared if backing else 0,
        "compresses": int(compressed),
        "layers": rows,
        "new_layers": new_rows,
        **_names(backing.name if backing else b"", backing.format if backing else ""),
    }
    changed = {rows[0]["disk"], rows[0]["data_disk"]}
    limits = limits or rebase_limits(chain)
    name = backing.name if backing else b""
    return _run(everything, fields, changed, name, chain.top.virtual_size, dry_run, limits, progress)


def relink(
    image: Image, name: bytes, format_name: str = "", dry_run: bool = False, limits: Limits | None = None
) -> Rebase:
    """The header of an image names another backing file, b"" for none; nothing else changes, and nothing is opened.

    What the image shows is another thing afterwards, unless the new file has what the old one had. format_name: any
    that is to be recorded; a name needs one. Raises ArgumentError, RefusalError; for the image itself, too.
    """
    check_name(name, format_name)
    home = image.place
    with contextlib.suppress(OSError, ValueError), look_up(name, home.follow_links, home.directory) as place:
        if place.key == image.key:
            raise _loop(image.path, name)
    ffi, _library = kvm.bindings()
    row = {"format": ffi.integer_const("LAYER_QCOW2"), "disk": 0, "data_disk": 0}
    fields = {"layer_count": 1, "relinks": 1, "layers": [row], **_names(name, format_name if name else "")}
    return _run([image], fields, {0}, name, None, dry_run, limits, None)


def check_name(name: bytes, format_name: str) -> None:
    """Raises ArgumentError for a name that no header can have, or one without a format."""
    shown = os.fsdecode(name)
    if len(name) > BACKING_NAME_MAX or b"\0" in name:
        raise errors.ArgumentError(
            f"The name of the new backing file has more than {BACKING_NAME_MAX} bytes, or a NUL. "
            "Name it by a shorter path.",
            "backing_name_long",
            given=shown,
        )
    if name and not format_name:
        raise errors.ArgumentError(
            "The new backing file needs its format recorded, for a format is never guessed. State qcow2, raw or vmdk.",
            "backing_format_missing",
            given=shown,
        )
    if len(format_name) > BACKING_FORMAT_MAX:
        raise errors.ArgumentError(
            f"No format has a name of more than {BACKING_FORMAT_MAX} bytes: '{errors.clean(format_name, 64)}'.",
            "unknown_format",
            given=format_name,
        )


def leads_to(
    name: bytes,
    home: Directory,
    image: str,
    allowed_roots: t.Sequence[str | bytes | Place] = (),
    follow_links: bool = False,
) -> Key | None:
    """The file that a name will lead to once an image in the directory has it recorded, by the policy of open_chain():
    what Layer.key is. image: its path, for people. Raises ChainError, ArgumentError."""
    with Policy(allowed_roots, follow_links) as policy, policy.find(Reference(name, "backing", image), home) as place:
        return place.key


def rebase_limits(chain: Chain, seconds: float | None = None, rate: int = 0, flushes: bool = True) -> Limits:
    """What a rebase may use up; as commits.commit_limits()."""
    return commits.commit_limits(chain, seconds, rate, flushes)


def _check_form(name: bytes) -> None:
    """Raises ArgumentError for a name that QEMU takes for something else than a file."""
    if b":" in name.split(b"/", 1)[0] or not name:
        raise errors.ArgumentError(
            f"'{errors.clean(name)}' is a protocol to QEMU, or nothing at all, and no file's name. Write a name with a "
            "colon with ./ in front.",
            "backing_protocol",
        )


def _loop(path: str, name: bytes) -> errors.ArgumentError:
    return errors.ArgumentError(
        f"'{errors.clean(name)}' is {errors.clean(path, errors.PATH_LIMIT)} itself, or its data file: an image cannot "
        "stand on itself. Name another backing file.",
        "backing_loop",
    )


@contextlib.contextmanager
def _as_new_backing(path: str, name: bytes) -> t.Iterator[None]:
    """Notes with what goes wrong with the new backing file, or below it, how it was named."""
    try:
        yield
    except errors.AirlockError as error:
        if error.facts.get("top", error.facts.get("file")) == path:
            error.facts["new_backing"] = os.fsdecode(name)
        raise


def _names(name: bytes, format_name: str) -> dict[str, t.Any]:
    """The fields of the call that say what is recorded."""
    recorded = os.fsencode(format_name)
    return {
        "backing_length": len(name),
        "format_length": len(recorded),
        "backing_name": name,
        "backing_format": recorded,
    }


def _disks(
    layers: t.Sequence[Layer], new_layers: t.Sequence[Layer]
) -> tuple[list[Image], list[dict[str, int]], list[dict[str, int]]]:
    """The files of both chains, each once, and struct chain_layer for each layer. Raises ArgumentError."""
    ffi, _library = kvm.bindings()
    everything: list[Image] = []
    places: dict[Key, int] = {}

    def place(image: Image) -> int:
        key = image.key
        if key not in places:
            places[key] = len(everything)
            everything.append(image)
        return places[key]

    def row(layer: Layer) -> dict[str, int]:
        return {
            "format": ffi.integer_const(f"LAYER_{layer.format.upper()}"),
            "disk": place(layer.image),
            "data_disk": place(layer.data_file) if layer.data_file else 0,
        }

    rows, new_rows = [row(layer) for layer in layers], [row(layer) for layer in new_layers]
    if len(everything) > DISKS_MAX:
        raise errors.ArgumentError(
            f"The two chains have {len(everything)} files, more than the {DISKS_MAX} that a guest can be "
            "given. Shorten one of them first.",
            "too_many_files",
        )
    return everything, rows, new_rows


def _run(
    everything: t.Sequence[Image],
    fields: t.Mapping[str, t.Any],
    changed: t.Collection[int],
    name: bytes,
    size: int | None,
    dry_run: bool,
    limits: Limits | None,
    progress: t.Callable[[int, int], None] | None,
) -> Rebase:
    """size: of the image's disk, None: not known."""
    refuse = functools.partial(_refusal, [each.path for each in everything], os.fsdecode(name))
    result, payload, report = run_guest(
        everything,
        _compress_guest if fields.get("compresses") and not dry_run else _chain_guest,
        "rebase",
        {**fields, "dry_run": int(dry_run)},
        limits,
        refuse,
        () if dry_run else changed,
        progress,
    )
    held = result.copied_bytes + result.zeroed_bytes
    if payload or held > result.virtual_size or (size is not None and result.virtual_size != size):
        error = errors.GuestProtocolError("The guest's answer about a rebase contradicts itself.")
        error.modified = bool(result.header.modified)
        raise error
    return Rebase(result.copied_bytes, result.zeroed_bytes, result.virtual_size, report)


def _refusal(paths: t.Sequence[str], name: str, header: t.Any) -> errors.AirlockError:
    """paths: of the disks."""
    from ..words import chain_refusals  # words, and most runs need none

    return chain_refusals.from_rebase_refusal(header, paths, name)
