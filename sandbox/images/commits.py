# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the layers of a chain hold goes into one below them, which is the base of the commit.

    with open_chain("top.qcow2", writable_layers=(0,)) as chain:
        open_base(chain, 1)
        commit(chain, 1)

There is no way back, and none is needed: until the base is complete the layers above it stay as they are, so that the
top shows the same at every moment. A commit that was interrupted is done again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import typing as t

from .. import errors
from ..guests._limits import DISKS_MAX
from ..host import locks
from ..host.places import look_up
from ..vmm import kvm, memory
from ..vmm.answers import SLOWEST, Program
from ..vmm.doorbell_rules import OFFSET_MAX
from .chain import check_hard_links, check_written
from .image import Image, Limits, Report, run_guest

if t.TYPE_CHECKING:
    from .chain import Chain, Layer

RAW_CLUSTER = 65536  # what a raw base is counted in
SECTOR = 512

_UNLIMITED = 1 << 62
_SECONDS = 86400.0  # that nobody gave, besides those for what the chain holds


def _chain_guest() -> Program:
    from ..guests import _guest_chain
    from ..vmm.doorbell_copies import MovingServer

    return Program(*_guest_chain.load(), MovingServer)


class Commit(t.NamedTuple):
    """bytes_committed, bytes_zeroed: of the disk, written to the base and made zeros there. clusters_committed: what
    that is in clusters of the base, RAW_CLUSTER of a raw one. overlay_clusters_cleared: that the top held, 0 when it
    was not to be emptied. resized: the base has grown, to virtual_size bytes. complete: the base had all of it
    before, as the content ids of vmdk layers say, so that nothing new was written.

    Of a dry run: what would be.
    """

    bytes_committed: int
    bytes_zeroed: int
    clusters_committed: int
    overlay_clusters_cleared: int
    resized: bool
    virtual_size: int
    complete: bool
    report: Report


def find_base(chain: Chain, name: bytes | None = None) -> int:
    """The depth of the layer that a commit is to go to: the one below the top, or the one that is called `name`.

    As qemu-img -b: a relative name is looked for in the directory of each layer that stands on another, and what it
    leads to is compared with what that layer names. Nothing is opened. Raises ArgumentError, and CommitError for a
    chain with an encrypted layer.
    """
    _check_encryption(chain)
    top = chain.top.path
    if name is None:
        if len(chain.layers) < 2:
            raise errors.ArgumentError(
                f"{errors.clean(top, errors.PATH_LIMIT)} has no backing file, so there is nothing to commit to.",
                "no_backing_file",
            )
        return 1
    for above, below in zip(chain.layers, chain.layers[1:]):
        if _leads_to(chain, name, above, below):
            below.image.place.named = True
            return below.depth
    shown = os.fsdecode(name)
    raise errors.ArgumentError(
        f"{errors.clean(shown)} is not in the chain below {errors.clean(top, errors.PATH_LIMIT)}. Name one of: "
        + ", ".join(errors.quote(layer.path) for layer in chain.layers[1:])
        + ".",
        "base_not_found",
        given=shown,
        top=top,
    )


def _leads_to(chain: Chain, name: bytes, above: Layer, below: Layer) -> bool:
    """Whether a name that the operator gave leads from the layer above to the one below it."""
    follow_links, home = chain.top.image.place.follow_links, above.image.place.directory
    with contextlib.suppress(OSError, ValueError), look_up(name, follow_links, home) as place:
        return place.key == below.key
    return False


def _check_encryption(chain: Chain) -> None:
    """As the guest would, but where qemu-img does. Raises CommitError."""
    for layer in chain.layers:
        if layer.info and layer.info.encryption:
            from ..words import chain_refusals

            error = chain_refusals.encrypted(layer.path)
            error.facts.update(top=chain.top.path, depth=layer.depth)
            raise error


