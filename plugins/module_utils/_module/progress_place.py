# Copyright: (c) 2026, The airlock.images authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option progress_file of the modules that few tasks give it: only those load progress_file.py."""

from __future__ import annotations

import contextlib
import typing as t

if t.TYPE_CHECKING:
    from ..sandbox.host.places import Place


def progress_place(params: t.Mapping[str, t.Any]) -> t.ContextManager[Place | None]:
    """Where the file will be, open as long as the context; None without the option. Raises ArgumentError."""
    if params["progress_file"] is None:
        return contextlib.nullcontext()
    from .progress_file import find_progress_file

    place = find_progress_file(params["progress_file"], params["follow_links"])
    return place or contextlib.nullcontext()
