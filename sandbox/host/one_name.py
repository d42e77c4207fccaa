# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a file has no other name than the one by which it was found."""

from __future__ import annotations

import os

_LOOKS = 16  # at a name that somebody may be removing and making anew


def has_one_name(name: bytes, directory: int, held: os.stat_result) -> bool:
    """Whether that is known to be the only name of the file, or symbolic link, that is held. Raises nothing.

    Of two names, who has made the second could remove his before the names are counted, so that the other's is left
    alone. So the file is counted by this name. Between the two steps of that one call it may still go; who makes and
    removes it all the time is found out by one of many looks.
    """
    for _look in range(_LOOKS):
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return False
        if (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino) or found.st_nlink > 1:
            return False
    return True