def _records_id(chain: Chain, base: int, goes_on: bool) -> bool:
    """Does the layer above the base have a record of its content, which has to follow? goes_on: the top does."""
    return chain.layers[base - 1].format == "vmdk" and (base > 1 or goes_on)


def open_base(chain: Chain, base: int) -> None:
    """Makes the layer `base` writable. Those between it and the top are read by nobody else from here on: while the
    base changes, they do not show what they should. Raises ImageInUseError, ImageOpenError."""
    try:
        chain.make_writable(chain.layers[base])
        above = chain.layers[base - 1]
        if _records_id(chain, base, True) and not above.image.disk.writable:
            chain.make_writable(above)
        for layer in chain.layers[1:base]:
            image = layer.image
            image.lock = locks.keep_readers_out(image.disk.descriptor, layer.path, image.lock)
    except errors.ImageInUseError as error:
        error.facts["opened"] = True  # not when the chain was opened, but when it was to be written to
        raise


def commit(
    chain: Chain,
    base: int = 1,
    empties: bool = True,
    allow_resize: bool = False,
    dry_run: bool = False,
    limits: Limits | None = None,
    progress: t.Callable[[int, int], None] | None = None,
    goes_on: bool = False,
) -> Commit:
    """Everything that the layers above the layer `base` hold goes into that one.

    empties: the top holds nothing afterwards. allow_resize: a base that is smaller than the top grows. dry_run: says
    what would be and writes nothing; the chain may be open for reading only. limits: None for none but time's; see
    commit_limits(). progress: is told (done, total) bytes. goes_on: the top is used further, though it is not emptied.
    Raises ArgumentError, ChainError, CommitError, RefusalError. The chain shows the same as before then, `modified` or
    not.
    """
    if not 0 < base < len(chain.layers):
        raise errors.ArgumentError(f"There is no layer {base} below the top of this chain.", "base_not_found")
    _check_device(chain, base, allow_resize)
    check_hard_links(chain.layers)  # those below the base as well: what fills up its clusters comes from there
    everything, rows = _disks(chain)
    records_id = _records_id(chain, base, empties or goes_on)
    layers = (
        {base} | ({0} if empties and chain.top.format == "qcow2" else set()) | ({base - 1} if records_id else set())
    )
    for depth in sorted(layers):
        check_written(chain.layers[depth].image if depth < base else None, is_data_file=False)
        check_written(chain.layers[depth].data_file, is_data_file=True)
    fields = {
        "layer_count": len(rows),
        "base": base,
        "resize_allowed": int(allow_resize),
        "empties": int(empties),
        "dry_run": int(dry_run),
        "records_id": int(records_id),
        "layers": rows,
    }
    refuse = functools.partial(_refusal, [each.path for each in everything])
    result, payload, report = run_guest(
        everything,
        _chain_guest,
        "commit",
        fields,
        limits or commit_limits(chain),
        refuse,
        () if dry_run else _changed(rows, layers),
        progress,
    )
    try:
        _check(result, payload, chain.top.virtual_size)
    except errors.GuestProtocolError as error:
        error.modified = bool(result.header.modified)
        raise
    return Commit(
        result.committed_bytes,
        result.zeroed_bytes,
        result.committed_clusters,
        result.cleared_clusters,
        bool(result.resized),
        result.virtual_size,
        bool(result.complete),
        report,
    )


def empty(chain: Chain, limits: Limits | None = None) -> int:
    """The top holds nothing afterwards: what the layers below show is what it shows. The clusters that it held.

    For after a commit(empties=False). limits: as of commit(). Raises ArgumentError, RefusalError.
    """
    check_written(chain.top.data_file, is_data_file=True)
    everything, rows = _disks(chain)
    refuse = functools.partial(_refusal, [each.path for each in everything])
    result, payload, _report = run_guest(
        everything,
        _chain_guest,
        "empty",
        {"layer": rows[0]},
        limits or commit_limits(chain),
        refuse,
        _changed(rows, (0,)),
    )
    if payload:
        raise errors.GuestProtocolError("The guest's answer about an emptied image contradicts itself.")
    return int(result.cleared_clusters)


