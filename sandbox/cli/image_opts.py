# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""--image-opts in its plain forms: driver=qcow2,file.driver=file,file.filename=X.

What else QEMU takes there opens other files, or speaks to a network: it is refused by name.
Source: qemu 10.0.2, qemu-img.c img_open_opts(), util/qemu-option.c opts_do_parse().
"""

from __future__ import annotations

import os
import typing as t

from .. import errors

_FILE_DRIVERS = (b"file",)
_KNOWN = (b"driver", b"file.driver", b"file.filename")
_NETWORK = "Only a file of this host is opened, with the keys driver, file.driver=file and file.filename."


def parse(text: bytes, formats: t.Container[bytes]) -> tuple[bytes, bytes]:
    """(format, path) of an operand. formats: those that the command knows; without a driver it is qcow2, for none is
    ever guessed. Raises ArgumentError."""
    found = dict(_pairs(text))
    for key in found:
        if key not in _KNOWN:
            raise _refuse(text, f"The key '{errors.clean(key, 64)}' is not known here. {_NETWORK}")
    file_driver = found.get(b"file.driver", b"file")
    if file_driver not in _FILE_DRIVERS:
        raise _refuse(text, f"The driver '{errors.clean(file_driver, 64)}' is not known here. {_NETWORK}")
    image_format = found.get(b"driver", b"qcow2")
    if image_format not in formats:
        name = os.fsdecode(image_format)
        raise _refuse(
            text, f"The driver '{errors.clean(name, 64)}' is not known for this command.", f"Unknown driver '{name}'"
        )
    if not found.get(b"file.filename"):
        report = "The 'file' block driver requires a file name"
        if not found:
            report = "Must specify either driver or file"
        elif b"file.filename" not in found and b"file.driver" not in found:
            report = 'A block device must be specified for "file"'
        raise _refuse(text, "No file is named. Name it with file.filename=PATH.", report)
    return image_format, found[b"file.filename"]


def _pairs(text: bytes) -> t.Iterator[tuple[bytes, bytes]]:
    """Keys and values; a doubled comma is one in a value. A key without a value is on."""
    parts = [part.replace(b"\0", b",") for part in text.replace(b",,", b"\0").split(b",")]
    for part in parts:
        if part:
            key, sign, value = part.partition(b"=")
            yield key, value if sign else b"on"


def _refuse(text: bytes, message: str, report: str = "") -> errors.ArgumentError:
    """report: qemu-img's words, where it would refuse as well."""
    given = os.fsdecode(text)
    facts = {"file": given, "options": report} if report else {}
    return errors.ArgumentError(f"--image-opts {errors.quote(given)}: {message}", "bad_image_opts", **facts)
