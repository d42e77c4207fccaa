# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The backing chain of an image: each layer opened, locked and asked what it stands on, from the top down.

    with open_chain("top.qcow2", allowed_roots=["/srv/base"]) as chain:
        print(drawing(chain))  # base.raw <- a.qcow2 <- top.qcow2

A guest reads a layer and reports names as bytes; references.py decides what they may lead to. No format is guessed.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from .. import errors
from ..guests._limits import DISKS_MAX
from ..host import descriptors, disks, locks
from ..host.places import Directory, Key, Place
from ..host.reference_rules import NameRuleError, Reference
from ..host.references import Policy, shown_path
from ..words import opening
from . import info
from .image import Image, Limits, Report

if t.TYPE_CHECKING:
    from .info import ImageInfo
    from .vmdk import VmdkInfo

FORMATS = ("qcow2", "raw", "vmdk")
LAYERS_MAX = DISKS_MAX  # that one guest can be given
_LEAST_SECONDS = 0.001


class Layer:
    """One image of a chain.

    path: for people: as qemu combines it from the names. format: one of FORMATS. depth: 0 is the top. image: open and
    locked. info: what its header says, None for a raw one. data_file: the file its data is in, where that is another.
    """

    def __init__(
        self,
        image: Image,
        format_name: str,
        depth: int,
        header: ImageInfo | VmdkInfo | None,
        data_file: Image | None,
    ) -> None:
        self.path = image.path
        self.format = format_name
        self.depth = depth
        self.image = image
        self.info = header
        self.data_file = data_file

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk; a raw one ends with a whole sector of 512, as qemu has it."""
        return self.info.virtual_size if self.info else -(-self.image.disk.size // 512) * 512

    @property
    def file_size(self) -> int:
        """Bytes of the image file, holes included."""
        return self.image.disk.size

    @property
    def identity(self) -> tuple[int, int]:
        """(st_dev, st_ino)."""
        return self.image.disk.identity

    @property
    def key(self) -> Key:
        """Tells files apart, see places.file_key()."""
        return self.image.key

    @property
    def backing_name(self) -> bytes:
        """As it stands in the image; b"" in a base."""
        return self.info.backing_name if self.info else b""

    @property
    def backing_format(self) -> bytes:
        """As it stands in the image; b"" when it is not recorded."""
        return self.info.backing_format if self.info else b""


class Chain:
    """The layers from the top to the base, open and locked until close(). reports: of the guests that read them."""

    def __init__(
        self,
        layers: t.Sequence[Layer],
        reports: t.Sequence[Report],
        stack: contextlib.ExitStack,
        force_share: bool = False,
    ) -> None:
        self.layers = tuple(layers)
        self.reports = tuple(reports)
        self._stack = stack
        self._force_share = force_share

    @property
    def top(self) -> Layer:
        return self.layers[0]

    @property
    def base(self) -> Layer:
        """The last layer, the top itself when it stands alone."""
        return self.layers[-1]

    def of(self, layers: t.Sequence[Layer]) -> Chain:
        """Layers that are open already as a chain of their own, from the top to the base; closing it closes nothing."""
        own = [
            Layer(layer.image, layer.format, depth, layer.info, layer.data_file) for depth, layer in enumerate(layers)
        ]
        return Chain(own, (), contextlib.ExitStack(), self._force_share)

    def make_writable(self, layer: Layer) -> None:
        """Opens a layer, and its data file, for writing as well; a writer's locks replace the reader's without a gap.

        Raises ImageInUseError, ImageOpenError, ForceShareError; the file in question stays as it was then.
        """
        if self._force_share:
            raise opening.force_share_error(layer.path)
        if layer.data_file:
            _make_writable(layer.data_file, "data file")
        _make_writable(layer.image, layer.format)

    def close(self) -> None:
        """Drops all locks but those of an image that the caller had open."""
        self._stack.close()

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def open_chain(
    top: Image | str | bytes | Place,
    *,
    backing_format: str | None = None,
    allowed_roots: t.Sequence[str | bytes | Place] = (),
    writable_layers: t.Container[int] = (),
    depth_limit: int = LAYERS_MAX,
    force_share: bool = False,
    limits: Limits | None = None,
    top_format: str = "qcow2",
    taken: t.Iterable[Image] = (),
) -> Chain:
    """All layers below an image, and that image itself.

    top: a path or a place, as of Image.open(), or an image that is open already; closing the chain leaves that open.
    Whether allowed_roots may be reached through any link is as it was for the top. backing_format: one of FORMATS,
    for layers that do not record what they stand on. allowed_roots: directories, files and block devices that names
    may lead to besides the directory of the image that has them. writable_layers: depths of those to open for writing.
    depth_limit: layers. force_share: as in Image.open(). limits: of each guest; the seconds are for all together.
    top_format: one of FORMATS; "raw" only for an image that is open. taken: files that no name may lead to, for they
    are to stand on this chain.

    Raises ChainError for what docs/chain.md says, ArgumentError, ImageOpenError, ImageInUseError, RefusalError,
    HostError for more files than this process may open.
    """
    if backing_format is not None and backing_format not in FORMATS:
        raise errors.ArgumentError(
            f"The format of backing files is stated as '{errors.clean(backing_format, 32)}'. It can be qcow2, raw or "
            "vmdk.",
            "unknown_format",
        )
    with contextlib.ExitStack() as stack:
        if not isinstance(top, Image):
            top = stack.enter_context(Image.open(top, 0 in writable_layers, force_share))
        policy = stack.enter_context(Policy(allowed_roots, top.place.follow_links))
        walker = _Opener(stack, policy, writable_layers, force_share, limits or Limits(), taken)
        layers = walker.layers(top, top_format, backing_format, depth_limit)
        return Chain(layers, walker.reports, stack.pop_all(), force_share)


def check_hard_links(layers: t.Sequence[Layer]) -> None:
    """For layers whose data is to be written, or copied from. Raises ChainError for a file that has more names than the
    one in the image above, or no longer that one, which the operator did not give: it may be anybody's.

    A raw file and a data file tell nothing of whose they are. One with a header does not go unnoticed in a stranger's
    chain, so it may have several names as long as its owner is that of the image above, and of the directory where that
    is a stranger's.
    """
    for above, layer in zip([None, *layers], layers):
        for image, own in ((layer.image, layer.info is not None), (layer.data_file, False)):
            if image is None or image.place.named or image.disk.is_block:
                continue
            owner = os.fstat(image.disk.descriptor).st_uid
            same = above and owner == os.fstat(above.image.disk.descriptor).st_uid
            if own and same and image.place.directory.vouches_for(owner):
                continue
            if not image.place.has_one_name():
                from ..host import reference_refusals

                raise reference_refusals.hard_links(image.path, layer.data_file is image)


def check_written(image: Image | None, is_data_file: bool) -> None:
    """For a file that is to be written to, though it is none of the layers that a task means. Raises ChainError for one
    that only an image names, in an allowed root: that is there for what is read, and others have their files there."""
    if image and image.place.elsewhere and not image.place.named:
        from ..host import reference_refusals

        raise reference_refusals.elsewhere(image.path, is_data_file)


def drawing(chain: Chain) -> str:
    """The chain in one line, base first: "base.raw <- a.qcow2 <- top.qcow2". Printable."""
    return draw([layer.path for layer in chain.layers])


def draw(paths: t.Sequence[str], marks: t.Mapping[str, str] | None = None) -> str:
    """Layers in one line, from those of the paths that are given top first. Printable. marks: what to put behind some.

    Names of files; whole paths where two layers have the same name.
    """
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) < len(names):
        names = list(paths)
    shown = [errors.clean(name, errors.PATH_LIMIT) + (marks or {}).get(path, "") for name, path in zip(names, paths)]
    return " <- ".join(reversed(shown))


class _Opener:
    """Opens layer after layer; all that it opens goes onto the stack."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        policy: Policy,
        writable_layers: t.Container[int],
        force_share: bool,
        limits: Limits,
        taken: t.Iterable[Image],
    ) -> None:
        self.reports: list[Report] = []
        self._stack = stack
        self._policy = policy
        self._writable_layers = writable_layers
        self._force_share = force_share
        self._limits = limits
        self._deadline = None if limits.seconds is None else time.monotonic() + limits.seconds
        self._seen: set[Key | None] = {image.key for image in taken}
        self._top = ""
        self._files = 1

    def layers(self, top: Image, top_format: str, backing_format: str | None, depth_limit: int) -> list[Layer]:
        """From the top to the base."""
        self._top = top.path
        self._seen.add(top.key)
        layers = [self._layer(top, top_format, 0)]
        while layers[-1].backing_name:
            above = layers[-1]
            home = above.image.place.directory
            sectors = getattr(above.info, "descriptor_sectors", 0)
            reference = Reference(above.backing_name, "backing", above.path, sectors)
            if len(layers) >= depth_limit:
                from ..host import reference_refusals

                raise reference_refusals.too_deep(top.path, depth_limit)
            self._policy.check(reference, home)
            format_name = _format(above, reference, backing_format)
            with _as_backing_file(top.path, shown_path(reference.name, home), above.depth + 1):
                found = self._find(reference, home)
                writable = above.depth + 1 in self._writable_layers
                image = self._open(reference, found, writable, format_name)
                layers.append(self._layer(image, format_name, above.depth + 1))
        return layers

    def _layer(self, image: Image, format_name: str, depth: int) -> Layer:
        """Asks a guest about an image that is open; its data file is opened as well."""
        if format_name == "raw":
            return Layer(image, format_name, depth, None, None)
        limits = self._limits
        if self._deadline is not None:
            limits = limits._replace(seconds=max(self._deadline - time.monotonic(), _LEAST_SECONDS))
        header = _header(image, format_name, limits)
        self.reports.append(header.report)
        data_file = None
        if header.has_data_file:
            reference = Reference(header.data_file, "data_file", image.path)
            found = self._find(reference, image.place.directory)
            data_file = self._open(reference, found, image.disk.writable, "data file")
        return Layer(image, format_name, depth, header, data_file)

    def _find(self, reference: Reference, home: Directory) -> Place:
        """As Policy.find(). Raises HostError as well, while there is room for what is to be done with the chain."""
        count = f"{self._files} file" + ("s" if self._files > 1 else "")
        what = f"{errors.clean(self._top, errors.PATH_LIMIT)} has a chain of which {count} could be opened."
        descriptors.need_more(descriptors.OF_A_LAYER + descriptors.OF_A_GUEST, what)
        self._files += 1
        return self._policy.find(reference, home)

    def _open(self, reference: Reference, found: Place, writable: bool, use: str) -> Image:
        """Opens and locks what a name was found to lead to, unless the chain has it already. Takes over the place."""
        try:
            if found.key in self._seen:
                from ..host import reference_refusals

                raise reference_refusals.refusal(reference, NameRuleError("loop"), found.path)
            self._seen.add(found.key)
        except BaseException:
            found.close()
            raise
        return self._stack.enter_context(Image.open(found, writable, self._force_share, use))


