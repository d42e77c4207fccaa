# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of snapshots that qemu-img snapshot -l prints, byte for byte.

Source: qemu 10.0.2, block/qapi.c (bdrv_snapshot_dump) and util/cutils.c (size_to_str).
"""

from __future__ import annotations

import math
import re
import time
import typing as t

if t.TYPE_CHECKING:
    from ..images.calls import Snapshot

_CONTROLS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\udc80-\\udc9f]+")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
# Widths are bytes, as printf counts them; what is wider pushes the rest of its line.
_LINE = b"%-7s %-16s %8s %19s %15s %10s\n"
_TITLE = b"Snapshot list:\n" + _LINE % (b"ID", b"TAG", b"VM_SIZE", b"DATE", b"VM_CLOCK", b"ICOUNT")


def format_listing(snapshots: t.Iterable[Snapshot], show: t.Callable[[bytes], bytes] = bytes) -> bytes:
    """The table as listing_lines() makes it."""
    return b"".join(listing_lines(snapshots, show))


def listing_lines(snapshots: t.Iterable[Snapshot], show: t.Callable[[bytes], bytes]) -> t.Iterator[bytes]:
    """The table, line by line; nothing at all when there are no snapshots. Dates are in local time.

    show: how ids and names are printed. qemu-img prints them as they are.
    """
    title = _TITLE
    for snapshot in snapshots:
        yield title + listing_row(snapshot, show)
        title = b""


def listing_row(snapshot: Snapshot, show: t.Callable[[bytes], bytes]) -> bytes:
    """A snapshot's line of the table."""
    return _LINE % (
        show(snapshot.id),
        show(snapshot.name),
        format_size(snapshot.vm_state_size).encode(),
        format_date(snapshot.date_seconds).encode(),
        format_clock(snapshot.vm_clock).encode(),
        format_icount(snapshot.icount).encode(),
    )


def format_size(size: int) -> str:
    """Bytes in three significant digits; the next unit begins where the number would reach 1000."""
    exponent = math.frexp(size / (1000.0 / 1024.0))[1]
    unit = max(exponent - 1, 0) // 10
    return f"{float(size) / (1 << (10 * unit)):.3g} {_UNITS[unit]}"


def format_date(seconds: int) -> str:
    """Seconds since 1970, unsigned, as local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def format_clock(nanoseconds: int) -> str:
    """The virtual machine's clock: hours of four digits or more, and milliseconds, cut off."""
    seconds = nanoseconds // 1_000_000_000
    milliseconds = nanoseconds // 1_000_000 % 1000
    return f"{seconds // 3600:04d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{milliseconds:03d}"


def format_icount(icount: int | None) -> str:
    """The instruction count, which qemu prints as a signed number; -- when it was not recorded."""
    if icount is None:
        return "--"
    return str(icount - (1 << 64) if icount >= 1 << 63 else icount)


def escape_controls(text: bytes) -> bytes:
    """The text with control characters (C0, DEL and C1, in UTF-8 or as a byte of no UTF-8) as \\xNN, \\n, \\r or \\t.

    For files, pipes and logs: all else is what it was, to the byte.
    """
    decoded = text.decode("utf-8", "surrogateescape")
    if not _CONTROLS.search(decoded):
        return text
    return _CONTROLS.sub(_escaped, decoded).encode("utf-8", "surrogateescape")


def escape_unprintable(text: bytes) -> bytes:
    """The text with what is not printable, or not UTF-8, as \\xNN, \\uNNNN or \\UNNNNNNNN. For terminals."""
    decoded = text.decode("utf-8", "backslashreplace")
    if decoded.isprintable():
        return decoded.encode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded).encode()


def _escaped(controls: re.Match[str]) -> str:
    """A whole run at once: there may be tens of millions of them in a listing."""
    codes = controls[0].encode("latin-1", "surrogateescape").decode("latin-1")
    return codes.encode("unicode_escape").decode()