def commit_limits(chain: Chain, seconds: float | None = None, rate: int = 0, flushes: bool = True) -> Limits:
    """What a commit may use up: `seconds`, or as long as it makes headway, at most a day and four times what the
    slowest storage takes for all that the chain holds; a disk may grow as far as the largest of the chain can make it.
    rate: bytes a second. flushes: False: nothing is made sure to be on stable storage."""
    largest = max(layer.virtual_size for layer in chain.layers)
    longest = max(layer.file_size for layer in chain.layers)
    # Data, tables and refcounts: with the smallest clusters, these are a twentieth of it. And the first grain of vmdk
    # begins at a multiple of its size, which is 1 GiB at most.
    growth = max(0, min(largest + largest // 8 + (3 << 30), OFFSET_MAX - longest))
    if seconds is None:
        files = (image for layer in chain.layers for image in (layer.image, layer.data_file) if image)
        held = sum(memory.held(image.disk) for image in files)
        limits = Limits(seconds=_SECONDS + 4 * held / min(SLOWEST, rate or SLOWEST))
    else:
        limits = Limits.within(seconds)
    return limits._replace(exits=_UNLIMITED, bytes=_UNLIMITED, file_growth=growth, rate=rate, flushes=flushes)


def _disks(chain: Chain) -> tuple[list[Image], list[dict[str, int]]]:
    """The files of the chain, data files behind the layers, and struct chain_layer for each layer. Raises
    ArgumentError."""
    ffi, _library = kvm.bindings()
    everything = [layer.image for layer in chain.layers]
    rows = []
    for layer in chain.layers:
        row = {"format": ffi.integer_const(f"LAYER_{layer.format.upper()}"), "disk": layer.depth, "data_disk": 0}
        if layer.data_file:
            row["data_disk"] = len(everything)
            everything.append(layer.data_file)
        rows.append(row)
    if len(everything) > DISKS_MAX:
        raise errors.ArgumentError(
            f"The chain has {len(everything)} files, more than the {DISKS_MAX} that a guest can be given. "
            "Commit it in parts: name a base that is nearer to the top.",
            "too_many_files",
        )
    return everything, rows


def _check_device(chain: Chain, base: int, allow_resize: bool) -> None:
    """Raises CommitError for a raw base that cannot grow."""
    layer = chain.layers[base]
    is_device = layer.format == "raw" and layer.image.disk.is_block
    if is_device and allow_resize and layer.virtual_size < chain.top.virtual_size:
        raise errors.CommitError(
            f"{errors.clean(layer.path, errors.PATH_LIMIT)} is a block device of {layer.virtual_size} bytes, the top "
            f"has a disk of {chain.top.virtual_size}: it does not fit. Make the device larger.",
            "base_device_small",
        )


def _changed(rows: t.Sequence[t.Mapping[str, int]], layers: t.Iterable[int]) -> set[int]:
    """The disks of these layers, to which the guest may write then."""
    return {disk for layer in layers for disk in (rows[layer]["disk"], rows[layer]["data_disk"] or layer)}


def _check(result: t.Any, payload: bytes, size: int) -> None:
    """Holds the answer against the question. size: of the top's disk. Raises GuestProtocolError."""
    held = result.committed_bytes + result.zeroed_bytes
    limit = -(-size // SECTOR) * SECTOR
    if payload or result.virtual_size not in (size, limit) or held > limit or (result.committed_clusters and not held):
        raise errors.GuestProtocolError("The guest's answer about a commit contradicts itself.")


def _refusal(paths: t.Sequence[str], header: t.Any) -> errors.AirlockError:
    """paths: of the disks."""
    from ..words import chain_refusals  # words, and most runs need none

    return chain_refusals.from_commit_refusal(header, paths)