def _header(image: Image, format_name: str, limits: Limits) -> ImageInfo | VmdkInfo:
    """What a guest says of an image of a format that has a header."""
    if format_name == "vmdk":
        from .vmdk import vmdk_info  # another guest, and most chains have no such layer

        return vmdk_info(image, limits)
    return info.image_info(image, limits)


def _make_writable(image: Image, use: str) -> None:
    """Another descriptor in the place of an image's. Raises ImageInUseError, ImageOpenError."""
    reader = image.disk
    if reader.writable:
        return
    writer = disks.disk_of_place(image.place, writable=True)
    try:
        image.lock = locks.hand_over(reader.descriptor, writer.descriptor, image.path, use)
    except BaseException:
        writer.close()
        raise
    image.disk = writer
    reader.close()


def _format(above: Layer, reference: Reference, stated: str | None) -> str:
    """The format of the layer below: as recorded, or as stated where nothing is. Raises ChainError."""
    if not above.backing_format and stated is not None:
        return stated
    recorded = os.fsdecode(above.backing_format)
    if recorded in FORMATS:
        return recorded
    from ..host import reference_refusals

    if not recorded:
        raise reference_refusals.format_missing(reference)
    raise reference_refusals.format_unknown(reference, above.backing_format)


@contextlib.contextmanager
def _as_backing_file(top: str, path: str, depth: int) -> t.Iterator[None]:
    """Notes with what goes wrong with a lower layer whose it is."""
    try:
        yield
    except errors.AirlockError as error:
        if error.facts.get("file") == path:
            error.facts.update(top=top, depth=depth)
        raise
