# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Dirty ranges as a backup tool gets them: qemu-nbd exports a bitmap, qemu-img reads it over NBD.

Neither the server nor the client knows anything of ours, or of the reader in bitmaps.py.
"""

from __future__ import annotations

import json
import os
import tempfile

from . import qemu
from .bitmaps import merged


def extents(path: str, name: bytes) -> list[tuple[int, int]]:
    """The dirty ranges of a bitmap, (offset, length) in bytes. Raises RuntimeError with what a tool printed.

    Works on a copy: a read-only export takes no bitmap that records.
    """
    # Beside the image, for the sake of its backing file. Of a name of its own: the server of the last copy may still be
    # about to end.
    with (
        tempfile.NamedTemporaryFile(prefix="exported-", dir=os.path.dirname(path) or ".") as beside,
        tempfile.TemporaryDirectory(prefix="nbd-") as directory,
    ):
        copy = beside.name
        qemu.copy(path, copy)
        qemu.must(["qemu-img", "bitmap", "--disable", "-f", "qcow2", copy, name])
        socket = os.path.join(directory, "socket")  # in a short path
        # The server ends with its last client: the command below.
        qemu.must(["qemu-nbd", "--read-only", "-f", "qcow2", "--fork", "--bitmap", name, "--socket", socket, copy])
        context = b"qemu:dirty-bitmap:" + name.replace(b",", b",,")
        where = f"driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=".encode()
        outcome = qemu.must(["qemu-img", "map", "--output=json", "--image-opts", where + context])
    # With x-dirty-bitmap, what is dirty looks as if it held no data.
    found = [(part["start"], part["length"]) for part in json.loads(outcome.output) if not part["data"]]
    return list(merged(found))
