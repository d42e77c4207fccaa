# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many files this process may have open: as many as the hard limit allows, and whether that is enough."""

from __future__ import annotations

import contextlib
import resource

from . import errors

OF_A_PROCESS = 32  # its own, and those of the guests that run at once: KVM, pipes
OF_AN_IMAGE = 4  # the file as it was found, the same open for I/O, its directory, the journal


def raise_limit() -> None:
    """The soft limit becomes the hard one. It is low for the sake of select(2), which nobody here calls."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # a hard limit above the kernel's own: what there is has to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def need(images: int) -> None:
    """Raises HostError when so many images cannot be open at once, before the first one is."""
    wanted = OF_A_PROCESS + OF_AN_IMAGE * images
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raise errors.HostError(
            f"{images} images at once take up to {wanted} descriptors, and this process may have {soft}. Raise the "
            f'hard limit of open files ("ulimit -Hn", LimitNOFILE of a systemd unit) to {wanted}, or name fewer.'
        )
