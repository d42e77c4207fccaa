# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Refusals of guests that are for chains, in words: refusals.py says how they are made."""

from __future__ import annotations

import typing as t

from ..errors import AirlockError
from . import bitmap_refusals, refused, vmdk_refusals
from .wording import Wording, Words

WORDINGS: dict[str, Wording] = {
    **bitmap_refusals.WORDINGS,
    "encrypted": Wording(
        "CommitError",
        "The image is encrypted, and no keys are taken here. {qemu_img}",
    ),
    "compressed_cluster": Wording(
        "CommitError",
        "The compressed cluster at disk offset {b_hex} (entry {a_hex}) cannot be inflated to a whole cluster: the data "
        "is lost. Restore the image from a backup.",
    ),
    "base_resize": Wording(
        "CommitError",
        "The base has a disk of {a} bytes, the top one of {b}. {resize_allowed}, if "
        "nothing else stands on the base that must keep its size.",
    ),
    "base_resize_v2": Wording(
        "CommitError",
        "The base has a disk of {a} bytes, the top one of {b}, and a version 2 image with snapshots cannot be resized. "
        "{upgrade}",
    ),
    "backing_name_room": Wording(
        "RebaseError",
        "There is no room in the first cluster for the name {name}. Name the backing file by a shorter path.",
    ),
    "file_not_empty": Wording(
        "RebaseError",
        "The file that was to become a new overlay has {a} bytes already. Look what else writes in its directory.",
    ),
    "compress_data_file": Wording(
        "RebaseError",
        "The image keeps its clusters in an external data file, where none can be compressed. {not_compressed}",
    ),
    "backing_raw_data": Wording(
        "RebaseError",
        "The image promises that its external data file is the whole disk (data_file_raw), which would not be so with "
        "a backing file. Make an overlay of the image instead, or one of the backing file without data_file_raw.",
    ),
    **vmdk_refusals.VMDK_WORDINGS,
}
WORDS = Words(WORDINGS, vmdk_refusals.fields)


def from_layer_refusal(header: refused.ResultHeader, path: str) -> AirlockError:
    """The exception for a look at one layer that was refused."""
    return refused.error(header, path, "", WORDS)


def from_commit_refusal(header: refused.ResultHeader, paths: t.Sequence[str]) -> AirlockError:
    """The exception for a commit that was refused. paths: of the disks of the call."""
    written = " The commit had begun. Nothing is lost, for what the top shows is the same as before: run it again."
    return refused.of_disk(header, paths) or refused.error(header, paths[header.disk], "", WORDS, written=written)


def from_rebase_refusal(header: refused.ResultHeader, paths: t.Sequence[str], name: str) -> AirlockError:
    """The exception for a rebase that was refused. paths: of the disks of the call. name: the new backing file's."""
    written = " The rebase had begun. Nothing is lost, for the image shows the same as before: run it again."
    return refused.of_disk(header, paths) or refused.error(header, paths[header.disk], name, WORDS, written=written)


def encrypted(path: str) -> AirlockError:
    """The exception for an encrypted image whose data is wanted, worded as the guest's refusal."""
    return from_commit_refusal(refused.header_of("encrypted"), [path])
