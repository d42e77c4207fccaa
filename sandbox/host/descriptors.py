# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many files this process may have open: as many as the hard limit allows, and whether that is enough."""

from __future__ import annotations

import contextlib
import os
import resource

from .. import errors

OF_A_PROCESS = 32  # its own, and those of the guests that run at once: KVM, pipes
OF_AN_IMAGE = 4  # the file as it was found, the same open for I/O, its directory, the journal
OF_A_LAYER = 3  # of a chain, or its data file: the same, but no chain has a journal
OF_A_GUEST = 4  # /dev/kvm, both ends of a pipe, and one for the processor or for what Python loads meanwhile
OF_A_TASK = 12  # a guest, a progress file, a new overlay
ENOUGH = 1024  # for a chain on its way to another one, both of 64 layers with a data file each


def raise_limit() -> None:
    """The soft limit becomes the hard one. It is low for the sake of select(2), which nobody here calls."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # a hard limit above the kernel's own: what there is has to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def need(images: int) -> None:
    """Raises HostError when so many images cannot be open at once, before the first one is."""
    wanted = OF_A_PROCESS + OF_AN_IMAGE * images
    limit = _limit()
    if limit is not None and limit < wanted:
        what, or_less = (f"{images} images at once take", ", or name fewer") if images > 1 else ("An image takes", "")
        from ..words import advice  # words, and as a rule there are enough

        raise errors.HostError(
            f"{what} up to {wanted} descriptors, and this process may have {limit}. "
            f"{advice.say('descriptors', {'number': wanted})}{or_less}."
        )


def need_more(count: int, what: str) -> None:
    """Raises HostError when this process may not open so many files beside those that it has open.

    For what is only found out while it is opened; nothing may have been written yet. what: a sentence on what the
    files are for.
    """
    limit = _limit()
    if limit is None:
        return
    wanted = _open_below(limit) + count
    if wanted > limit:
        from ..words import advice

        more = advice.say("descriptors", {"number": f"at least {wanted}"})
        raise errors.HostError(
            f"{what} This process needs {wanted} descriptors to go on, and may have {limit}. Nothing was changed. "
            f"{more}; {ENOUGH} are enough for a chain of any length."
        )


def _limit() -> int | None:
    """How many this process may have, None: any number."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _open_below(limit: int) -> int:
    """How many of the numbers below the limit are in use; 0 where there is no /proc that tells."""
    try:
        return sum(int(number) < limit for number in os.listdir("/proc/self/fd")) - 1  # one is for the list itself
    except FileNotFoundError:
        return 0
    except OSError:
        return limit  # not even that one can be opened
